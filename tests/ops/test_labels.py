import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selftrain_seg.ops import labels as ops
from selftrain_seg.ops.labels import find_pixels, label_sums
from tests.helpers import never_waits
from tests.oracles.labels import find_by_loops, sums_by_loops

WIDE = [torch.int16, torch.int32, torch.int64]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_labels(shape=(3, 8, 16), high=6, dtype=torch.int64, seed=0):
    return torch.randint(0, high, shape, generator=generator(seed)).to(dtype)


def assert_found(found, labels, ranked, number):
    expected = find_by_loops(labels.numpy(), ranked.tolist(), number.tolist())
    assert found.row.dtype == found.column.dtype == torch.int64
    assert found.found.tolist() == [place is not None for place in expected]
    for row, column, place in zip(found.row.tolist(), found.column.tolist(), expected, strict=True):
        assert place in (None, (row, column))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_find_by_loops(data):
    batch, height, width = (data.draw(st.integers(low, high)) for low, high in ((0, 4), (1, 9), (1, 17)))
    columns = data.draw(st.sampled_from([0, 1, 2, 5, 15, 16, 30, 255, 256]))
    dtype = data.draw(st.sampled_from([torch.uint8, torch.int8, *WIDE]))
    seed = data.draw(st.integers(0, 10**6))
    labels = random_labels((batch, height, width), data.draw(st.sampled_from([1, 4, 120])), dtype, seed)
    if dtype != torch.uint8 and data.draw(st.booleans()):
        labels[torch.rand(labels.shape, generator=generator(seed)) < 0.3] = -2
    if data.draw(st.booleans()):
        labels = labels.transpose(1, 2).contiguous().transpose(1, 2)
    ranked = torch.rand(batch, columns + 6, generator=generator(seed + 1)).argsort(1)[:, :columns] - 3
    number = torch.randint(0, 2**62, (batch,), generator=generator(seed + 2))
    copies = [tensor.clone() for tensor in (labels, ranked, number)]
    for find in (find_pixels, ops._find_anywhere):  # the second is what a GPU runs
        assert_found(find(labels, ranked, number), labels, ranked, number)
    assert all(map(torch.equal, copies, (labels, ranked, number)))


def test_found_by_hand():
    labels = torch.tensor([[[0, 1, 0], [2, 1, 0]]]).expand(4, -1, -1)
    number = torch.tensor([0, 1, 2, 4])  # of the two pixels of class 1, of four of class 0: (0, 0), (0, 2), (1, 2)
    found = find_pixels(labels, torch.tensor([[0, 1, 7]]).expand(4, -1), number)
    assert (found.row.tolist(), found.column.tolist()) == ([0, 1, 0, 0], [1, 1, 1, 1])
    found = find_pixels(labels, torch.tensor([[1, 0, 9]]).expand(4, -1), number)
    assert (found.row.tolist(), found.column.tolist()) == ([0, 0, 1, 0], [0, 2, 2, 2])
    assert find_pixels(labels, torch.tensor([[7, 9]]).expand(4, -1), number).found.tolist() == [False] * 4


@pytest.mark.parametrize("columns", [1, 2, 20])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_classes_that_the_labels_cannot_have(dtype, columns):
    """-1 and 257 are 255 and 1 as bytes, 65536 + 3 is 3 as int16, values from 65536 on are never found."""
    values = torch.tensor([1, 3, 255] if dtype == torch.uint8 else [1, 3, -1, -32768, 255])
    labels = torch.cat([values, torch.tensor([70000])]) if dtype == torch.int64 else values
    labels = labels.to(dtype).expand(4, 2, -1)
    wrong = torch.tensor([-1, 257, 65536 + 3, 70000])[:, None]
    ranked = torch.cat([torch.arange(9, 8 + columns).expand(4, -1), wrong], dim=1)
    with_three = torch.cat([torch.tensor([[3]]).expand(4, -1), ranked], dim=1)
    for find in (find_pixels, ops._find_anywhere):
        assert not find(labels, ranked, torch.zeros(4, dtype=torch.int64)).found.any()
        assert_found(find(labels, with_three, torch.arange(4)), labels, with_three, torch.arange(4))


@pytest.mark.parametrize("columns", [15, 16, 255, 256, 300])
def test_last_of_many_classes(columns):
    labels = random_labels(high=columns)
    labels[labels == 0] = columns
    ranked, number = torch.arange(1, columns + 1).expand(3, -1), torch.tensor([0, 1, 2])
    labels[:, 3, 5] = labels[:, 7, 15] = columns
    for find in (find_pixels, ops._find_anywhere):
        assert_found(find(labels, ranked, number), labels, ranked, number)


@pytest.mark.parametrize("columns", [1, 3, 20])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize("high", [5, 400])
def test_blocks_of_rows(dtype, columns, high, monkeypatch):
    labels = random_labels((3, 40, 24), high if dtype == torch.int64 else 5, dtype)
    ranked, number = torch.arange(columns).expand(3, -1), torch.tensor([3, 77, 10**12])
    expected = find_pixels(labels, ranked, number)
    for pixels in (1, 200, 10**9):
        monkeypatch.setattr(ops, "_CACHED_PIXELS", pixels)
        assert all(map(torch.equal, find_pixels(labels, ranked, number), expected))


