"""The fused operator against the loss in plain torch, in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from selftrain_seg import ops
from selftrain_seg.ops import _blocks
from tests.helpers import layouts
from tests.losses.cases import classes, make_labels, make_logits, make_map, make_soft

SHAPE = (3, 4, 5, 7)
REGULARISERS = ("", "kld", "entropy", "square", "reverse")
FACTORS = [
    (1.0, 0.0, 0.0),
    (0.7, 0.3, 0.0),
    (0.7, -0.3, 0.4),
    (0.0, 0.5, 0.0),
    (0.0, 0.0, 2.0),
    (1.0, 0.0, 0.5),
    (0.0, 0.0, 0.0),
]
NORMALIZE = ("labelled", "all", "weights", "sum", "none")
TOLERANCE = 2e-6  # of the largest; float32 has 6e-8


def pixel_weight(shape) -> Tensor:
    weight = make_map(shape).float()
    return weight.masked_fill(make_map(shape, seed=8) < 0.2, 0)


def image_weight(shape) -> Tensor:
    return torch.tensor([0.5, 0.0, 2.0])[torch.arange(shape[0]) % 3]


def class_weight(shape) -> Tensor:
    return classes(shape).float().index_fill(0, torch.tensor(shape[1] - 1), 0)


WEIGHTS = {
    "none": {},
    "pixel": {"pixel_weight": pixel_weight},
    "image": {"image_weight": image_weight},
    "class": {"class_weight": class_weight},
    "exponent": {"exponent": lambda shape: torch.tensor([2.5, 0.0, 0.5])[torch.arange(shape[0]) % 3]},
    "exponents": {"exponent": lambda shape: 3 * make_map(shape, seed=9).float()},
    "pixel-image": {"pixel_weight": pixel_weight, "image_weight": image_weight},
    "divisor": {"divisor": lambda shape: torch.tensor(7)},
    "all": {
        "pixel_weight": pixel_weight,
        "image_weight": image_weight,
        "class_weight": class_weight,
        "exponent": lambda shape: 3 * make_map(shape, seed=9).float(),
        "divisor": lambda shape: torch.tensor(3.5),
    },
}
FOR_HARD_LABELS = ("class_weight", "exponent")


def weights(name, shape) -> dict[str, Tensor]:
    return {key: make(shape) for key, make in WEIGHTS[name].items()}


def plain(
    logits,
    target,
    *,
    pixel_weight=None,
    image_weight=None,
    class_weight=None,
    exponent=None,
    divisor=None,
    regulariser="",
    factors=(1.0, 0.0, 0.0),
    normalize="labelled",
    ignore_index=255,
):
    tensors = (pixel_weight, image_weight, class_weight, exponent, divisor)
    return ops.plain_loss(logits, target, *tensors, regulariser, factors, normalize, ignore_index)


def upstream(loss) -> Tensor:
    """A gradient that is not 1: with negative values and zeros, for a map."""
    if not loss.ndim:
        return torch.tensor(-1.7, dtype=loss.dtype)
    values = make_logits((loss.shape[0], 1, *loss.shape[1:]), torch.float32, seed=11)[:, 0]
    return values.masked_fill(make_map((loss.shape[0], 1, *loss.shape[1:]), seed=12) < 0.1, 0).to(loss.dtype)


def fused(logits, target, **options) -> tuple[Tensor, Tensor]:
    leaf = logits.detach().requires_grad_()
    loss = ops.weighted_loss(leaf, target, **{"ignore_index": 255, **options})
    assert "weighted_loss" in loss.grad_fn.name()
    (gradient,) = torch.autograd.grad(loss, leaf, upstream(loss))
    return loss.detach(), gradient


def exactly(logits, target, **options) -> tuple[Tensor, Tensor]:
    leaf = logits.detach().double().requires_grad_()
    loss = plain(leaf, target, **options)
    (gradient,) = torch.autograd.grad(loss, leaf, upstream(loss))
    return loss.detach(), gradient


def assert_right(logits, target, *, rounding=0.0, smallest=0.0, **options):
    """Value and gradient are those of float64, to the rounding of float32 and of the gradient's dtype."""
    loss, gradient = fused(logits, target, **options)
    expected, expected_gradient = exactly(logits, target, **options)
    assert loss.dtype == torch.float32
    assert gradient.dtype == logits.dtype
    size = plain(logits.double(), target, **{**options, "factors": [abs(f) for f in options.get("factors", (1, 0, 0))]})
    largest = size.abs().max().item() if size.numel() else 0.0
    torch.testing.assert_close(
        loss.double(), expected, rtol=0, atol=TOLERANCE * largest, msg=lambda m: f"{options}: {m}"
    )
    largest = expected_gradient.abs().max().item() if logits.numel() else 0.0
    atol = TOLERANCE * largest + smallest
    torch.testing.assert_close(
        gradient.double(), expected_gradient, rtol=rounding, atol=atol, msg=lambda m: f"{options}: {m}"
    )


