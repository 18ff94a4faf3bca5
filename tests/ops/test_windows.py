import numpy as np
import pytest
import torch

from selftrain_seg.ops.windows import windows
from tests.helpers import layouts
from tests.oracles.mining import crop_by_loops


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


TOP, LEFT, SIZE = torch.tensor([0, 3, 1]), torch.tensor([4, 0, 2]), (5, 4)  # of 8 × 9 pixels


def images(dtype=torch.float32):
    return torch.rand(3, 2, 8, 9, generator=generator(), dtype=dtype)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_by_loops(layout, dtype):
    values = (images() * 100).to(dtype)
    tensor = layouts(values)[layout]
    expected = crop_by_loops(values.double().numpy(), torch.stack([TOP, LEFT], 1).tolist(), SIZE, 0)
    found = windows(tensor, TOP, LEFT, SIZE)
    assert found.dtype == dtype
    assert np.array_equal(found.double().numpy(), expected)
    assert torch.equal(tensor, values)


@pytest.mark.parametrize("shape", [(3, 8, 9), (3, 2, 2, 8, 9), (0, 2, 8, 9), (3, 0, 8, 9)])
def test_ranks(shape):
    tensor = torch.rand(shape, generator=generator())
    top, left = TOP[: shape[0]], LEFT[: shape[0]]
    expected = crop_by_loops(tensor.numpy(), torch.stack([top, left], 1).tolist(), SIZE, 0)
    assert np.array_equal(windows(tensor, top, left, SIZE).numpy(), expected)


def test_memory_stays_in_its_order():
    last = images().contiguous(memory_format=torch.channels_last)
    for tensor in (last, last.clone().requires_grad_()):
        assert windows(tensor, TOP, LEFT, SIZE).is_contiguous(memory_format=torch.channels_last)
    assert windows(images(), TOP, LEFT, SIZE).is_contiguous()


def test_gradients():
    tensor = images(torch.float64).requires_grad_()
    for size in (SIZE, (1, 1)):
        assert torch.autograd.gradcheck(lambda x, size=size: windows(x, TOP, LEFT, size), tensor)
        assert torch.autograd.gradgradcheck(lambda x, size=size: windows(x, TOP, LEFT, size).square(), tensor)
    last = images().contiguous(memory_format=torch.channels_last).requires_grad_()
    windows(last, TOP, LEFT, SIZE).sum().backward()
    expected = np.zeros((3, 2, 8, 9))
    for image in range(3):
        for row in range(SIZE[0]):
            for column in range(SIZE[1]):
                expected[image, :, TOP[image] + row, LEFT[image] + column] = 1
    assert np.array_equal(last.grad.numpy(), expected)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize("grad", [False, True])
def test_operator(layout, grad):
    tensor = layouts(images())[layout].requires_grad_(grad)
    torch.library.opcheck(torch.ops.selftrain_seg.windows.default, (tensor, TOP, LEFT, *SIZE))


@pytest.mark.slow
def test_compiled_with_gradient():
    def loss(tensor):
        return (windows(tensor * 2, TOP, LEFT, SIZE) ** 2).sum()

    torch.compiler.reset()
    for tensor in (images(), images().contiguous(memory_format=torch.channels_last)):
        both = [tensor.clone().requires_grad_() for _ in range(2)]
        torch.compile(loss, fullgraph=True)(both[0]).backward()
        loss(both[1]).backward()
        torch.testing.assert_close(both[0].grad, both[1].grad)
    torch.compiler.reset()
