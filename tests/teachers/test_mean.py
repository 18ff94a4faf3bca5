import math
import types
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from selftrain_seg.teachers import MeanTeacher, drop_blocks
from tests.helpers import never_waits
from tests.oracles import teachers as oracle
from tests.teachers.nets import Net, assert_same, images, shake, snapshot

FLOATS = ("norm.running_mean", "norm.running_var", "scale")
INTEGERS = ("norm.num_batches_tracked", "seen")


def follow(teacher, student, updates):
    """The student's states at construction and at each update."""
    states = [snapshot(student)]
    for step in range(updates):
        shake(student, step)
        states.append(snapshot(student))
        teacher.update(student)
    return states


def by_loops(states, name, momenta):
    start, *rest = [state[name].double().flatten().tolist() for state in states]
    return oracle.averages_by_loops(start, rest, momenta)


def test_by_hand():
    # d = 0, 1/2, 2/3, then capped at 0.7: 2; (2 + 4)/2 = 3; 2/3 · 3 + 1/3 · 9 = 5; 0.7 · 5 + 0.3 · 15 = 8.
    student = nn.Linear(1, 1, bias=False)
    teacher = MeanTeacher(student, momentum=0.7)
    seen = []
    for value in (2.0, 4.0, 9.0, 15.0):
        nn.init.constant_(student.weight, value)
        teacher.update(student)
        seen.append(teacher.model.weight.item())
    assert seen == pytest.approx([2.0, 3.0, 5.0, 8.0])
    assert teacher.step.item() == 4


@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.6, 0.99, 1.0])
@pytest.mark.parametrize("buffers", ["copy", "average", "keep"])
def test_law(warmup, momentum, buffers):
    student = Net()
    teacher = MeanTeacher(student, momentum=momentum, warmup=warmup, buffers=buffers)
    states = follow(teacher, student, 5)
    momenta = oracle.momenta_by_loops(5, momentum, warmup)
    checked = set()
    for name, tensor in teacher.model.state_dict().items():
        if name in (*INTEGERS, *FLOATS) and buffers == "keep":
            expected = states[0][name].double().flatten().tolist()
        elif name in INTEGERS or (name in FLOATS and buffers == "copy"):
            expected = states[-1][name].double().flatten().tolist()
        else:
            expected = by_loops(states, name, momenta)
        np.testing.assert_allclose(tensor.double().flatten().numpy(), expected, rtol=2e-6, err_msg=name)
        checked.add(name)
    assert checked == set(states[0])
    assert teacher.step.item() == 5


def test_defaults_are_a_warm_up_to_0_999_and_copied_buffers():
    student = nn.Linear(2, 2)
    teacher = MeanTeacher(student)
    momenta = []
    for _ in range(1200):
        momenta.append(teacher.next_momentum)
        teacher.update(student)
    assert momenta == oracle.momenta_by_loops(1200, 0.999, True)
    assert momenta[:2] == [0.0, 0.5]
    assert (teacher.buffer_rule, teacher.train_mode, teacher.sync_buffers) == ("copy", False, False)
    assert repr(teacher).startswith("MeanTeacher(\n  momentum=0.999, warmup=True, buffers='copy'")


def test_float64():
    student = Net().double()
    teacher = MeanTeacher(student, momentum=0.9, buffers="average")
    states = follow(teacher, student, 6)
    for name in ("first.weight", "scale"):
        expected = by_loops(states, name, oracle.momenta_by_loops(6, 0.9, True))
        np.testing.assert_allclose(teacher.model.state_dict()[name].flatten(), expected, rtol=1e-14)
    assert len(teacher.shadow._buffers) == 0


def test_restart_copies_the_student_again():
    student = Net()
    teacher = MeanTeacher(student, momentum=0.9)
    follow(teacher, student, 3)
    teacher.restart()
    assert (teacher.step.item(), teacher.next_momentum) == (0, 0.0)
    follow(teacher, student, 1)
    assert_same(snapshot(teacher.model), snapshot(student))


