import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from selftrain_seg import value_checks
from selftrain_seg.teachers import AgreementStatistics, MeanTeacher, parameter_distance
from tests.helpers import layouts, never_waits, random_logits
from tests.oracles import teachers as oracle
from tests.teachers.nets import Net, assert_same, shake, snapshot


def test_distance_by_hand():
    student, teacher = nn.Linear(2, 1), nn.Linear(2, 1)
    for net, values in ((student, (3.0, 0.0, 4.0)), (teacher, (3.0, 1.5, 2.0))):
        net.weight.data, net.bias.data = torch.tensor([values[:2]]), torch.tensor(values[2:])
    distance = parameter_distance(teacher, student)  # √(1.5² + 2²) / √(3² + 4²) = 2.5 / 5
    assert distance.item() == pytest.approx(0.5)
    assert distance.dtype == torch.float64
    assert distance.shape == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("count", [1, 12])
def test_distance_by_loops(dtype, count):
    student = nn.ModuleList(Net(seed) for seed in range(count))
    teacher = copy.deepcopy(student)
    shake(student, 0)
    shake(teacher, 1)
    student.to(dtype)
    far = near = 0.0
    for one, two in zip(teacher.parameters(), student.parameters(), strict=True):
        for a, b in zip(one.flatten().tolist(), two.flatten().tolist(), strict=True):
            far += (a - b) ** 2
            near += b * b
    assert parameter_distance(teacher, student).item() == pytest.approx(math.sqrt(far / near), rel=1e-5)
    assert not parameter_distance(teacher, student).requires_grad


def test_distance_edges():
    student = Net()
    assert parameter_distance(MeanTeacher(student).model, student).item() == 0.0
    assert parameter_distance(nn.ReLU(), nn.ReLU()).item() == 0.0
    zero = nn.Linear(2, 2)
    nn.init.zeros_(zero.weight)
    nn.init.zeros_(zero.bias)
    assert parameter_distance(zero, zero).item() == 0.0
    assert parameter_distance(nn.Linear(2, 2), zero).item() == math.inf
    counted = nn.Linear(2, 2)
    counted.table = nn.Parameter(torch.tensor([5]), requires_grad=False)
    other = copy.deepcopy(counted)
    other.table.data.fill_(7)
    assert parameter_distance(other, counted).item() == 0.0  # integers are no weights
    broken = copy.deepcopy(student)
    broken.head.bias.data[0] = math.nan
    assert math.isnan(parameter_distance(broken, student).item())  # it said 0: the same network
    assert math.isnan(parameter_distance(student, broken).item())
    before = snapshot(student)
    parameter_distance(student, student)
    assert_same(snapshot(student), before)


def test_distance_raises():
    with pytest.raises(TypeError, match=r"`teacher`: expected a torch.nn.Module, got NoneType"):
        parameter_distance(None, Net())
    with pytest.raises(TypeError, match=r"`student`: expected a torch.nn.Module, got dict"):
        parameter_distance(Net(), {})
    with pytest.raises(ValueError, match=r"`student`: .*missing: first.bias.*added: bias, weight"):
        parameter_distance(Net(), nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"`student`: expected shape \(1, 2\) for weight, got \(1, 3\)"):
        parameter_distance(nn.Linear(2, 1), nn.Linear(3, 1))


