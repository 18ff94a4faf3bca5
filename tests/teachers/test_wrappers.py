"""Students and teachers inside DataParallel, DistributedDataParallel, torch.compile and other modules; copies."""

import copy
import io
import pickle

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from selftrain_seg.teachers import (
    DualTeacher,
    DynamicTeacher,
    MeanTeacher,
    drop_blocks,
    mutual_labels,
    parameter_distance,
)
from selftrain_seg.types import PseudoLabels
from tests.teachers.nets import Net, assert_same, images, shake, snapshot

TEACHERS = {
    "mean": lambda student: MeanTeacher(student, momentum=0.9),
    "mean, half": lambda student: MeanTeacher(student, momentum=0.9).bfloat16(),
    "dual": DualTeacher,
    "dynamic": lambda student: DynamicTeacher(student, score="entropy", first=2, every=1, most=4),
}


def compiled(module):
    return torch.compile(module, backend="eager")


def inner_compiled(net):
    net.first = compiled(net.first)
    return net


WRAPPERS = {
    "plain": lambda net: net,
    "DataParallel": DataParallel,
    "DDP": DistributedDataParallel,
    "compile": compiled,
    "compile(DDP)": lambda net: compiled(DistributedDataParallel(net)),
    "DDP(compile)": lambda net: DistributedDataParallel(compiled(net)),
    "inner compile": inner_compiled,
    "DDP(inner compile)": lambda net: DistributedDataParallel(inner_compiled(net)),
}


@pytest.fixture(scope="module", autouse=True)
def one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def advance(teacher, student, steps):
    for step in range(steps):
        shake(student, step)
        if isinstance(teacher, DynamicTeacher):
            teacher.observe(images(step), student)
            shake(student, 100 + step)
        teacher.update(student)
        if isinstance(teacher, DualTeacher) and step % 3 == 2:
            teacher.switch()


@pytest.mark.parametrize("later", WRAPPERS)
@pytest.mark.parametrize("early", WRAPPERS)
def test_wrapped_students(early, later):
    """Made from a student wrapped in one way, updated with one wrapped in another."""
    reference_student = Net()
    reference = MeanTeacher(reference_student, momentum=0.9, buffers="average")
    teacher = MeanTeacher(WRAPPERS[early](Net()), momentum=0.9, buffers="average")
    student = Net()
    wrapped = WRAPPERS[later](student)
    for step in range(3):
        shake(student, step)
        shake(reference_student, step)
        teacher.update(wrapped)
        reference.update(reference_student)
    own = {name.replace("_orig_mod.", ""): value for name, value in snapshot(teacher).items()}
    assert_same(own, snapshot(reference))
    torch.testing.assert_close(teacher(images()), reference(images()))
    assert parameter_distance(teacher.model, wrapped) == parameter_distance(reference.model, student) > 0


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_wrapped_students_elsewhere(wrap):
    student, plain = WRAPPERS[wrap](Net()), Net()
    teacher, reference = (DynamicTeacher(net, first=1, every=1, most=2) for net in (student, plain))
    for step in range(4):
        teacher.observe(images(step), student)
        reference.observe(images(step), plain)
        assert teacher.update(student) == reference.update(plain)
    labels = mutual_labels(student, Net(1), images(), lambda z: PseudoLabels(*z.max(1)[::-1]))
    expected = mutual_labels(plain, Net(1), images(), lambda z: PseudoLabels(*z.max(1)[::-1]))
    assert torch.equal(labels.for_second.labels, expected.for_second.labels)


# How a checkpoint's keys may be prefixed: what the teacher was in when it was saved.
AROUND = {
    "plain": lambda teacher: teacher,
    "DataParallel": DataParallel,
    "compile": compiled,
    "compile(DataParallel)": lambda teacher: compiled(DataParallel(teacher)),
    "DataParallel(compile)": lambda teacher: DataParallel(compiled(teacher)),
}


