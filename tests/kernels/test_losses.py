"""The kernels of the losses against the plain path: on a CUDA device, or in the interpreter as test_kernels.py is."""

import pytest
import torch

from selftrain_seg import kernels, losses
from selftrain_seg.confidence import top_confidence
from selftrain_seg.losses._core import pixel_maps
from tests.helpers import layouts, random_logits
from tests.kernels.test_kernels import DEVICE, forbid, moved, plain, pytestmark, switched_on, views  # noqa: F401
from tests.losses.cases import losses_where, make_labels, make_map, make_soft, variants

KINDS = ("nll", "kld", "entropy", "square", "ignored_entropy")
SHAPE = (2, 4, 3, 5)
with_a_kernel = losses_where(lambda case: case.name not in ("negative_loss", "fairness_loss"))


def targets(logits):
    """Hard labels, and soft ones that do not sum to 1, on the device under test."""
    soft = make_soft(logits.shape) * (0.1 + make_map(logits.shape)).unsqueeze(1)
    return make_labels(logits.shape).to(DEVICE), soft.to(DEVICE, torch.float32)


def maps_and_gradient(logits, target, kinds=KINDS, ignore_index=255, seed=0):
    leaf = logits.detach().requires_grad_()
    valid, *maps = pixel_maps(leaf, target, *kinds, ignore_index=ignore_index)
    generator = torch.Generator().manual_seed(seed)
    grads = [torch.randn(m.shape, generator=generator).to(DEVICE) for m in maps]
    (gradient,) = torch.autograd.grad(maps, leaf, grads)
    return valid, [m.detach() for m in maps], gradient


def compare(logits, target, kinds=KINDS, **settings):
    assert kernels.chosen(logits)
    valid, maps, gradient = maps_and_gradient(logits, target, kinds, **settings)
    expected_valid, expected_maps, expected_gradient = plain(maps_and_gradient, logits, target, kinds, **settings)
    assert torch.equal(valid, expected_valid)
    for kind, mine, expected in zip(kinds, maps, expected_maps, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5, equal_nan=True, msg=lambda m, k=kind: k + m)
    assert gradient.stride() == expected_gradient.stride()
    one_rounding = 2 * torch.finfo(gradient.dtype).eps
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4 + one_rounding, atol=2e-5, equal_nan=True)


