"""Logits out of anything a network returns; images of sizes that it takes."""

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from selftrain_seg import as_logits, pad_to_multiple
from selftrain_seg.losses import cross_entropy
from selftrain_seg.thresholds import ClassBalancedThreshold

FLOATS = (torch.float32, torch.float64, torch.bfloat16)
Two = namedtuple("Two", ["features", "logits"])


@dataclass
class Answer:
    logits: torch.Tensor
    loss: torch.Tensor | None = None


class ModelOutput(OrderedDict):
    """As those of transformers: an ordered dict whose entries are attributes, too."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


Z = torch.arange(24.0).reshape(1, 2, 3, 4)
OTHER = torch.zeros(1, 5, 3, 4)


@pytest.mark.parametrize(
    ("output", "key"),
    [
        (Z, None),
        (Z, 0),  # many return a tensor in evaluation mode, and a list in training
        (Z, "out"),
        ({"out": Z, "aux": OTHER}, None),
        ({"loss": OTHER.sum(), "logits": Z}, None),
        ({"aux": OTHER, "seg": Z}, "seg"),
        ({0: OTHER, 1: Z}, 1),
        (UserDict(logits=Z), None),
        (ModelOutput(loss=OTHER.sum(), logits=Z, hidden_states=(OTHER, OTHER)), None),
        (ModelOutput(logits=OTHER, segmentation=Z), "segmentation"),
        (SimpleNamespace(out=Z), None),
        (SimpleNamespace(seg=Z), "seg"),
        (Answer(Z), None),
        (Two(OTHER, Z), None),
        (Two(Z, OTHER), "features"),
        (Two(Z, OTHER), 0),
        ([Z], None),
        ((OTHER.sum(), Z), None),  # a loss first
        ((Z, OTHER.sum((2, 3))), None),  # what an image shows, too
        ([Z, OTHER], 0),
        ((OTHER, OTHER, Z), -1),
    ],
)
def test_where_logits_are(output, key):
    assert as_logits(output, key=key) is Z


@pytest.mark.parametrize(
    ("output", "key", "error", "message"),
    [
        (None, None, TypeError, r"`output`: expected logits: a tensor, .*, got NoneType$"),
        (5.0, None, TypeError, "got float$"),
        ((), None, TypeError, "got tuple$"),
        ([OTHER.sum()], None, TypeError, "got list$"),
        ({"aux": Z, "b c": Z}, None, TypeError, r"got dict with 'aux', 'b c'; `selftrain_seg.as_logits\(output, key="),
        ({}, None, TypeError, "got dict with no entries"),
        ({"out": 3}, None, TypeError, "got dict with 'out'"),
        ({"out": [Z, Z]}, None, TypeError, "got dict with 'out'"),
        (SimpleNamespace(logits=None), None, TypeError, "got SimpleNamespace$"),
        ((Z, OTHER), None, ValueError, r"got a tuple with 2 \(0: \(1, 2, 3, 4\), 1: \(1, 5, 3, 4\)\); .*key=0\)`"),
        ([None, Z, OTHER], None, ValueError, r"got a list with 2 .*key=1\)`"),
        ({"out": Z}, "seg", ValueError, "`key`: expected an entry of `output`, got 'seg'; dict has 'out'"),
        ([Z, Z], 2, ValueError, "`key`: expected an entry of `output`, got 2; list has 2 elements"),
        ([Z, Z], "out", ValueError, "got 'out'; list has 2 elements"),
        (SimpleNamespace(out=Z), 0, ValueError, "got 0; SimpleNamespace has none of that name"),
        ({"out": Z, "aux": [Z]}, "aux", TypeError, "`output`: expected a tensor as entry 'aux', got list"),
        (Z, 0.0, TypeError, "`key`: expected a name or a number, got float"),
        (Z, True, TypeError, "`key`: expected a name or a number, got bool"),
        (Z[0], None, ValueError, r"`output`: expected \(B, C, H, W\), got \(2, 3, 4\)"),
        (Z.long(), None, TypeError, "`output`: expected a floating-point dtype, got torch.int64"),
        ({"out": Z[:, :1]}, None, ValueError, r"expected at least two classes .* got 1 in \(1, 1, 3, 4\).*binary=True"),
        (Z[:, :0], None, ValueError, r"expected at least two classes on dimension 1, got 0 in \(1, 0, 3, 4\)$"),
    ],
)
def test_no_logits_or_several(output, key, error, message):
    with pytest.raises(error, match=message):
        as_logits(output, key=key)


def bilinear_by_loops(z, size):
    """Pixels are areas: the centre of the first of n lies at 1/(2n)."""
    height, width = z.shape[-2:]
    made = np.zeros((*z.shape[:2], *size))
    for i in range(size[0]):
        for j in range(size[1]):
            y = min(max((i + 0.5) * height / size[0] - 0.5, 0), height - 1)
            x = min(max((j + 0.5) * width / size[1] - 0.5, 0), width - 1)
            top, left = int(y), int(x)
            for row, a in ((top, 1 - (y - top)), (min(top + 1, height - 1), y - top)):
                for column, b in ((left, 1 - (x - left)), (min(left + 1, width - 1), x - left)):
                    made[..., i, j] += a * b * z[..., row, column]
    return made


@pytest.mark.parametrize("shape", [(3, 4), (1, 1), (2, 5)])
@pytest.mark.parametrize("size", [(6, 8), (7, 5), (1, 1), (2, 9)])
def test_another_resolution(shape, size):
    z = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made = as_logits([z], size)
    np.testing.assert_allclose(made.numpy(), bilinear_by_loops(z.numpy(), size), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_a_size_may_be(dtype):
    z, labels = Z.to(dtype), torch.zeros(7, 6, 9, dtype=torch.uint8)
    expected = F.interpolate(z, (6, 9), mode="bilinear")
    for size in ((6, 9), [6, 9], labels, labels[0], labels[None], labels.shape[-2:]):
        made = as_logits(z, size)
        assert made.dtype == dtype
        assert torch.equal(made, expected)
    assert as_logits(z, torch.zeros(3, 4)) is z
    assert as_logits(z.new_zeros(0, 2, 3, 4), (6, 9)).shape == (0, 2, 6, 9)


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (6, ValueError, r"`size`: expected \(height, width\), got 6"),
        ((6,), ValueError, r"`size`: expected \(height, width\), got \(6,\)"),
        ((6, 0), ValueError, r"`size\[1\]`: expected at least 1, got 0"),
        ((6.0, 9), TypeError, r"`size\[0\]`: expected an int, got float"),
        (torch.zeros(6), ValueError, r"`size`: expected .* got a tensor \(6,\)"),
        (torch.zeros(2, 0, 4), ValueError, r"`output`: cannot be resized from \(3, 4\) to \(0, 4\)"),
    ],
)
def test_wrong_sizes(size, error, message):
    with pytest.raises(error, match=message):
        as_logits(Z, size)
    with pytest.raises(ValueError, match=r"`output`: cannot be resized from \(0, 4\) to \(6, 9\)"):
        as_logits(Z[..., :0, :], (6, 9))


@pytest.mark.parametrize("dtype", FLOATS)
def test_one_channel_becomes_two(dtype):
    z = torch.linspace(-80, 80, 12, dtype=dtype).reshape(1, 1, 3, 4)
    two = as_logits({"out": z}, binary=True)
    assert two.dtype == dtype
    assert two.shape == (1, 2, 3, 4)
    probs = two.double().softmax(dim=1)
    torch.testing.assert_close(probs[:, 1:], z.double().sigmoid())
    torch.testing.assert_close(probs[:, :1], (-z.double()).sigmoid())
    assert torch.equal(as_logits(z, (6, 9), binary=True), as_logits(two, (6, 9)))
    for wrong in (two, z[:, :0]):
        with pytest.raises(ValueError, match="`output`: expected one channel with `binary`, got"):
            as_logits(wrong, binary=True)
    with pytest.raises(ValueError, match=r"`output`: expected \(B, C, H, W\)"):
        as_logits(z[0], binary=True)


def test_the_two_channels_have_the_loss_and_gradient_of_a_sigmoid():
    torch.manual_seed(0)
    z = torch.randn(2, 1, 5, 6, requires_grad=True)
    labels = torch.randint(0, 2, (2, 5, 6))
    loss = cross_entropy(as_logits(z, binary=True), labels)
    known = F.binary_cross_entropy_with_logits(z[:, 0], labels.float())
    torch.testing.assert_close(loss, known)
    torch.testing.assert_close(torch.autograd.grad(loss, z), torch.autograd.grad(known, z))
    kc = ClassBalancedThreshold(2, 0.5, exact=True)
    kc.update(as_logits(z, binary=True))
    assert kc.class_counts().tolist() == [int((z <= 0).sum()), int((z > 0).sum())]


def test_gradients_flow_through_resizing():
    z = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: as_logits((z,), (5, 7)), z)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(dynamic):
    def both(images, labels):
        z = F.conv2d(pad_to_multiple(images, 4), torch.ones(1, 3, 4, 4), stride=4)
        output = ModelOutput(loss=z.mean(), logits=z)
        return as_logits([z, z], key=1, binary=True), as_logits(output, labels, binary=True)

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for height, width in ((8, 12), (9, 13), (16, 20)):
        images, labels = torch.rand(2, 3, height, width), torch.zeros(2, height, width, dtype=torch.long)
        for found, expected in zip(compiled(images, labels), both(images, labels), strict=True):
            torch.testing.assert_close(found, expected)


def test_padding_by_loops():
    images = torch.rand(2, 3, 5, 7)
    padded = pad_to_multiple(images, (4, 3))
    assert padded.shape == (2, 3, 8, 9)
    zeros = pad_to_multiple(images, (4, 3), mode="constant")
    for i in range(8):
        for j in range(9):
            assert torch.equal(padded[..., i, j], images[..., min(i, 4), min(j, 6)])
            inside = i < 5 and j < 7
            assert torch.equal(zeros[..., i, j], images[..., i, j] if inside else torch.zeros(2, 3))


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float16])
def test_padding_of_all_kinds(dtype):
    for shape in ((1, 1, 1, 1), (0, 3, 5, 7), (2, 4, 31, 33)):
        assert pad_to_multiple(torch.zeros(shape, dtype=dtype), 32).shape[-2:] == (32, 32 if shape[3] < 33 else 64)
    images = torch.zeros(1, 3, 32, 64, dtype=dtype)
    assert pad_to_multiple(images, 32) is images
    last = torch.zeros(2, 3, 31, 33).contiguous(memory_format=torch.channels_last)
    assert pad_to_multiple(last, 32).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("images", "multiple", "mode", "error", "message"),
    [
        (None, 4, "replicate", TypeError, "`images`: expected a torch.Tensor, got NoneType"),
        (Z[0], 4, "replicate", ValueError, r"`images`: expected \(B, C, H, W\), got \(2, 3, 4\)"),
        (Z.byte(), 4, "replicate", TypeError, "`images`: expected a floating-point dtype"),
        (Z[..., :0], 4, "replicate", ValueError, r"`images`: expected at least one pixel, got \(1, 2, 3, 0\)"),
        (Z, 0, "replicate", ValueError, r"`multiple\[0\]`: expected at least 1, got 0"),
        (Z, (4, 1.5), "replicate", TypeError, r"`multiple\[1\]`: expected an int, got float"),
        (Z, 4, "reflect", ValueError, "`mode`: expected one of 'replicate', 'constant', got 'reflect'"),
    ],
)
def test_padding_raises(images, multiple, mode, error, message):
    with pytest.raises(error, match=message):
        pad_to_multiple(images, multiple, mode=mode)