def test_rows_that_overflow_no_byte():
    for width in (2040, 2048, 2044):  # 255 words of eight columns, one more, and no whole ones
        labels = torch.ones(1, 2, width, dtype=torch.uint8)
        found = find_pixels(labels, torch.tensor([[1]]), torch.tensor([width + 7]))
        assert [part.tolist() for part in found] == [[1], [7], [True]]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_sums_by_loops(data):
    shape = tuple(data.draw(st.integers(1, high)) for high in (3, 9, 9))
    classes, dtype = data.draw(st.integers(1, 40)), data.draw(st.sampled_from([torch.uint8, torch.int8, *WIDE]))
    seed = data.draw(st.integers(0, 10**6))
    now, before = (random_labels(shape, classes + 3, dtype, seed + k) for k in range(2))
    if dtype != torch.uint8:
        now[:, 0] = -7
    if dtype == torch.int64:
        now[:, :, 0], before[:, :, 0] = 2**40, -(2**63)
    if data.draw(st.booleans()):
        now = now.transpose(1, 2).contiguous().transpose(1, 2)
    weights = torch.rand(shape, generator=generator(seed), dtype=data.draw(st.sampled_from([torch.half, torch.double])))
    weights[0, 0, 0] = torch.nan
    both = now.numpy(), before.numpy()
    for sums in (
        label_sums,
        lambda labels, c, before=None, weights=None: ops._sums_anywhere(labels, before, weights, c),
    ):
        found = [sums(now, classes), sums(now, classes, before=before), sums(now, classes, weights=weights)]
        assert [one.dtype for one in found] == [torch.int64, torch.int64, torch.float64]
        assert np.array_equal(found[0].numpy(), sums_by_loops(both[0], classes))
        assert np.array_equal(found[1].numpy(), sums_by_loops(both[0], classes, both[1]))
        assert np.array_equal(found[2].numpy(), sums_by_loops(both[0], classes, weights=weights.numpy()))


def test_sums_by_hand():
    labels, before = torch.tensor([[[-1, 0, 1, 2]]]), torch.tensor([[[0, 0, 2, 9]]])
    assert label_sums(labels, 2).tolist() == [[1, 1, 1, 1]]  # below, 0, 1, above
    pairs = label_sums(labels, 2, before=before).view(4, 4)
    assert pairs.nonzero().tolist() == [[1, 0], [1, 1], [3, 2], [3, 3]]
    assert label_sums(labels, 2, weights=torch.tensor([[[0.5, 2**-25, 1.0, 7.0]]])).tolist() == [[0.5, 0, 1, 1]]


@pytest.mark.parametrize("size", [(128, 131), (1, (1 << 14) + 3)])
@pytest.mark.parametrize("classes", [3, 88, 89, 179, 180])  # pairs: 16 bits up to 88, then 32
def test_many_pixels_are_counted_as_few_are(classes, size, monkeypatch):
    now, before = torch.randint(-1, classes + 1, (2, 2, *size), generator=generator(classes))
    weights = torch.rand(2, *size, generator=generator(classes))

    def sums():
        return (
            label_sums(now, classes),
            label_sums(now, classes, before=before),
            label_sums(now, classes, weights=weights),
        )

    in_tables = sums()
    monkeypatch.setattr(ops, "_MANY_PIXELS", 1 << 30)
    assert all(map(torch.equal, in_tables, sums()))
    assert torch.equal(in_tables[1], ops._sums_anywhere(now, before, None, classes))
    assert torch.equal(in_tables[2], ops._sums_anywhere(now, None, weights, classes))


def test_no_images():
    empty = random_labels((0, 4, 5))
    assert label_sums(empty, 3, before=empty).shape == (0, 25)
    assert find_pixels(empty, torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0).long()).found.shape == (0,)


def test_no_gradient():
    weights = torch.rand(3, 8, 16, requires_grad=True)
    assert not label_sums(random_labels(), 3, weights=weights).requires_grad


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize("columns", [0, 1, 3, 20])
def test_find_operator(dtype, columns):
    labels, number = random_labels(dtype=dtype), torch.arange(6)[::2]
    ranked = torch.arange(columns).expand(3, -1)
    torch.library.opcheck(torch.ops.selftrain_seg.find_pixels.default, (labels, ranked, number))


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_sums_operator(pairs, weighted):
    before, weights = random_labels(seed=1) if pairs else None, torch.rand(3, 8, 16) if weighted else None
    torch.library.opcheck(torch.ops.selftrain_seg.label_sums.default, (random_labels(), before, weights, 4))


@pytest.mark.gpu
def test_cuda_equals_the_cpu_and_never_waits():
    labels, before, weights = random_labels((4, 64, 72)), random_labels((4, 64, 72), seed=1), torch.rand(4, 64, 72)
    ranked, number = torch.tensor([[2, 9, 4]]).expand(4, -1), torch.arange(4) * 10**9
    cases = [
        (find_pixels, (labels, ranked, number), {}),
        (find_pixels, (labels.byte(), ranked[:, :1], number), {}),
        (label_sums, (labels, 5), {}),
        (label_sums, (labels, 5), {"before": before}),
        (label_sums, (labels, 5), {"weights": weights}),
    ]
    for call, inputs, others in cases:
        expected = call(*inputs, **others)
        inputs = [one.cuda() if isinstance(one, torch.Tensor) else one for one in inputs]
        others = {name: one.cuda() for name, one in others.items()}
        call(*inputs, **others)  # first launches may allocate
        with never_waits():
            found = call(*inputs, **others)
        pairs = [(found, expected)] if isinstance(found, torch.Tensor) else zip(found, expected, strict=True)
        assert all(torch.equal(ours.cpu(), theirs) for ours, theirs in pairs)