@with_a_kernel
def test_every_loss_and_setting(case, monkeypatch):
    logits, *rest = (tensor.to(DEVICE) for tensor in case.inputs(SHAPE, torch.float32))
    every = list(variants(case, SHAPE))
    for settings in every[:3] + every[5::3]:  # each reduction, and each argument with the mean
        tensors = {name: v.to(DEVICE) for name, v in settings.items() if isinstance(v, torch.Tensor)}
        learnt = [v.requires_grad_() for v in tensors.values() if v.is_floating_point()]

        def both(settings=settings | tensors, learnt=learnt):
            leaf = logits.clone().requires_grad_()
            loss = case.function(leaf, *rest, **settings)
            return loss.detach(), torch.autograd.grad(loss.sum(), [leaf, *learnt])

        mine, expected = both(), plain(both)
        torch.testing.assert_close(mine, expected, rtol=2e-5, atol=1e-6)
    forbid(monkeypatch)
    with pytest.raises(AssertionError, match="a kernel was launched"):
        case.function(logits, *rest, **case.settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("classes", [1, 2, 19, 150, 256])
def test_classes_and_dtypes(classes, dtype):
    logits = random_logits(1, classes, 3, 7).to(DEVICE, dtype)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        for target in targets(logits):
            compare(logits.contiguous(memory_format=memory_format), target, ignore_index=-1 if classes == 256 else 255)


@pytest.mark.parametrize("name", views())
def test_views(name):
    logits = moved(views()[name][:1])
    for target in targets(logits):
        compare(logits, target)


def test_layouts_of_logits_and_labels():
    logits, soft = random_logits(1, 5, 5, 9), make_soft((1, 5, 5, 9), dtype=torch.float32)
    for first in layouts(logits).values():
        compare(moved(first), moved(soft), ("nll", "kld"))
    for second in layouts(soft).values():
        compare(moved(logits.contiguous(memory_format=torch.channels_last)), moved(second), ("nll", "kld"))
    labels = make_labels((4, 5, 12, 18)).to(DEVICE)
    compare(logits.to(DEVICE), labels[3:, 1:6, ::2], ("nll", "entropy"))
    compare(logits.to(DEVICE), labels[:1, :1, :9].expand(-1, 5, -1), ("nll", "square"))


@pytest.mark.parametrize("kinds", [*((kind,) for kind in KINDS), ("square", "nll"), ("nll", "kld", "ignored_entropy")])
def test_kinds(kinds):
    logits = random_logits(1, 5, 3, 41).to(DEVICE)
    for target in targets(logits):
        compare(logits, target, kinds)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_label_dtypes(dtype):
    logits = random_logits(1, 5, 3, 7).to(DEVICE)
    for ignore_index in {0, torch.iinfo(dtype).min, min(255, torch.iinfo(dtype).max)}:
        labels = make_labels(logits.shape, ignore_index=ignore_index).to(DEVICE, dtype)
        compare(logits, labels, ("nll", "kld"), ignore_index=ignore_index)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_soft_label_dtypes(dtype):
    logits = random_logits(1, 5, 3, 7).to(DEVICE)
    compare(logits, make_soft(logits.shape, dtype=dtype).to(DEVICE), ("nll", "kld"))


def test_uint8_labels_are_not_compared_as_uint8():
    """As uint8 an ignore_index of -100 would be 156, here a class like any other."""
    logits = random_logits(1, 200, 2, 3).to(DEVICE)
    compare(logits, torch.full((1, 2, 3), 156, dtype=torch.uint8, device=DEVICE), ("nll",), ignore_index=-100)


@pytest.mark.parametrize("kinds", [KINDS, ("nll", "kld"), ("nll", "entropy"), ("ignored_entropy",)])
@pytest.mark.parametrize("classes", [1, 2, 5])
def test_specials(classes, kinds):
    """Every pair of awkward values, one pair a pixel, at a labelled and at an ignored pixel."""
    awkward = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, 80.0, -80.0, 1.0])
    logits = random_logits(2, classes, 7, 7)
    for row, channel in zip(torch.cartesian_prod(awkward, awkward).T.reshape(2, 7, 7), (0, classes - 1), strict=True):
        logits[:, channel] = row
    labels = torch.tensor([0, 255], device=DEVICE)[:, None, None].expand(2, 7, 7)
    soft = torch.zeros(2, classes, 7, 7, device=DEVICE)
    soft[0] = 1 / classes
    for target in (labels, soft):
        compare(logits.to(DEVICE), target, kinds)


def test_labels_out_of_range_are_nan_not_memory():
    logits = random_logits(1, 5, 1, 4).to(DEVICE).requires_grad_()
    for dtype in (torch.int64, torch.int32):
        labels = torch.tensor([[[5, -7, 2, 2**31 - 1]]], device=DEVICE, dtype=dtype)
        loss = losses.mrkld_loss(logits, labels, reduction="none")
        assert loss.isnan().tolist() == [[[True, True, False, True]]]
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert gradient.isnan().all(1).tolist() == [[[True, True, False, True]]]


@pytest.mark.parametrize("shape", [(0, 4, 3, 5), (2, 4, 0, 5), (2, 4, 3, 0)])
def test_no_pixels(shape):
    logits = torch.zeros(shape, device=DEVICE, requires_grad=True)
    for target in targets(logits):
        loss = losses.mrkld_loss(logits, target)
        assert loss == 0
        assert torch.autograd.grad(loss, logits)[0].shape == shape


