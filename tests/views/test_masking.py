import numpy as np
import pytest
import torch
from scipy import stats

from selftrain_seg.views import mask_patches
from tests.helpers import layouts, never_waits
from tests.oracles.views import hidden_by_loops


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(batch=3, channels=3, height=13, width=10, seed=0):
    return torch.rand(batch, channels, height, width, generator=generator(seed)) + 1


def test_by_hand():
    # Patches of 2 in 3 × 5: a grid of 2 × 3, the last row and column cut to one pixel. All but probability 1 hide some.
    images = torch.ones(1, 1, 3, 5)
    masked, hidden = mask_patches(images, 2, 1.0, value=7.0)
    assert hidden.all()
    assert (masked == 7).all()
    masked, hidden = mask_patches(images, 2, 0.0)
    assert not hidden.any()
    assert torch.equal(masked, images)
    assert masked.data_ptr() != images.data_ptr()


@pytest.mark.parametrize(("height", "width"), [(13, 10), (12, 8), (1, 1), (3, 40), (5, 4)])
@pytest.mark.parametrize("patch_size", [1, 3, 4, 50])
@pytest.mark.parametrize("ratio", [0.3, 0.7])
def test_by_loops(height, width, patch_size, ratio):
    images = pictures(height=height, width=width)
    masked, hidden = mask_patches(images, patch_size, ratio, value=-1.5, generator=generator(4))
    grid = -(-height // patch_size), -(-width // patch_size)
    numbers = torch.rand(3, *grid, generator=generator(4)).numpy()
    for b in range(3):
        expected = hidden_by_loops(numbers[b], (height, width), patch_size, ratio)
        assert np.array_equal(hidden[b].numpy(), expected)
        for i, j in np.ndindex(height, width):
            assert torch.equal(masked[b, :, i, j], torch.full((3,), -1.5) if expected[i, j] else images[b, :, i, j])


def test_patches_are_hidden_independently():
    count, side = 4000, 2
    _, hidden = mask_patches(torch.zeros(count, 1, 6, 6), 3, 0.7, generator=generator(1))
    patches = hidden[:, ::3, ::3].flatten(1).numpy()
    assert patches.shape == (count, side * side)
    for column in patches.T:
        assert stats.binomtest(int(column.sum()), count, 0.7).pvalue > 1e-3
    codes = np.bincount(patches @ [8, 4, 2, 1], minlength=16)
    hides = np.array([bin(code).count("1") for code in range(16)])
    assert stats.chisquare(codes, count * 0.7**hides * 0.3 ** (4 - hides)).pvalue > 1e-3
    following = patches[:-1, 0] * 2 + patches[1:, 0]  # and so are images
    assert stats.chisquare(np.bincount(following), (count - 1) * np.outer([0.3, 0.7], [0.3, 0.7]).ravel()).pvalue > 1e-3


def test_a_value_for_each_channel():
    images, mean = pictures(), torch.tensor([0.485, 0.456, 0.406])
    masked, hidden = mask_patches(images, 4, 0.5, value=mean, generator=generator())
    for channel in range(3):
        assert (masked[:, channel][hidden] == mean[channel]).all()
        assert torch.equal(masked[:, channel][~hidden], images[:, channel][~hidden])
    half = mask_patches(images.bfloat16(), 4, 0.5, value=mean, generator=generator())[0]
    assert half.dtype == torch.bfloat16
    assert (half[:, 1][hidden] == mean[1].bfloat16()).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [0.0, 0.25])
def test_dtypes_and_layouts(dtype, value):
    images = pictures().to(dtype)
    expected, hidden = mask_patches(images, 4, 0.5, value=value, generator=generator(2))
    for name, other in layouts(images).items():
        masked, same = mask_patches(other, 4, 0.5, value=value, generator=generator(2))
        assert masked.dtype == dtype
        assert torch.equal(masked, expected)
        assert torch.equal(same, hidden)
        if name == "channels_last":
            assert masked.is_contiguous(memory_format=torch.channels_last)


def test_nan_and_infinity_do_not_spread():
    images = pictures()
    images[0] = torch.nan
    images[1] = torch.inf
    masked, hidden = mask_patches(images, 4, 0.5, generator=generator())
    assert (masked.movedim(1, -1)[hidden] == 0).all()
    assert torch.equal(masked[2].movedim(0, -1)[~hidden[2]], images[2].movedim(0, -1)[~hidden[2]])
    assert masked[0].movedim(0, -1)[~hidden[0]].isnan().all()