def every(*, hard: bool):
    """Every regulariser with every choice of factors, each with every divisor."""
    kinds = REGULARISERS if hard else REGULARISERS[:-1]
    for kind, factors, normalize in itertools.product(kinds, FACTORS, NORMALIZE):
        if kind or not factors[1]:
            yield {"regulariser": kind, "factors": factors, "normalize": normalize}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("target", ["hard", "soft"])
def test_equals_plain(name, target):
    logits = make_logits(SHAPE, torch.float32)
    given = weights(name, SHAPE)
    if target == "soft":
        given = {key: value for key, value in given.items() if key not in FOR_HARD_LABELS}
        if not given and name != "none":
            pytest.skip("for hard labels only")
    labels = make_labels(SHAPE) if target == "hard" else 0.7 * make_soft(SHAPE, dtype=torch.float32)
    for options in every(hard=target == "hard"):
        assert_right(logits, labels, **given, **options)


SEVERAL_BLOCKS = (2, 5, 70, 300)
SOME = [
    {"factors": (1.0, 0.0, 0.0)},
    {"regulariser": "kld", "factors": (1.0, 0.1, 3.0)},
    {"regulariser": "entropy", "factors": (0.5, -0.2, 0.3)},
    {"regulariser": "square", "factors": (0.5, 0.2, 0.3), "normalize": "none"},
    {"regulariser": "reverse", "factors": (0.1, 4.0, 0.0), "normalize": "weights"},
]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [SEVERAL_BLOCKS, (1, 3, 131, 257), (7, 2, 1, 1), (5, 19, 3, 11)])
def test_layouts_dtypes_and_sizes(layout, dtype, shape):
    # Half a unit in the last place, where the gradient is stored.
    rounding = {"float32": (0, 0), "bfloat16": (2**-8, 0), "float16": (2**-10, 2**-24)}[str(dtype)[6:]]
    logits = layouts(make_logits(shape, dtype))[layout]
    soft = layouts(make_soft(shape, dtype=torch.float32))[layout]
    labels = make_labels(shape)
    given = {"pixel_weight": pixel_weight(shape).transpose(1, 2).contiguous().transpose(1, 2)}
    for options in SOME:
        options = {"normalize": "sum", **given, **options, "rounding": rounding[0], "smallest": rounding[1]}
        assert_right(logits, labels, **options, image_weight=image_weight(shape), class_weight=class_weight(shape))
        if options.get("regulariser") != "reverse":
            assert_right(logits, soft, **options)
    _, gradient = fused(logits, labels)
    assert gradient.stride() == torch.empty_like(logits).stride()


@pytest.mark.parametrize("pixels", [1, 7, 21])
def test_blocks_make_no_difference(monkeypatch, pixels):
    logits, labels, soft = make_logits(SHAPE, torch.float32), make_labels(SHAPE), make_soft(SHAPE, dtype=torch.float32)
    given = weights("all", SHAPE)
    del given["divisor"]
    monkeypatch.setattr(_blocks, "_CPU_BLOCK_PIXELS", pixels)
    assert len(list(_blocks.blocks(logits))) > 3
    for options in SOME:
        assert_right(logits, labels, **given, **options)
        if options.get("regulariser") != "reverse":
            assert_right(logits, soft, **options)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_label_dtypes(dtype):
    logits, labels = make_logits(SHAPE, torch.float32), make_labels(SHAPE)
    for ignore_index in (255, 0, -100):
        again = labels.where(labels != 255, 0) if ignore_index == 0 else labels
        again = again.where(again != 255, 1) if ignore_index == -100 else again
        reference = fused(logits, again, ignore_index=ignore_index)
        assert all(map(torch.equal, fused(logits, again.to(dtype), ignore_index=ignore_index), reference))


