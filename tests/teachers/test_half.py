"""Half precision: the float32 copies that move where half-precision weights would stand still."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from selftrain_seg.teachers import MeanTeacher
from tests.oracles import teachers as oracle
from tests.teachers.nets import Net, assert_same, images, shake, snapshot

HALF = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("buffers", ["copy", "average", "keep"])
def test_law_with_float32_copies(dtype, buffers):
    student = Net().to(dtype)
    teacher = MeanTeacher(student, momentum=0.9, buffers=buffers)
    states = [snapshot(student)]
    for step in range(6):
        shake(student, step)
        states.append(snapshot(student))
        teacher.update(student)
    momenta = oracle.momenta_by_loops(6, 0.9, True)
    averaged = {name for name, _ in student.named_parameters()}
    averaged |= {"norm.running_mean", "norm.running_var", "scale"} if buffers == "average" else set()
    assert {name.replace("/", ".") for name in teacher.shadow.state_dict()} == averaged
    for name in averaged:
        start, *rest = [state[name].double().flatten().tolist() for state in states]
        expected = oracle.averages_by_loops(start, rest, momenta)
        shadow = teacher.shadow[name]
        assert shadow.dtype == torch.float32
        np.testing.assert_allclose(shadow.flatten().numpy(), expected, rtol=2e-6, err_msg=name)
        own = teacher.model.state_dict()[name]
        assert own.dtype == dtype
        assert torch.equal(own, shadow.to(dtype))


@pytest.mark.parametrize("dtype", HALF)
def test_it_moves_at_0_999(dtype):
    student = nn.Linear(1, 1, bias=False).to(dtype)
    nn.init.constant_(student.weight, 1.0)
    teacher = MeanTeacher(student, momentum=0.999, warmup=False)
    nn.init.constant_(student.weight, 1.25)
    alone = torch.ones((), dtype=dtype)  # what averaging in half precision would give
    for _ in range(2000):
        teacher.update(student)
        alone = 0.999 * alone + 0.001 * student.weight.detach().squeeze()
    expected = 1.25 - 0.25 * 0.999**2000
    assert abs(teacher.model.weight.item() - expected) < 5e-3
    assert abs(alone.item() - expected) > 0.1
    assert teacher.model.weight.dtype == dtype


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("buffers", ["copy", "average"])
def test_casts_after_construction_lose_nothing(dtype, buffers):
    student = Net()
    shake(student, 0)
    teacher = MeanTeacher(student, momentum=0.9, warmup=False, buffers=buffers)
    reference = copy.deepcopy(teacher)
    before = snapshot(teacher.model)
    teacher.to(dtype)
    assert teacher.model.first.weight.dtype == dtype
    assert {tensor.dtype for tensor in teacher.shadow.buffers()} == {torch.float32}
    assert ("scale" in teacher.shadow) == (buffers == "average")
    shake(student, 1)
    teacher.update(student)
    reference.update(student)
    for name, tensor in reference.model.named_parameters():
        assert torch.equal(teacher.shadow[name], tensor)
    assert teacher(images().to(dtype)).dtype == dtype
    teacher.float()
    assert len(teacher.shadow._buffers) == 0
    for name, tensor in reference.model.named_parameters():
        assert torch.equal(teacher.model.get_parameter(name), tensor), name
    if buffers == "average":
        assert_same(snapshot(teacher), snapshot(reference))
    assert not torch.equal(teacher.model.first.weight, before["first.weight"])


def test_copies_keep_their_values_and_dtype_under_further_casts():
    student = Net()
    shake(student, 3)
    teacher = MeanTeacher(student).bfloat16()
    for cast in (torch.nn.Module.half, torch.nn.Module.bfloat16, torch.nn.Module.half):
        cast(teacher)
        for name, tensor in student.named_parameters():
            assert torch.equal(teacher.shadow[name], tensor)
    teacher.double()
    for name, tensor in student.named_parameters():
        assert torch.equal(teacher.model.get_parameter(name), tensor.double())


def test_half_precision_student_and_full_precision_teacher_and_the_other_way_round():
    for student_type, teacher_type in ((torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)):
        student = nn.Linear(2, 2).to(student_type)
        teacher = MeanTeacher(student, momentum=0.5, warmup=False).to(teacher_type)
        start = student.weight.detach().clone().float()
        nn.init.constant_(student.weight, 2.0)
        teacher.update(student)
        weight = teacher.shadow["weight"] if teacher_type == torch.bfloat16 else teacher.model.weight.data
        torch.testing.assert_close(weight, start / 2 + 1)
        assert teacher.model.weight.dtype == teacher_type


@pytest.mark.parametrize("assign", [False, True])
def test_checkpoints_in_another_precision(assign):
    student = Net()
    full, half = MeanTeacher(student, momentum=0.9), MeanTeacher(student, momentum=0.9).bfloat16()
    for step in range(3):
        shake(student, step)
        full.update(student)
        half.update(student)
    into_half = MeanTeacher(Net(1), momentum=0.9).bfloat16()
    into_half.load_state_dict(copy.deepcopy(full.state_dict()), assign=assign)
    into_full = MeanTeacher(Net(1), momentum=0.9)
    into_full.load_state_dict(copy.deepcopy(half.state_dict()), assign=assign)
    shake(student, 9)
    for teacher in (full, into_half, into_full):
        teacher.update(student)
    for name, tensor in full.model.named_parameters():
        assert torch.equal(into_half.shadow[name], tensor), name
        assert torch.equal(into_full.model.get_parameter(name), tensor), name
        assert into_full.model.get_parameter(name).dtype == torch.float32


def test_many_tensors_are_converted_a_few_at_a_time():
    student = nn.ModuleList(nn.Linear(1, 1) for _ in range(20)).bfloat16()
    teacher = MeanTeacher(student, momentum=0.5, warmup=False)
    start = [parameter.detach().float() for parameter in student.parameters()]
    shake(student, 0)
    teacher.update(student)
    shadows = list(teacher.shadow.buffers())
    assert len(shadows) == 40
    for shadow, before, now in zip(shadows, start, student.parameters(), strict=True):
        torch.testing.assert_close(shadow, (before + now.detach().float()) / 2)