def test_student_is_not_changed_and_shares_nothing():
    student = Net().train()
    student.norm.eval()  # as frozen BatchNorm is
    student.head.weight.requires_grad_(False)
    before, modes = snapshot(student), [module.training for module in student.modules()]
    state = torch.get_rng_state()
    teacher = MeanTeacher(student, momentum=0.5)
    teacher.update(student)
    teacher(images())
    assert_same(snapshot(student), before)
    assert [module.training for module in student.modules()] == modes
    assert [parameter.requires_grad for parameter in student.parameters()] == [
        name != "head.weight" for name, _ in student.named_parameters()
    ]
    assert torch.equal(torch.get_rng_state(), state)
    own = {tensor.data_ptr() for tensor in (*teacher.parameters(), *teacher.buffers())}
    assert not own & {tensor.data_ptr() for tensor in (*student.parameters(), *student.buffers())}


def test_no_gradient():
    student, batch = Net(), images().requires_grad_()
    teacher = MeanTeacher(student)
    assert not teacher(batch).requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    loss = (student(batch) - teacher(batch)).square().mean()
    loss.backward()
    teacher.update(student)  # a student with gradients
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(parameter.is_leaf for parameter in teacher.parameters())


def test_frozen_parameters_stay_and_need_no_gradient():
    student = Net()
    student.first.requires_grad_(False)
    teacher = MeanTeacher(student, momentum=0.5, warmup=False)
    before = student.first.weight.clone()
    shake(student.head, 1)
    teacher.update(student)
    assert torch.equal(teacher.model.first.weight, before)
    assert not torch.equal(teacher.model.head.weight, student.head.weight)


def test_integer_parameters_are_copied():
    student = nn.Linear(2, 2)
    student.table = nn.Parameter(torch.tensor([1, 2]), requires_grad=False)
    teacher = MeanTeacher(student, momentum=0.9, warmup=False)
    student.table.data.fill_(7)
    teacher.update(student)
    assert teacher.model.table.tolist() == [7, 7]


def test_tied_parameters_are_averaged_once_and_stay_tied():
    student = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    student[1].weight = student[0].weight
    teacher = MeanTeacher(student, momentum=0.5, warmup=False)
    start = teacher.model[0].weight.clone()
    nn.init.constant_(student[0].weight, 2.0)
    teacher.update(student)
    assert teacher.model[0].weight is teacher.model[1].weight
    torch.testing.assert_close(teacher.model[0].weight.data, start / 2 + 1)


def test_parametrized_weights_are_averaged_before_the_parametrization():
    student = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 2, 1))
    teacher = MeanTeacher(student, momentum=0.5, warmup=False)
    parts = [parameter.detach().clone() for parameter in student.parameters()]
    shake(student, 1)
    teacher.update(student)
    for own, before, now in zip(teacher.model.parameters(), parts, student.parameters(), strict=True):
        torch.testing.assert_close(own.data, (before + now.data) / 2)
    assert not torch.equal(teacher(images()), student(images()))


def test_channels_last():
    student = Net().to(memory_format=torch.channels_last)
    teacher = MeanTeacher(student, momentum=0.5, warmup=False)
    assert teacher.model.first.weight.is_contiguous(memory_format=torch.channels_last)
    student.to(memory_format=torch.contiguous_format)
    states = follow(teacher, student, 3)
    expected = by_loops(states, "first.weight", [0.5] * 3)
    np.testing.assert_allclose(teacher.model.first.weight.flatten().detach(), expected, rtol=2e-6)
    batch = images().contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(teacher(batch), teacher(images()))


def test_a_network_without_parameters():
    teacher = MeanTeacher(nn.ReLU())
    teacher.update(nn.ReLU())
    assert teacher.step.item() == 1
    assert teacher(torch.tensor([-1.0, 2.0])).tolist() == [0.0, 2.0]


