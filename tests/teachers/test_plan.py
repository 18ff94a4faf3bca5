"""What an update remembers: it is used while nothing changes, and nothing that changes is missed."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.nn.parallel import DataParallel

from selftrain_seg.teachers import DualTeacher, DynamicTeacher, MeanTeacher, _weights
from tests.teachers.nets import Net, assert_same, images, shake, snapshot


@pytest.fixture
def searches(monkeypatch):
    """The networks whose tensors were looked up by name, one entry for each time."""
    found, real = [], _weights.by_name
    monkeypatch.setattr(_weights, "by_name", lambda network: found.append(network) or real(network))
    return found


def other_memory(net):
    net.first.weight.data = net.first.weight.data.clone()


def swapped(net):
    net.first.bias, net.norm.bias = net.norm.bias, net.first.bias


def another_module(net):
    net.head = nn.Conv2d(4, 3, 1)


def another_parameter(net):
    net.norm.weight = nn.Parameter(torch.rand(4))


def another_buffer(net):
    net.scale = torch.tensor(3.0)


def wrapped_inside(net):
    net.first = torch.compile(net.first, backend="eager")


def tied(net):
    net.norm.bias = net.norm.weight


def untied(net):
    net.norm.bias = nn.Parameter(torch.rand(4))


def loaded(net):
    net.load_state_dict(Net(7).state_dict())


def assigned(net):
    net.load_state_dict({name: value.clone() for name, value in Net(8).state_dict().items()}, assign=True)


def frozen(net):
    net.first.requires_grad_(False)


def there_and_back(net):
    net.double().half().float()


def tensors_swapped(net):
    torch.utils.swap_tensors(net.first.weight, nn.Parameter(torch.rand(4, 3, 3, 3)))


CHANGES = {
    "nothing": lambda net: None,
    "other memory": other_memory,
    "swapped": swapped,
    "another module": another_module,
    "another parameter": another_parameter,
    "another buffer": another_buffer,
    "wrapped inside": wrapped_inside,
    "loaded": loaded,
    "assigned": assigned,
    "frozen": frozen,
    "double": nn.Module.double,
    "half": nn.Module.half,
    "one layer in half": lambda net: net.head.bfloat16(),
    "there and back": there_and_back,
    "tensors swapped": tensors_swapped,
    "channels_last": lambda net: net.to(memory_format=torch.channels_last),
}


def forgetful(teacher):
    """The same teacher, that plans each update anew."""
    teacher._plan.keep = lambda *_: None
    return teacher


@pytest.mark.parametrize("buffers", ["copy", "average", "keep"])
@pytest.mark.parametrize("whose", ["student", "teacher"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(change, whose, buffers):
    if whose == "teacher" and change in ("half", "one layer in half"):
        pytest.skip("weights of a teacher are cast by the teacher, which makes float32 copies")
    results = []
    for kind in (forgetful, lambda teacher: teacher):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            student = Net()
            teacher = kind(MeanTeacher(student, momentum=0.9, buffers=buffers))
            for step in range(6):
                shake(student, step)
                teacher.update(student)
                if step == 2:
                    CHANGES[change](student if whose == "student" else teacher.model)
        results.append(snapshot(teacher))
    assert_same(*results)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_cast_of_the_teacher_is_noticed(dtype):
    results = []
    for kind in (forgetful, lambda teacher: teacher):
        student = Net()
        teacher = kind(MeanTeacher(student, momentum=0.9))
        for step in range(6):
            shake(student, step)
            teacher.update(student)
            if step == 2:
                teacher.to(dtype)
        results.append(snapshot(teacher))
    assert_same(*results)
    assert results[0]["model.first.weight"].dtype == dtype


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (tied, "missing: norm.bias"),
        (lambda net: net.add_module("extra", nn.Linear(1, 1)), "added: extra.bias, extra.weight"),
        (lambda net: net.dropout.register_parameter("more", nn.Parameter(torch.zeros(1))), "added: dropout.more"),
        (lambda net: net.dropout.register_buffer("more", torch.zeros(1)), "added: dropout.more"),
        (lambda net: delattr(net, "head"), "missing: head.bias, head.weight"),
        (lambda net: setattr(net.norm, "bias", None), "missing: norm.bias"),
        (lambda net: setattr(net, "head", nn.Conv2d(4, 5, 1)), "expected shape"),
        (lambda net: setattr(net.head.weight, "data", torch.zeros(5, 4, 1, 1)), "expected shape"),
        (lambda net: setattr(net, "seen", torch.zeros(5, dtype=torch.int64)), "expected shape"),
    ],
)
def test_another_network_is_refused_as_ever(change, message):
    student = Net()
    teacher = MeanTeacher(student, momentum=0.9)
    for step in range(3):
        shake(student, step)
        teacher.update(student)
    change(student)
    before = snapshot(teacher)
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            teacher.update(student)
    assert_same(snapshot(teacher), before)


def test_nothing_is_searched_while_nothing_changes(searches):
    student = Net()
    teacher = MeanTeacher(DataParallel(student))
    del searches[:]
    for net in (student, DataParallel(student), torch.compile(student, backend="eager"), student):
        for _ in range(3):
            shake(student, 1)
            teacher.update(net)
            teacher(images())
    assert searches == [teacher.model, student]
    student.requires_grad_(False)
    teacher.load_state_dict(copy.deepcopy(teacher.state_dict()))
    student.load_state_dict(Net(3).state_dict())
    teacher.update(student)
    teacher.restart()
    teacher.update(student)
    assert len(searches) == 2
    assert_same(snapshot(teacher.model), snapshot(student))


@pytest.mark.parametrize("kind", ["dual", "dynamic"])
def test_other_teachers_search_once_too(kind, searches):
    student = Net()
    if kind == "dual":
        teacher = DualTeacher(student)
        for step in range(6):
            teacher.update(student)
            if step % 2:
                teacher.switch()
        assert len(searches) == 2 * (2 + 1)  # when the two are made, too, and before each one's first update
    else:
        teacher = DynamicTeacher(student, score="entropy", first=1, every=1, most=1)
        updates = 0
        for step in range(6):
            teacher.observe(images(step), student)
            updates += teacher.update(student)
        assert updates == 3
        assert len(searches) == 1 + 2


def test_two_students_in_turn():
    students, teacher = (Net(1), Net(2)), MeanTeacher(Net(), momentum=0.5, warmup=False)
    reference = forgetful(copy.deepcopy(teacher))
    for step in range(6):
        shake(students[step % 2], step)
        teacher.update(students[step % 2])
        reference.update(students[step % 2])
    assert_same(snapshot(teacher), snapshot(reference))


def test_the_rule_of_buffers_may_change():
    student = Net()
    teacher = MeanTeacher(student, buffers="keep")
    teacher.update(student)
    shake(student, 1)
    teacher.buffer_rule = "copy"
    teacher.update(student)
    assert torch.equal(teacher.model.norm.running_mean, student.norm.running_mean)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda teacher: pickle.loads(pickle.dumps(teacher))])  # noqa: S301
def test_copies_go_their_own_ways(copied):
    student = Net()
    teacher = MeanTeacher(student, momentum=0.5, warmup=False)
    teacher.update(student)
    twin, before = copied(teacher), snapshot(teacher)
    shake(student, 1)
    twin.update(student)
    assert_same(snapshot(teacher), before)
    teacher.update(student)
    assert_same(snapshot(teacher), snapshot(twin))


def test_a_checkpoint_holds_no_student():
    student = Net()
    teacher = MeanTeacher(student)
    sizes = []
    for _ in range(2):
        file = io.BytesIO()
        torch.save(teacher, file)
        sizes.append(file.tell())
        teacher.update(student)
    assert sizes[0] == sizes[1]


def test_a_student_that_is_given_up_is_freed():
    student = Net()
    teacher = MeanTeacher(student)
    teacher.update(student)
    parts = [weakref.ref(student.first), weakref.ref(student.first.weight)]
    del student
    gc.collect()
    assert [part() for part in parts] == [None, None]
    teacher.update(Net())