@pytest.mark.parametrize("kind", TEACHERS)
@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("inner", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("in_parent", [False, True])
def test_checkpoints_load_across_wrappers(kind, around, inner, in_parent):
    students = [inner_compiled(Net(seed)) if inside else Net(seed) for seed, inside in enumerate(inner)]
    saved, loaded = (TEACHERS[kind](student) for student in students)
    advance(saved, students[0], 5)
    source, target = AROUND[around](saved), loaded
    if in_parent:
        source, target = nn.ModuleDict({"teacher": source}), nn.ModuleDict({"teacher": target})
    state = source.state_dict()
    before = dict(state)
    target.load_state_dict(state)
    assert state.keys() == before.keys()  # the caller's dictionary is not changed
    assert_same(*({k.replace("_orig_mod.", ""): v for k, v in snapshot(t).items()} for t in (saved, loaded)))
    for seed, teacher in enumerate((saved, loaded)):  # and they go on alike
        advance(teacher, students[seed], 4)
    assert_same(*({k.replace("_orig_mod.", ""): v for k, v in snapshot(t).items()} for t in (saved, loaded)))


@pytest.mark.parametrize("kind", TEACHERS)
def test_what_is_missing_or_left_over_is_still_reported(kind):
    teacher = TEACHERS[kind](Net())
    state = teacher.state_dict()
    key = next(key for key in state if key.endswith("first.weight"))
    del state[key]
    state["module.other.weight"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=r"(?s)Missing.*first.weight.*Unexpected.*module.other.weight"):
        teacher.load_state_dict(state)
    missing, unexpected = teacher.load_state_dict(state, strict=False)
    assert key in missing
    assert unexpected == ["module.other.weight"]


def test_a_submodule_called_module_is_not_confused():
    class Inner(nn.Module):
        def __init__(self, seed):
            super().__init__()
            self.weight = nn.Parameter(torch.full((1,), float(seed)))
            self.module = nn.Linear(1, 1, bias=False)
            nn.init.constant_(self.module.weight, seed + 0.5)

    saved = MeanTeacher(Inner(1))
    for around in AROUND.values():
        loaded = MeanTeacher(Inner(2))
        loaded.load_state_dict(around(saved).state_dict())
        assert_same(snapshot(loaded), snapshot(saved))
    student = Inner(3)
    saved.update(student)
    assert [parameter.item() for parameter in saved.parameters()] == [3.0, 3.5]


@pytest.mark.parametrize("kind", TEACHERS)
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_independent_and_go_on_alike(kind, how):
    student = Net()
    teacher = TEACHERS[kind](student)
    advance(teacher, student, 4)
    if how == "deepcopy":
        other = copy.deepcopy(teacher)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(teacher))  # noqa: S301
    else:
        file = io.BytesIO()
        torch.save(teacher, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    before = snapshot(teacher)
    advance(other, student, 5)
    assert_same(snapshot(teacher), before)
    advance(teacher, student, 5)
    assert_same(snapshot(teacher), snapshot(other))
    assert not modes(other) & {True}
    other.load_state_dict({"module." + key: value for key, value in teacher.state_dict().items()})


def modes(teacher):
    inner = teacher.teachers if isinstance(teacher, DualTeacher) else [getattr(teacher, "teacher", teacher)]
    return {module.training for one in inner for module in one.model.modules()}


@pytest.mark.parametrize("kind", TEACHERS)
def test_the_forward_pass_compiles(kind):
    student = Net()
    teacher = TEACHERS[kind](student)
    advance(teacher, student, 2)
    batch = images().to(next(teacher.parameters()).dtype)
    fast = torch.compile(teacher, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(fast(batch), teacher(batch))
    assert not fast(batch).requires_grad
    advance(teacher, student, 1)  # the compiled pass sees the update
    torch.testing.assert_close(fast(batch), teacher(batch))


def test_dropped_blocks_inside_compiled_networks():
    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.second(self.first(x))

    net, x = Chain(), torch.rand(2, 4)
    fast = torch.compile(net, backend="eager", fullgraph=True)
    full = fast(x)
    with drop_blocks([net.second], chance=1.0):
        assert torch.equal(fast(x), net.first(x))
    assert torch.equal(fast(x), full)
    with (
        pytest.raises(ValueError, match=r"`blocks\[0\]`: expected a block that is neither compiled nor skipped"),
        drop_blocks([compiled(net.second)]),
    ):
        pass