def test_autocast_changes_nothing_in_the_update():
    student, other = Net(), Net()
    teacher, reference = MeanTeacher(student, momentum=0.9), MeanTeacher(other, momentum=0.9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        follow(teacher, student, 3)
        logits = teacher(images())
        assert logits.dtype == torch.bfloat16
        assert torch.equal(logits, teacher.model(images()))
    follow(reference, other, 3)
    assert_same(snapshot(teacher), snapshot(reference))


def test_momentum_of_a_moving_student_never_overshoots():
    student = nn.Linear(1, 1, bias=False)
    nn.init.constant_(student.weight, 0.0)
    teacher = MeanTeacher(student, momentum=0.9, warmup=False)
    nn.init.constant_(student.weight, 1.0)
    for step in range(1, 50):
        teacher.update(student)
        assert math.isclose(teacher.model.weight.item(), 1 - 0.9**step, rel_tol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net: net.add_module("extra", nn.Linear(1, 1)), "missing: none; added: extra.bias, extra.weight"),
        (lambda net: delattr(net, "head"), "missing: head.bias, head.weight; added: none"),
        (
            lambda net: setattr(net, "head", nn.Conv2d(4, 5, 1)),
            r"expected shape \(3, 4, 1, 1\) for head.weight, got \(5, 4, 1, 1\)",
        ),
        (lambda net: net.register_buffer("more", torch.zeros(1)), "expected the buffers .* added: more"),
        (lambda net: delattr(net, "seen"), "expected the buffers .* missing: seen; added: none"),
        (
            lambda net: setattr(net, "seen", torch.zeros(5, dtype=torch.int64)),
            r"expected shape \(2,\) for seen, got \(5,\)",
        ),
        (
            lambda net: net.add_module("many", nn.ModuleList(nn.Linear(1, 1) for _ in range(4))),
            "added: many.0.bias, many.0.weight, many.1.bias, many.1.weight, many.2.bias and 3 more",
        ),
    ],
)
def test_another_network_is_refused_and_nothing_happens(change, message):
    student = Net()
    teacher = MeanTeacher(student)
    change(student)
    shake(student, 0)
    before = snapshot(teacher)
    with pytest.raises(ValueError, match=f"`student`: .*{message}"):
        teacher.update(student)
    assert_same(snapshot(teacher), before)
    assert teacher.next_momentum == 0.0


@pytest.mark.parametrize("change", [torch.zeros(5), torch.zeros(5, dtype=torch.int64), None])
def test_kept_buffers_need_not_be_the_students(change):
    """Caches of position or relative indices, say, change their shape with the size of the images."""
    student = Net()
    student.register_buffer("cache", torch.ones(2))
    teacher = MeanTeacher(student, buffers="keep")
    del student.cache
    if change is not None:
        student.register_buffer("cache", change)
    student.register_buffer("another", torch.ones(3))
    shake(student, 0)
    teacher.update(student)
    assert torch.equal(teacher.model.first.weight, student.first.weight)
    assert torch.equal(teacher.model.cache, torch.ones(2))
    with pytest.raises(ValueError, match=r"`student`: expected .*(missing|shape)"):
        MeanTeacher(Net()).update(student)


