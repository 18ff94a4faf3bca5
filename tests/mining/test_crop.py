import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selftrain_seg.mining import crop
from tests.oracles.mining import crop_by_loops


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_crop_by_loops(data):
    batch, height, width = (data.draw(st.integers(low, 7)) for low in (0, 1, 1))
    middle = data.draw(st.lists(st.integers(0, 3), max_size=2))
    size = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    dtype = data.draw(
        st.sampled_from([torch.float32, torch.bfloat16, torch.uint8, torch.int64, torch.bool, torch.complex64])
    )
    tensor = torch.randint(0, 100, (batch, *middle, height, width), generator=generator()).to(dtype)
    if data.draw(st.booleans()):
        tensor = tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    corners = torch.randint(-3, 9, (batch, 2), generator=generator(1))
    out = crop(tensor, corners, size)
    assert out.dtype == dtype
    fill = 255 if middle in ([], [1]) and dtype in (torch.uint8, torch.int64) else 0
    readable = tensor.float() if dtype == torch.bfloat16 else tensor
    expected = torch.from_numpy(crop_by_loops(readable.numpy(), corners.tolist(), size, fill)).to(dtype)
    assert torch.equal(out, expected)
    if dtype.is_floating_point or dtype.is_complex:
        with_graph = crop(tensor.clone().requires_grad_(), corners, size)
        assert torch.equal(with_graph, expected)


def test_same_corners_for_images_and_labels():
    # Every pixel's value tells its place, in both tensors.
    place = torch.arange(8 * 9).view(1, 8, 9).expand(3, -1, -1)
    corners = torch.tensor([[0, 0], [4, 5], [2, 1]])
    labels, images = crop(place, corners, (4, 4)), crop(place[:, None].float(), corners, (4, 4))
    assert torch.equal(labels, images[:, 0].long())
    assert labels[:, 0, 0].tolist() == [0, 4 * 9 + 5, 2 * 9 + 1]


def test_fill():
    corners = torch.zeros(1, 2, dtype=torch.long)

    def last(tensor, **arguments):
        return crop(tensor, corners, (3, 3), **arguments)[..., 2, 2].flatten()[0].tolist()

    integers = torch.ones(1, 2, 2, dtype=torch.uint8)
    assert last(integers) == 255
    assert last(integers.float()) == 0
    assert last(integers.bool()) is False
    for maps in (integers, integers.long()):  # labels (B, 1, H, W) were padded with class 0
        assert last(maps[:, None]) == 255
    assert last(integers[:, None].expand(-1, 3, -1, -1)) == 0  # an image in uint8, not a label map
    assert last(integers, fill=7) == 7
    assert last(integers.bool(), fill=1) is True
    assert last(integers.float(), fill=0.5) == 0.5
    assert last(integers.to(torch.int8), fill=-1) == -1


def test_memory_format():
    images = torch.rand(2, 3, 8, 10)
    last = images.contiguous(memory_format=torch.channels_last)
    corners = torch.tensor([[1, 2], [3, 4]])
    out = crop(last, corners, (4, 5))
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert crop(images, corners, (4, 5)).is_contiguous()
    assert torch.equal(out, crop(images, corners, (4, 5)))
    out.zero_()
    assert torch.equal(last, images)  # a copy


def test_expanded_and_sliced_tensors():
    base = torch.arange(2 * 3 * 8 * 10).view(2, 3, 8, 10)
    corners = torch.tensor([[1, 2], [3, 1]])
    for tensor in (base[:, :1].expand(-1, 3, -1, -1), base[:1].expand(2, -1, -1, -1), base[:, 1:, 2:, ::2]):
        expected = crop_by_loops(tensor.numpy(), corners.tolist(), (3, 2), 0)
        assert torch.equal(crop(tensor, corners, (3, 2)), torch.from_numpy(expected))


def test_gradient():
    images = torch.rand(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    corners = torch.tensor([[1, 2], [0, 0]])
    assert torch.autograd.gradcheck(lambda x: crop(x, corners, (6, 2), fill=0.5), images)
    crop(images, corners, (2, 2)).sum().backward()
    ones = torch.zeros(2, 2, 4, 5, dtype=torch.float64)
    ones[0, :, 1:3, 2:4] = 1
    ones[1, :, :2, :2] = 1
    assert torch.equal(images.grad, ones)
    with torch.no_grad():
        assert not crop(images, corners, (2, 2)).requires_grad


def test_bad_crop_arguments():
    tensor, corners = torch.zeros(2, 3, 4, 5), torch.zeros(2, 2, dtype=torch.long)
    for size in (3, (3,), (1, 2, 3)):
        with pytest.raises(ValueError, match=r"`size`: expected \(height, width\)"):
            crop(tensor, corners, size)
    with pytest.raises(ValueError, match=r"`size\[1\]`: expected at least 1, got 0"):
        crop(tensor, corners, (1, 0))
    with pytest.raises(TypeError, match=r"`size\[0\]`: expected an int"):
        crop(tensor, corners, (1.0, 1))
    with pytest.raises(TypeError, match=r"`tensor`: expected a torch.Tensor"):
        crop([[1]], corners, (1, 1))
    for shape in ((4, 5), (2, 0, 5), (2, 3, 4, 0)):
        with pytest.raises(ValueError, match=r"`tensor`: expected \(B, …, H, W\)"):
            crop(torch.zeros(shape), corners, (1, 1))
    with pytest.raises(TypeError, match=r"`corners`: expected an integer dtype"):
        crop(tensor, corners.float(), (1, 1))
    for shape in ((3, 2), (2, 3), (2,)):
        with pytest.raises(ValueError, match=r"`corners`: expected \(B, 2\) = \(2, 2\)"):
            crop(tensor, torch.zeros(shape, dtype=torch.long), (1, 1))
    with pytest.raises(ValueError, match=r"`corners`: expected device cpu, got meta"):
        crop(tensor, corners.to("meta"), (1, 1))
    with pytest.raises(TypeError, match="`fill`: expected a number, got str"):
        crop(tensor, corners, (1, 1), fill="0")
    with pytest.raises(TypeError, match="`fill`: expected a number, got bool"):
        crop(tensor, corners, (1, 1), fill=True)
    for dtype, fill in ((torch.uint8, -1), (torch.uint8, 256), (torch.long, 0.5), (torch.bool, 2)):
        with pytest.raises(ValueError, match=r"`fill`: expected a value that torch"):
            crop(tensor.to(dtype), corners, (1, 1), fill=fill)
    with pytest.raises(ValueError, match=r"`fill`: expected a value that torch.int8 can hold, got 255"):
        crop(torch.zeros(2, 4, 5, dtype=torch.int8), corners, (1, 1))