def check(statistics, pairs, classes):
    teacher, student = (
        [pixel for pair in pairs for pixel in pair[side].double().permute(0, 2, 3, 1).flatten(0, 2).tolist()]
        for side in (0, 1)
    )
    share, per_class, gap = oracle.agreement_by_loops(teacher, student, classes)
    result = statistics.compute()
    assert {value.dtype for value in result} == {torch.float64}
    np.testing.assert_allclose(result.share, share, rtol=1e-12)
    np.testing.assert_allclose(result.per_class, per_class, rtol=1e-12)
    np.testing.assert_allclose(result.confidence_gap, gap, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_agreement_by_loops(layout, dtype):
    statistics, pairs = AgreementStatistics(6), []
    for seed in range(3):
        teacher = random_logits(2, 6, 5, 7, seed=seed)
        student = teacher + random_logits(2, 6, 5, 7, seed=10 + seed, scale=2.0)
        teacher[:, 5] = student[:, 5] = -30.0  # a class that neither names
        student[:, 4] = -30.0  # and one that the student never does
        teacher[0, 2, seed, 3] = student[1, 0, 2, seed] = math.nan
        pairs.append((teacher.to(dtype), student.to(dtype)))
        before = [tensor.clone() for tensor in pairs[-1]]
        statistics.update(*(layouts(tensor)[layout] for tensor in pairs[-1]))
        torch.testing.assert_close(list(pairs[-1]), before, equal_nan=True, rtol=0, atol=0)
    check(statistics, pairs, 6)
    assert statistics.teacher.sum().item() == statistics.student.sum().item() == 3 * (70 - 2)
    assert statistics.compute().per_class[5].isnan()
    assert statistics.compute().per_class[4].item() == 0.0
    assert statistics.compute().confidence_gap != 0


def test_agreement_with_oneself_without_pixels_and_after_reset():
    statistics = AgreementStatistics(3)
    empty = statistics.compute()
    assert empty.share.isnan()
    assert empty.confidence_gap.isnan()
    assert empty.per_class.isnan().all()
    logits = torch.full((1, 3, 2, 2), math.nan)
    statistics.update(logits, logits)
    statistics.update(random_logits(0, 3, 4, 4), random_logits(0, 3, 4, 4))
    assert statistics.compute().share.isnan()
    logits = random_logits(2, 3, 4, 4).requires_grad_()
    statistics.update(logits, logits)
    assert (statistics.compute().share.item(), statistics.compute().confidence_gap.item()) == (1.0, 0.0)
    statistics.reset()
    assert_same(snapshot(statistics), snapshot(AgreementStatistics(3)))


def test_agreement_takes_negative_logits_while_values_are_checked():
    logits = -random_logits(1, 3, 4, 4).abs()
    with value_checks():
        statistics = AgreementStatistics(3)
        statistics.update(logits, logits)
    assert statistics.compute().share.item() == 1.0


def test_agreement_state():
    statistics, pairs = AgreementStatistics(4), []
    for seed in range(4):
        pairs.append((random_logits(1, 4, 6, 6, seed=seed), random_logits(1, 4, 6, 6, seed=20 + seed)))
        statistics.update(*pairs[-1])
        if seed == 1:
            resumed = AgreementStatistics(4)
            resumed.load_state_dict(statistics.state_dict())
            resumed.half()  # as part of a module that is cast: counts stay counts
            statistics = resumed
    check(statistics, pairs, 4)
    assert {tensor.dtype for tensor in statistics.state_dict().values()} == {torch.int64}
    assert {statistics.both.dtype, statistics.teacher.dtype, statistics.student.dtype, statistics.gap.dtype} == {
        torch.int64
    }


@pytest.mark.parametrize(
    ("teacher", "student", "error", "message"),
    [
        (None, torch.zeros(1, 3, 2, 2), TypeError, "`teacher_logits`: expected a torch.Tensor, got NoneType"),
        (torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2).int(), TypeError, "`student_logits`: expected a floating"),
        (torch.zeros(3, 2, 2), torch.zeros(3, 2, 2), ValueError, r"`teacher_logits`: expected \(B, C, H, W\)"),
        (torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2), ValueError, "`teacher_logits`: expected 3 classes"),
        (torch.zeros(1, 3, 2, 2), torch.zeros(1, 4, 2, 2), ValueError, "`student_logits`: expected 3 classes"),
        (
            torch.zeros(2, 3, 2, 2),
            torch.zeros(1, 3, 2, 2),
            ValueError,
            r"`student_logits`: expected \(2, 3, 2, 2\), got \(1, 3, 2, 2\)",
        ),
        (
            torch.zeros(1, 3, 2, 2),
            torch.zeros(1, 3, 2, 2, device="meta"),
            ValueError,
            "`student_logits`: expected device cpu, got meta",
        ),
    ],
)
def test_agreement_update_raises(teacher, student, error, message):
    with pytest.raises(error, match=message):
        AgreementStatistics(3).update(teacher, student)


@pytest.mark.parametrize(("classes", "error"), [(0, ValueError), (2.0, TypeError), (True, TypeError)])
def test_agreement_raises(classes, error):
    with pytest.raises(error, match="`num_classes`: expected"):
        AgreementStatistics(classes)


@pytest.mark.gpu
def test_agreement_on_the_gpu():
    teacher, student = random_logits(2, 4, 6, 6).cuda(), random_logits(2, 4, 6, 6, seed=1).cuda()
    statistics, nets = AgreementStatistics(4).cuda(), (Net().cuda(), Net(1).cuda())
    with never_waits():
        statistics.update(teacher, student)
        distance = parameter_distance(*nets)
    check(statistics.cpu(), [(teacher.cpu(), student.cpu())], 4)
    assert distance.item() == pytest.approx(parameter_distance(Net(), Net(1)).item(), rel=1e-5)