class Recorder(nn.Module):
    """Hooks of its own: a method, which belongs to it."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = Net(), []
        self.net.first.register_forward_hook(self.record)

    def record(self, module, inputs, output):
        self.seen.append(output.detach())

    def forward(self, x):
        return self.net(x)


def test_the_teacher_does_not_store_over_the_students_hooks():
    student, features = Net(), {}
    student.norm.register_forward_hook(lambda *parts: features.update(norm=parts[2]))
    student.head.register_forward_pre_hook(lambda *parts: features.update(head=parts[1]))
    student.head.register_full_backward_hook(lambda *parts: features.update(gradient=parts[2]))
    with pytest.warns(UserWarning, match=r"leaves out 3 hooks of the student.*norm \(<lambda>\), head"):
        teacher = MeanTeacher(student)
    shake(student, 0)
    student(images())
    before = dict(features)
    teacher(images(1))
    assert before.keys() == {"norm", "head"} == features.keys()
    assert all(features[name] is value for name, value in before.items())


def test_hooks_that_are_part_of_the_network_are_copied(recwarn):
    student = Recorder()
    teacher = MeanTeacher(student)
    teacher(images())
    assert (len(student.seen), len(teacher.model.seen)) == (0, 1)
    for wrap in (
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        lambda m: prune.l1_unstructured(m, "weight", 2),
    ):
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # weight_norm is an old way
            student = nn.Sequential(wrap(nn.Conv2d(3, 2, 1))).eval()
        teacher = MeanTeacher(student)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.mul_(1.5)
        teacher.update(student)
        assert torch.equal(teacher(images()), student(images()))
    assert not recwarn.list


def test_a_forward_that_would_be_shared_is_refused():
    student = nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1)), nn.Conv2d(3, 2, 1))
    with drop_blocks(student[:1], chance=1.0), pytest.raises(ValueError, match=r"`student`: .*got 0 with a replaced"):
        MeanTeacher(student)
    original = student[1].forward
    student[1].forward = lambda x: 2 * original(x)  # would call the student's layer for ever
    with pytest.raises(ValueError, match=r"`student`: .*got 1 with a replaced one"):
        MeanTeacher(student)
    student[1].forward = types.MethodType(lambda self, x: 2 * original(x), student[1])
    with pytest.raises(ValueError, match=r"`student`: .*got 1 with a replaced one"):
        MeanTeacher(student)
    student[1].forward = types.MethodType(lambda self, x: 2 * nn.Conv2d.forward(self, x), student[1])
    teacher = MeanTeacher(student)
    expected = student(images())
    with torch.no_grad():
        student[1].weight.zero_()
    assert torch.equal(teacher(images()), expected)


@pytest.mark.parametrize(
    ("student", "keywords", "error", "message"),
    [
        (lambda x: x, {}, TypeError, "`student`: expected a torch.nn.Module, got function"),
        (Net(), {"momentum": "0.9"}, TypeError, "`momentum`: expected a number, got str"),
        (Net(), {"momentum": -0.1}, ValueError, r"`momentum`: expected a value in \[0.0, 1.0\], got -0.1"),
        (Net(), {"momentum": 1.1}, ValueError, r"`momentum`: expected a value in \[0.0, 1.0\], got 1.1"),
        (Net(), {"momentum": float("nan")}, ValueError, "`momentum`: expected a value"),
        (Net(), {"buffers": "copies"}, ValueError, "`buffers`: expected one of 'copy', 'average', 'keep'"),
        (nn.LazyLinear(2), {}, ValueError, "`student`: expected initialised parameters; run the student once first"),
    ],
)
def test_raises(student, keywords, error, message):
    with pytest.raises(error, match=message):
        MeanTeacher(student, **keywords)


def test_a_student_that_cannot_be_copied():
    student = Net()
    student.cached = student(images())  # not a leaf of the graph: no deep copy
    with pytest.raises(ValueError, match=r"`student`: expected a network that can be deep-copied .*: Only Tensors"):
        MeanTeacher(student)


def test_update_takes_only_modules():
    with pytest.raises(TypeError, match=r"`student`: expected a torch.nn.Module, got dict"):
        MeanTeacher(Net()).update(dict(Net().state_dict()))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("buffers", ["copy", "average", "keep"])
def test_no_host_synchronisation(dtype, buffers):
    student = Net().to("cuda", dtype)
    teacher = MeanTeacher(student, momentum=0.9, buffers=buffers)
    teacher.update(student)
    with never_waits():
        for _ in range(3):
            teacher.update(student)
    assert teacher.step.item() == 4


@pytest.mark.gpu
@pytest.mark.parametrize("homes", [("cpu", "cuda"), ("cuda", "cpu")])
def test_teacher_and_student_on_different_devices(homes):
    student, reference = nn.Linear(2000, 2000), nn.Linear(2000, 2000)
    reference.load_state_dict(student.state_dict())
    teacher, expected = MeanTeacher(student, momentum=0.9).to(homes[0]), MeanTeacher(reference, momentum=0.9)
    student.to(homes[1])
    for step in range(4):
        nn.init.constant_(student.weight, float(step))
        nn.init.constant_(reference.weight, float(step))
        teacher.update(student)
        expected.update(reference)
    assert teacher.model.weight.device.type == homes[0]
    torch.testing.assert_close(teacher.model.weight.cpu(), expected.model.weight)
