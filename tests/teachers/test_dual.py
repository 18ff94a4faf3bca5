import numpy as np
import pytest
import torch
from torch import nn

from selftrain_seg.mining import class_mix, cut_mix
from selftrain_seg.teachers import DualTeacher, MeanTeacher
from tests.oracles import teachers as oracle
from tests.teachers.nets import Net, assert_same, images, shake, snapshot


def test_by_hand():
    # Turn of teacher 0: 2, then (2 + 4)/2 = 3. Teacher 1: 6, (6 + 2)/2 = 4. Teacher 0 again: 10, not 3 averaged.
    student = nn.Linear(1, 1, bias=False)
    teacher = DualTeacher(student, momentum=0.9)
    seen = []
    for turn in ((2.0, 4.0), (6.0, 2.0), (10.0,)):
        for value in turn:
            nn.init.constant_(student.weight, value)
            teacher.update(student)
            seen.append([one.model.weight.item() for one in teacher.teachers])
        teacher.switch()
    start = seen[0][1]
    assert seen == [[2, start], [3, start], [3, 6], [3, 4], [10, 4]]


@pytest.mark.parametrize("momentum", [0.6, 0.99])
@pytest.mark.parametrize("buffers", ["copy", "average", "keep"])
def test_law(momentum, buffers):
    student = Net()
    teacher = DualTeacher(student, momentum=momentum, buffers=buffers)
    start = snapshot(student)
    turns = {0: [], 1: []}
    for turn, updates in enumerate((4, 3, 5, 1, 2)):
        if turn:
            teacher.switch()
        assert teacher.active == turn % 2
        assert teacher.turn.item() == turn
        resting = snapshot(teacher.teachers[1 - teacher.active])
        states = []
        for step in range(updates):
            shake(student, 10 * turn + step)
            states.append(snapshot(student))
            teacher.update(student)
        turns[turn % 2].append(states)
        assert_same(snapshot(teacher.teachers[1 - teacher.active]), resting)
        assert torch.equal(teacher(images()), teacher.teachers[turn % 2](images()))
        assert not torch.equal(teacher(images()), teacher.teachers[1 - turn % 2](images()))
    for number, one in enumerate(teacher.teachers):
        for name in ("first.weight", "head.bias", "norm.running_var", "seen"):
            expected = start[name].double().flatten().tolist()
            for states in turns[number]:
                follows = [state[name].double().flatten().tolist() for state in states]
                if name in ("seen", "norm.running_var") and buffers == "keep":
                    continue
                if name == "seen" or (name == "norm.running_var" and buffers == "copy"):
                    expected = follows[-1]
                else:
                    momenta = oracle.momenta_by_loops(len(states), momentum, True)
                    expected = oracle.averages_by_loops(expected, follows, momenta)
            own = one.model.state_dict()[name].double().flatten()
            np.testing.assert_allclose(own.numpy(), expected, rtol=2e-6, err_msg=f"{name} of {number}")


def test_a_turn_begins_as_a_copy_of_the_student():
    student = Net()
    teacher = DualTeacher(student)
    for turn in range(4):
        for step in range(3):
            shake(student, 10 * turn + step)
            teacher.update(student)
            if step == 0:
                assert_same(snapshot(teacher.teachers[turn % 2].model), snapshot(student))
        assert not torch.equal(teacher.teachers[turn % 2].model.head.weight, student.head.weight)
        teacher.switch()


def test_mixing_alternates():
    teacher = DualTeacher(nn.Linear(1, 1))
    assert teacher.mixing is cut_mix
    teacher.switch()
    assert teacher.mixing is class_mix
    teacher.switch()
    assert teacher.mixing is cut_mix
    other = DualTeacher(nn.Linear(1, 1), mixing=[min, max])
    assert other.mixing is min
    other.switch()
    assert other.mixing is max


def test_settings_reach_both_teachers():
    student = Net().train()
    teacher = DualTeacher(student, momentum=0.7, buffers="keep", train_mode=True, dropout=True, sync_buffers=True)
    for one in teacher.teachers:
        assert isinstance(one, MeanTeacher)
        settings = (one.momentum, one.warmup, one.buffer_rule, one.train_mode, one.dropout, one.sync_buffers)
        assert settings == (0.7, True, "keep", True, True, True)
    assert DualTeacher(student).teachers[0].momentum == 0.99
    assert not DualTeacher(student).teachers[0].sync_buffers
    teacher.eval()
    assert all(one.model.training for one in teacher.teachers)
    assert not teacher(images()).requires_grad


def test_student_is_not_changed():
    student = Net().train()
    before, state = snapshot(student), torch.get_rng_state()
    teacher = DualTeacher(student)
    teacher.update(student)
    teacher.switch()
    teacher.update(student)
    teacher(images())
    assert_same(snapshot(student), before)
    assert all(module.training for module in student.modules())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"student": 3}, TypeError, "`student`: expected a torch.nn.Module, got int"),
        ({"student": nn.LazyLinear(1)}, ValueError, "`student`: expected initialised parameters"),
        ({"momentum": None}, TypeError, "`momentum`: expected a number, got NoneType"),
        ({"momentum": 2}, ValueError, r"`momentum`: expected a value in \[0.0, 1.0\], got 2"),
        ({"buffers": "mean"}, ValueError, "`buffers`: expected one of"),
        ({"mixing": (cut_mix,)}, ValueError, "`mixing`: expected a pair"),
        ({"mixing": cut_mix}, ValueError, "`mixing`: expected a pair"),
    ],
)
def test_raises(keywords, error, message):
    with pytest.raises(error, match=message):
        DualTeacher(**{"student": Net(), **keywords})


def test_update_raises():
    teacher = DualTeacher(Net())
    with pytest.raises(TypeError, match=r"`student`: expected a torch.nn.Module, got str"):
        teacher.update("student")
    with pytest.raises(ValueError, match="`student`: expected the parameters that the teacher was made from"):
        teacher.update(nn.Linear(1, 1))