def test_gradients_flow_to_what_is_shown():
    images = pictures().requires_grad_()
    masked, hidden = mask_patches(images, 4, 0.5, generator=generator())
    masked.sum().backward()
    assert torch.equal(images.grad, (~hidden)[:, None].expand_as(images).float())
    assert not hidden.requires_grad


def test_no_images_and_pixels():
    for shape in ((0, 3, 8, 8), (2, 3, 0, 8), (2, 3, 8, 0), (2, 0, 8, 8)):
        masked, hidden = mask_patches(torch.zeros(shape), 4)
        assert masked.shape == shape
        assert hidden.shape == (shape[0], *shape[2:])


def test_reproducible_and_pure():
    images = pictures()
    before, state = images.clone(), torch.random.get_rng_state()
    first = mask_patches(images, 4, generator=generator(1))
    assert torch.equal(state, torch.random.get_rng_state())
    again, other = (mask_patches(images, 4, generator=generator(seed)) for seed in (1, 2))
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])
    assert torch.equal(images, before)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        default = mask_patches(images, 4)[1]
        torch.manual_seed(3)
        assert torch.equal(mask_patches(images, 4)[1], default)
        assert not torch.equal(mask_patches(images, 4)[1], default)


def test_defaults_are_the_papers():
    _, hidden = mask_patches(torch.zeros(40, 1, 256, 256), generator=generator())
    patches = hidden.unflatten(1, (4, 64)).unflatten(3, (4, 64)).float().mean((2, 4))
    assert ((patches == 0) | (patches == 1)).all()
    assert stats.binomtest(int(patches.sum()), patches.numel(), 0.7).pvalue > 1e-3


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_equals_eager(dynamic):
    torch.compiler.reset()
    compiled = torch.compile(
        lambda images, value: mask_patches(images, 4, 1.0, value=value), fullgraph=True, backend="aot_eager",
        dynamic=dynamic,
    )  # fmt: skip
    for shape in ((2, 3, 13, 10), (3, 3, 9, 30)):
        images = torch.rand(shape)
        assert (compiled(images, 0.5)[0] == 0.5).all()
    random = torch.compile(lambda images: mask_patches(images, 4, 0.5), fullgraph=True, backend="aot_eager")
    masked, hidden = random(torch.ones(50, 3, 13, 10))
    assert torch.equal(masked, (~hidden)[:, None].expand_as(masked).float())
    assert 0.4 < hidden[:, ::4, ::4].float().mean() < 0.6
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": torch.zeros(3, 4, 4)}, ValueError, r"`images`: expected \(B, C, H, W\), got \(3, 4, 4\)"),
        ({"images": torch.zeros(1, 3, 4, 4, dtype=torch.uint8)}, TypeError, "`images`: expected a floating"),
        ({"images": np.zeros((1, 3, 4, 4))}, TypeError, "`images`: expected a torch.Tensor, got ndarray"),
        ({"patch_size": 0}, ValueError, "`patch_size`: expected at least 1, got 0"),
        ({"patch_size": 2.0}, TypeError, "`patch_size`: expected an int, got float"),
        ({"ratio": 1.1}, ValueError, r"`ratio`: expected a value in \[0.0, 1.0\], got 1.1"),
        ({"ratio": float("nan")}, ValueError, "`ratio`: expected a value in"),
        ({"ratio": "most"}, TypeError, "`ratio`: expected a number, got str"),
        ({"value": "black"}, TypeError, "`value`: expected a number, got str"),
        ({"value": torch.zeros(2)}, ValueError, r"`value`: expected a number or \(D,\) = \(3,\), got \(2,\)"),
        ({"value": torch.zeros(3).long()}, TypeError, "`value`: expected a floating-point dtype, got torch.int64"),
        ({"value": torch.zeros(3, device="meta")}, ValueError, "`value`: expected device cpu, got meta"),
        ({"images": torch.zeros(1, 3, 4, 4, device="meta"), "generator": generator()}, ValueError, "`generator`: ex"),
    ],
)  # fmt: skip
def test_raises(change, error, message):
    arguments = {"images": torch.zeros(1, 3, 4, 4), "patch_size": 2, **change}
    with pytest.raises(error, match=message):
        mask_patches(arguments.pop("images"), **arguments)


@pytest.mark.gpu
def test_on_a_gpu_the_host_never_waits():
    images = torch.rand(2, 3, 100, 90, device="cuda")
    mean = torch.rand(3, device="cuda")
    source = torch.Generator("cuda").manual_seed(0)
    mask_patches(images, 16, value=mean, generator=source)
    with never_waits():
        masked, hidden = mask_patches(images, 16, value=mean, generator=source)
    assert torch.equal(masked, torch.where(hidden[:, None], mean[:, None, None], images))
