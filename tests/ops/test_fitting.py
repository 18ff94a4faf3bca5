import pytest
import torch

from selftrain_seg.ops import fitting


def topmost_by_loops(numbers, where, inside):
    """The last region of which a pixel of its number comes to lie there."""
    batch, height, width = numbers.shape
    out = torch.zeros_like(numbers)
    for b in range(batch):
        for region in range(where.shape[1]):
            for i in range(height):
                for j in range(width):
                    covered = inside[b, region, i] and inside[b, region, height + j]
                    row, column = where[b, region, 0, i], where[b, region, 0, height + j]
                    if covered and numbers[b, row, column] == region + 1:
                        out[b, i, j] = region + 1
    return out


@pytest.mark.parametrize("regions", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (9, 11), (4, 30)])
@pytest.mark.parametrize("batch", [0, 3])
def test_both_implementations_by_loops(batch, size, regions):
    generator = torch.Generator().manual_seed(regions)
    numbers = torch.zeros(batch, *size, dtype=torch.uint8)
    for image in numbers:
        for number in range(1, regions + 1):
            top, left = (int(torch.randint(side, (), generator=generator)) for side in size)
            image[top : top + 3, left : left + 4] = number
    factor = torch.rand(batch, regions, generator=generator, dtype=torch.float64) * 2 + 0.3
    chance = torch.rand(batch, regions, 2, generator=generator, dtype=torch.float64)
    places = fitting.fit(numbers, factor, chance)
    expected = topmost_by_loops(numbers, places.where, places.inside)
    assert torch.equal(fitting.topmost(numbers, places), expected)
    assert torch.equal(fitting._topmost_anywhere(numbers, places.where, places.inside), expected)
    transposed = numbers.mT.contiguous().mT
    assert torch.equal(fitting.topmost(transposed, places), expected)


def test_a_region_too_large_lies_nowhere():
    numbers = torch.zeros(1, 6, 9, dtype=torch.uint8)
    numbers[0, 2:4, 3:6] = 1  # 2 × 3
    for factor, fits in ((3.0, True), (3.25, False), (3.2, False), (1e6, False)):  # 3.25: 6.5 to even, 6 × 9.75
        places = fitting.fit(numbers, torch.tensor([[factor]]).double(), torch.zeros(1, 1, 2).double())
        assert bool(places.inside.any()) == fits
        assert int((fitting.topmost(numbers, places) > 0).sum()) == (54 if fits else 0)


def test_compiles_whole():
    def call(numbers, factor, chance):
        places = fitting.fit(numbers, factor, chance)
        return fitting.topmost(numbers, places)

    numbers = torch.zeros(2, 6, 9, dtype=torch.uint8)
    numbers[:, 1:3, 2:4] = 2
    given = numbers, torch.full((2, 3), 1.5).double(), torch.rand(2, 3, 2).double()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*given), call(*given))