@pytest.mark.parametrize("name", [name for name in WEIGHTS if name not in ("none", "divisor")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_another_dtype(name, dtype):
    logits, labels = make_logits(SHAPE, torch.float32), make_labels(SHAPE)
    given = {
        key: value.to(dtype) if value.is_floating_point() else value for key, value in weights(name, SHAPE).items()
    }
    for options in SOME:
        assert_right(logits, labels, **given, **options)


def test_weights_may_be_integers_or_bool():
    logits, labels = make_logits(SHAPE, torch.float32), make_labels(SHAPE)
    mask = make_map(SHAPE) < 0.5
    for options in SOME:
        reference = fused(logits, labels, pixel_weight=mask.float(), **options)
        for weight in (mask, mask.int()):
            assert all(map(torch.equal, fused(logits, labels, pixel_weight=weight, **options), reference))


def test_parts_add_up():
    logits, labels = make_logits(SHAPE, torch.float32), make_labels(SHAPE)
    given = weights("all", SHAPE)
    for kind, normalize in itertools.product(REGULARISERS[1:], NORMALIZE):
        options = {"regulariser": kind, "normalize": normalize, **given}
        alone = [fused(logits, labels, factors=factors, **options) for factors in torch.eye(3).tolist()]
        total, gradient = fused(logits, labels, factors=(0.5, -2.0, 3.0), **options)
        for ours, parts in ((total, [loss for loss, _ in alone]), (gradient, [part for _, part in alone])):
            expected = sum(factor * part for factor, part in zip((0.5, -2.0, 3.0), parts, strict=True))
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6 * expected.abs().max().item())
        if normalize == "none":
            region = labels == 255
            assert (alone[2][0][~region] == 0).all()
            assert all((part[0][region] == 0).all() for part in alone[:2])


@pytest.mark.parametrize("factors", [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parts_with_factor_0_are_left_out(factors, dtype):
    # -inf for a class makes the divergence from uniform infinite, and NaN for labelled pixels spoils what looks.
    logits, labels = make_logits(SHAPE, dtype), make_labels(SHAPE)
    labels = labels.where(labels != 3, 0)
    logits[:, 3] = -torch.inf
    for normalize in NORMALIZE:
        options = {"regulariser": "kld", "factors": factors, "normalize": normalize, "ignore_index": 255}
        leaf = logits.clone().requires_grad_()
        loss = ops.weighted_loss(leaf, labels, **options)
        assert loss.shape == ((3, 5, 7) if normalize == "none" else ())
        (gradient,) = torch.autograd.grad(loss, leaf, upstream(loss))
        assert loss.isfinite().all()
        assert gradient.isfinite().all()
        if not any(factors):
            assert not loss.any()
            assert not gradient.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("shape", [SHAPE, SEVERAL_BLOCKS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_looked_at(bad, shape, dtype):
    logits, labels, soft = make_logits(shape, dtype), make_labels(shape), make_soft(shape, dtype=torch.float32)
    labels = labels.where(labels != 0, 255)  # so the weight of class 0, at which ignored pixels might look, is not used
    away = {3: labels == 255, 4: soft.sum(1) == 0}
    for options, target in itertools.product(SOME, (labels, soft)):
        if target.ndim == 4 and options.get("regulariser") == "reverse":
            continue
        options = {**options, "factors": (*options["factors"][:2], 0.0), "image_weight": image_weight(shape)}
        clean, spoilt = ({"pixel_weight": pixel_weight(shape)} for _ in range(2))
        if target.ndim == 3:
            for given in (clean, spoilt):
                given.update(class_weight=class_weight(shape), exponent=3 * make_map(shape, seed=9).float())
            spoilt["class_weight"] = clean["class_weight"].index_fill(0, torch.tensor(0), bad)
            spoilt["exponent"] = clean["exponent"].masked_fill(away[3], bad)
        spoilt["pixel_weight"] = clean["pixel_weight"].masked_fill(away[target.ndim], bad)
        everywhere = logits.masked_fill(away[target.ndim].unsqueeze(1), bad)
        one_class = logits.clone()
        one_class[:, 1].masked_fill_(away[target.ndim], bad)
        expected = fused(logits, target, **clean, **options)
        for other in (everywhere, one_class):
            assert all(map(torch.equal, fused(other, target, **spoilt, **options), expected))
        assert all(tensor.isfinite().all() for tensor in expected)
        # Nor is the gradient from above.
        options = {**options, "normalize": "none", "ignore_index": 255}
        loss = ops.weighted_loss(leaf := everywhere.requires_grad_(), target, **spoilt, **options)
        grad = torch.ones_like(loss).masked_fill(away[target.ndim], bad)
        (gradient,) = torch.autograd.grad(loss, leaf, grad)
        assert gradient.isfinite().all()
        assert not (gradient * away[target.ndim].unsqueeze(1)).any()


def test_regularised_images_only():
    # What an image that opts out would add is infinite.
    logits, labels = make_logits(SHAPE, torch.float32), make_labels(SHAPE)
    logits[1, 3], labels[1] = -torch.inf, labels[1].where(labels[1] != 3, 0)
    for normalize in NORMALIZE:
        options = {"regulariser": "kld", "factors": (1.0, 0.5, 0.0), "normalize": normalize}
        assert not fused(logits, labels, **options)[0].isfinite().all()
        assert_right(logits, labels, image_weight=image_weight(SHAPE), **options)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_counts_is_not_hidden(bad):
    logits = make_logits((1, 4, 2, 3), torch.float32)
    labels = torch.full((1, 2, 3), 255)
    labels[0, 1, 1] = 2
    soft = torch.zeros(1, 4, 2, 3)
    soft[0, :, 1, 1] = 0.25
    logits[0, 2, 1, 1] = bad
    for options, target in itertools.product(SOME, (labels, soft)):
        if target.ndim == 4 and options.get("regulariser") == "reverse":
            continue
        loss, gradient = fused(logits, target, **options)
        assert loss.isnan().any()
        assert gradient[0, :, 1, 1].isnan().all()
    # An ignored pixel that has a part in the entropy.
    loss, gradient = fused(logits, torch.full((1, 2, 3), 255), factors=(1.0, 0.0, 1.0))
    assert loss.isnan()
    assert gradient[0, :, 1, 1].isnan().all()
    # A weight.
    weight = torch.ones(1, 2, 3)
    weight[0, 1, 1] = torch.nan
    loss, gradient = fused(make_logits((1, 4, 2, 3), torch.float32), labels, pixel_weight=weight)
    assert loss.isnan()
    assert gradient[0, :, 1, 1].isnan().all()


@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("shape", [SHAPE, (0, 4, 5, 7), (2, 4, 0, 5), (2, 4, 3, 0)])
def test_nothing_labelled(normalize, shape):
    logits = make_logits(shape, torch.float32)
    for target in (torch.full((shape[0], *shape[2:]), 255), torch.zeros(shape)):
        for kind in REGULARISERS:
            options = {"regulariser": kind, "factors": (1.0, 1.0, 0.0), "normalize": normalize}
            for given in ({}, {"divisor": torch.tensor(0)}, {"class_weight": class_weight(shape)}):
                loss, gradient = fused(logits, target, **options, **given)
                assert loss.shape == ((shape[0], *shape[2:]) if normalize == "none" else ())
                assert gradient.shape == shape
                assert not loss.any()
                assert not gradient.any()


def test_divisors():
    logits, labels = make_logits(SHAPE, torch.float32), make_labels(SHAPE)
    total, gradient = fused(logits, labels, normalize="sum")
    for count in (1, 3, 2**24 + 1, 2**40):
        for divisor in (torch.tensor(count), torch.tensor(float(count), dtype=torch.float64)):
            loss, part = fused(logits, labels, divisor=divisor, normalize="all")
            torch.testing.assert_close(loss, (total.double() / count).float(), rtol=3e-7, atol=0)
            expected = gradient.double() / count
            torch.testing.assert_close(part.double(), expected, rtol=0, atol=3e-7 * expected.abs().max().item())
            assert_right(logits, labels, divisor=divisor)
    zero = fused(logits, labels, divisor=torch.tensor(0))
    torch.testing.assert_close(zero, (total, gradient))
    # Class weights that add up to 0 divide by 1.
    nothing = fused(logits, labels, class_weight=torch.zeros(4), normalize="weights")
    assert not any(tensor.any() for tensor in nothing)
    # A map is what is summed, not divided.
    each = fused(logits, labels, normalize="none")
    assert all(map(torch.equal, fused(logits, labels, normalize="none", divisor=torch.tensor(7)), each))


def test_one_class():
    shape = (2, 1, 3, 5)
    logits = make_logits(shape, torch.float32)
    for options in every(hard=True):
        loss, gradient = fused(logits, make_labels(shape), **options)
        assert loss.isfinite().all()
        assert gradient.abs().max() <= 1e-6  # p - 1 = 0, but p is multiplied by a sum of weights, 1 by each


@pytest.mark.parametrize("offset", [0.0, 1000.0, -1000.0, 30000.0])
@pytest.mark.parametrize("scale", [0.0, 1.0, 12.0, 80.0])
def test_large_logits(offset, scale):
    # Next to 1000 the digits of a small loss are lost, unless the largest logit is taken off first.
    logits = offset + (scale * make_logits(SHAPE, torch.float32).sign() + make_logits(SHAPE, torch.float32, seed=3) / 4)
    labels, soft = make_labels(SHAPE), make_soft(SHAPE, dtype=torch.float32)
    for options in SOME:
        assert_right(logits, labels, **options, exponent=torch.tensor([2.0, 0.0, 9.0]))
        if options.get("regulariser") != "reverse":
            assert_right(logits, soft, **options)


def test_confident_pixels_do_not_cancel():
    logits = torch.tensor([1000.0, 988.0]).reshape(1, 2, 1, 1)
    loss, gradient = fused(logits, torch.zeros(1, 1, 1, dtype=torch.int64))
    small = torch.tensor(6.1442e-6)  # ln(1 + e^-12)
    torch.testing.assert_close(loss, small, rtol=1e-2, atol=0)
    expected = -1.7 * torch.tensor([-1, 1]).reshape(1, 2, 1, 1) * small
    torch.testing.assert_close(gradient, expected, rtol=1e-2, atol=0)  # p - 1 in float32


@pytest.mark.parametrize("kind", REGULARISERS)
@pytest.mark.parametrize("normalize", ["labelled", "none"])
def test_higher_derivatives(kind, normalize):
    shape = (2, 3, 2, 2)
    labels = make_labels(shape)
    options = {"regulariser": kind, "factors": (1.0, 0.3, 0.2), "normalize": normalize}
    options["factors"] = options["factors"] if kind else (1.0, 0.0, 0.2)
    options["pixel_weight"] = make_map(shape)
    directions = [make_logits(shape, seed=20 + order) for order in range(3)]

    def derivatives(logits, function):
        """Of the loss, of its derivative along a direction, and of the derivative of that."""
        value, found = function(logits, labels, **options), []
        value = (value * upstream(value)).sum()
        for direction in directions:
            (gradient,) = torch.autograd.grad(value, logits, create_graph=True)
            found.append(gradient.detach().double())
            value = (gradient * direction.to(gradient.dtype)).sum()
        return found

    logits = make_logits(shape, torch.float32).requires_grad_()
    ours = derivatives(logits, lambda *args, **kwargs: ops.weighted_loss(*args, **kwargs, ignore_index=255))
    exact = derivatives(logits.detach().double().requires_grad_(), plain)
    for order, (one, other) in enumerate(zip(ours, exact, strict=True)):
        torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCE * 4**order * other.abs().max().item())

    def loss(z):
        return ops.weighted_loss(z, labels, **options, ignore_index=255)

    assert torch.autograd.gradcheck(loss, logits.detach().double().requires_grad_())
    assert torch.autograd.gradgradcheck(loss, logits.detach().double().requires_grad_())


@pytest.mark.parametrize("name", ["pixel_weight", "image_weight", "exponent"])
def test_weights_that_learn(name):
    logits, labels = make_logits(SHAPE, torch.float32).requires_grad_(), make_labels(SHAPE)
    given = weights("all", SHAPE)
    given[name].requires_grad_()
    options = {"regulariser": "kld", "factors": (1.0, 0.3, 0.2)}
    loss = ops.weighted_loss(logits, labels, **given, **options, ignore_index=255)
    assert loss.dtype == torch.float32
    ours = torch.autograd.grad(loss, (logits, given[name]))
    exact = {key: value.detach().double() for key, value in given.items()}
    leaf = logits.detach().double().requires_grad_()
    exact[name].requires_grad_()
    expected = torch.autograd.grad(plain(leaf, labels, **exact, **options), (leaf, exact[name]))
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=TOLERANCE * other.abs().max().item())


def test_what_never_learns():
    logits, soft = make_logits(SHAPE, torch.float32).requires_grad_(), make_soft(SHAPE).requires_grad_()
    weight = classes(SHAPE).requires_grad_()
    ops.weighted_loss(logits, soft).backward()
    ops.weighted_loss(logits, make_labels(SHAPE), class_weight=weight, ignore_index=255).backward()
    assert soft.grad is None
    assert weight.grad is None


def test_inputs_are_not_changed():
    for layout in ("contiguous", "channels_last", "strided"):
        logits = layouts(make_logits(SHAPE, torch.float32))[layout].requires_grad_()
        for target in (make_labels(SHAPE), make_soft(SHAPE, dtype=torch.float32)):
            for options in SOME[: -1 if target.ndim == 4 else None]:
                given = weights("all" if target.ndim == 3 else "pixel-image", SHAPE)
                grad = upstream(torch.zeros(3, 5, 7))
                tensors = [logits, target, grad, *given.values()]
                before = [tensor.detach().clone() for tensor in tensors]
                loss = ops.weighted_loss(logits, target, **given, **{**options, "normalize": "none"}, ignore_index=255)
                loss.backward(grad)
                assert all(map(torch.equal, tensors, before))


def arguments(shape, dtype, layout, target, options):
    logits = layouts(make_logits(shape, dtype))[layout]
    given = weights("all" if target == "hard" else "pixel-image", shape) if options.pop("weighted", True) else {}
    labels = make_labels(shape) if target == "hard" else make_soft(shape, dtype=torch.float32)
    names = ("pixel_weight", "image_weight", "class_weight", "exponent", "divisor")
    settings = {"regulariser": "", "factors": (1.0, 0.0, 0.0), "normalize": "labelled", **options}
    tensors = (logits, labels, *(given.get(name) for name in names))
    numbers = torch.tensor(settings["factors"], dtype=torch.float64)
    return (*tensors, numbers), settings["regulariser"], numbers.bool().tolist(), settings["normalize"]


OPTIONS = [
    {"weighted": False},
    {"weighted": False, "normalize": "all"},
    {"regulariser": "kld", "factors": (1.0, 0.1, 3.0), "normalize": "weights"},
    {"regulariser": "entropy", "factors": (1.0, -0.1, 0.0), "normalize": "none"},
    {"regulariser": "square", "factors": (0.0, 0.1, 0.5), "normalize": "sum"},
    {"regulariser": "reverse", "factors": (0.1, 4.0, 0.0), "weighted": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options.get("regulariser", "nll"))
@pytest.mark.parametrize("target", ["hard", "soft"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operators_are_as_the_compiler_expects(options, target, layout, dtype):
    if target == "soft" and options.get("regulariser") == "reverse":
        pytest.skip("for hard labels only")
    tensors, *settings, normalize = arguments((2, 4, 3, 5), dtype, layout, target, dict(options))
    logits, *rest = tensors
    operators = torch.ops.selftrain_seg
    torch.library.opcheck(operators.weighted_loss, (logits.requires_grad_(), *rest, *settings, normalize, 255))
    with torch.no_grad():
        loss, *saved = operators.weighted_loss(logits, *rest, *settings, normalize, 255)
    grad = torch.rand_like(loss)
    inputs = (grad, logits.detach(), *rest[:-2], *saved, *settings, 255)
    torch.library.opcheck(operators.weighted_loss_backward, inputs)