def test_nothing_valid_is_a_connected_zero():
    logits = torch.full((1, 4, 3, 5), torch.nan, device=DEVICE, requires_grad=True)
    for target in (torch.full((1, 3, 5), 255, device=DEVICE), torch.zeros(1, 4, 3, 5, device=DEVICE)):
        loss = losses.mrent_loss(logits, target)
        assert loss == 0
        assert not torch.autograd.grad(loss, logits)[0].any()


def test_one_gradient_for_all_pixels_is_read_as_one():
    logits = random_logits(2, 5, 7, 9).to(DEVICE).requires_grad_()
    _, nll, kld, square = pixel_maps(logits, targets(logits)[0], "nll", "kld", "square")
    one = torch.tensor(0.3, device=DEVICE).expand_as(nll)
    rows = torch.linspace(0, 1, 9, device=DEVICE).expand_as(nll)
    for grads in ([one, one, one], [one, rows, one.contiguous()]):
        (gradient,) = torch.autograd.grad((nll, kld, square), logits, grads, retain_graph=True)
        dense = [grad.contiguous() for grad in grads]
        (expected,) = torch.autograd.grad((nll, kld, square), logits, dense, retain_graph=True)
        assert torch.equal(gradient, expected)


def test_derivatives_of_derivatives_take_the_plain_path():
    logits, labels = random_logits(1, 4, 2, 3).to(DEVICE).requires_grad_(), make_labels((1, 4, 2, 3)).to(DEVICE)

    def second():
        loss = losses.mrent_loss(logits, labels)
        (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
        return gradient, torch.autograd.grad(gradient.square().sum(), logits)[0]

    torch.testing.assert_close(second(), plain(second), rtol=1e-4, atol=1e-6)


def test_transforms():
    logits, labels = random_logits(3, 4, 2, 3).to(DEVICE), make_labels((3, 4, 2, 3)).to(DEVICE)
    leaf = logits.clone().requires_grad_()
    (expected,) = torch.autograd.grad(losses.mrl2_loss(leaf, labels), leaf)
    torch.testing.assert_close(torch.func.grad(lambda z: losses.mrl2_loss(z, labels))(logits), expected)

    def alone(z, y):
        return losses.mrl2_loss(z[None], y[None])

    mapped = torch.func.vmap(alone)(logits, labels)
    torch.testing.assert_close(mapped, torch.stack([alone(z, y) for z, y in zip(logits, labels, strict=True)]))
    gradients = torch.func.vmap(torch.func.grad(alone))(logits, labels)
    torch.testing.assert_close(gradients[1], torch.func.grad(alone)(logits[1], labels[1]))
    # A wrapped tensor has no memory for a kernel to read.
    sums = torch.func.grad(lambda z: (z * top_confidence(z).labels.unsqueeze(1)).sum())(logits)
    assert torch.equal(sums, top_confidence(logits).labels.unsqueeze(1).expand_as(sums).float())


def test_compiled_losses_take_the_plain_path(monkeypatch):
    forbid(monkeypatch)
    logits, labels = random_logits(1, 5, 4, 4).to(DEVICE).requires_grad_(), make_labels((1, 5, 4, 4)).to(DEVICE)
    torch._dynamo.reset()
    loss = torch.compile(losses.mrkld_loss, fullgraph=True, backend="aot_eager")(logits, labels)
    (gradient,) = torch.autograd.grad(loss, logits)
    expected = plain(losses.mrkld_loss, logits, labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, plain(torch.autograd.grad, expected, logits)[0])


def test_nothing_mutated_and_the_same_again():
    logits = random_logits(1, 19, 5, 33).to(DEVICE)
    for target in targets(logits):
        before, labels = logits.clone(), target.clone()
        first, second = (maps_and_gradient(logits, target) for _ in range(2))
        assert torch.equal(logits, before)
        assert torch.equal(target, labels)
        assert all(map(torch.equal, first[1], second[1]))
        assert torch.equal(first[2], second[2])
