"""`valid`: pixels where it is False are neither counted nor selected, as if they did not exist."""

import numpy as np
import pytest
import torch

from selftrain_seg.selectors import (
    FlexMatchSelector,
    FreeMatchSelector,
    InstanceAdaptiveSelector,
    RunningConfidenceSelector,
    SelectionStatistics,
    SoftMatchSelector,
    select_fixed,
    select_hard,
    select_reweighted,
    select_soft,
)
from tests.helpers import layouts, random_logits
from tests.oracles import adaptive
from tests.oracles import selection as oracle

KC = torch.tensor([0.7, 0.35, 0.6, 0.2], dtype=torch.float64)
LAYOUTS = ["contiguous", "channels_last", "strided", "transposed"]

FUNCTIONS = {
    "hard": lambda z, **o: select_hard(z, KC, **o),
    "reweighted": lambda z, **o: select_reweighted(z, KC, **o),
    "soft": lambda z, **o: select_soft(z, KC, **o),
    "fixed": lambda z, **o: select_fixed(z, threshold=0.7, **o),
    "fixed, image": lambda z, **o: select_fixed(z, threshold=0.7, weigh_by="image", **o),
    "fixed, batch": lambda z, **o: select_fixed(z, threshold=0.7, weigh_by="batch", **o),
}
MODULES = {
    "freematch": lambda: FreeMatchSelector(4, momentum=0.5),
    "flexmatch": lambda: FlexMatchSelector(4, threshold=0.7, momentum=0.5),
    "softmatch": lambda: SoftMatchSelector(4, momentum=0.5),
    "softmatch, aligned": lambda: SoftMatchSelector(4, momentum=0.5, align=True),
    "running": lambda: RunningConfidenceSelector(4),
    "instance adaptive": lambda: InstanceAdaptiveSelector(4, momentum=0.5),
    "instance adaptive, batch": lambda: InstanceAdaptiveSelector(4, momentum=0.5, per="batch"),
}
SELECTORS = {**{name: lambda select=select: select for name, select in FUNCTIONS.items()}, **MODULES}
EACH = pytest.mark.parametrize("make", SELECTORS.values(), ids=SELECTORS)


def batch(shape=(3, 4, 9, 7), seed=0):
    """Logits and what of them is there: ragged, one image without anything, one with everything."""
    logits = random_logits(*shape, seed=seed)
    valid = torch.rand(shape[0], *shape[2:], generator=torch.Generator().manual_seed(10 + seed)) < 0.6
    valid[1], valid[2] = False, True
    return logits, valid


def state_of(selector):
    return selector.state_dict() if isinstance(selector, torch.nn.Module) else {}


def assert_same_where_valid(result, expected, valid):
    for name, value in result._asdict().items():
        other = getattr(expected, name)
        if value is None:
            assert other is None
        elif name == "predicted":
            assert torch.equal(value[valid], other[valid])
        else:
            assert torch.equal(value, other), name


@EACH
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_if_the_logits_were_nan(make, layout, dtype):
    one, other = make(), make()
    for seed in range(3):
        # Several blocks of rows, the last one smaller.
        logits, valid = batch((3, 4, 70, 301) if seed == 0 else (3, 4, 9, 7), seed)
        logits = layouts(logits.to(dtype))[layout]
        there = valid.transpose(1, 2).contiguous().transpose(1, 2) if layout == "transposed" else valid
        before, mask = logits.clone(), there.clone()
        result = one(logits, valid=there)
        assert torch.equal(logits, before)
        assert torch.equal(there, mask)
        nan = logits.masked_fill(~valid.unsqueeze(1), torch.nan)
        assert_same_where_valid(result, other(nan), valid)
        for name, value in state_of(one).items():
            assert torch.equal(value, state_of(other)[name]), name
        assert (result.labels[~valid] == 255).all()
        assert (result.confidence[~valid] == 0).all()
        for value in (result.pixel_weight, None if result.soft is None else result.soft.permute(0, 2, 3, 1)):
            assert value is None or (value[~valid] == 0).all()
        assert (result.labels[valid] != 255).any()


@EACH
def test_changes_the_result_and_all_true_does_not(make):
    logits, valid = batch()
    result = make()(logits)
    assert_same_where_valid(make()(logits, valid=torch.ones_like(valid)), result, torch.ones_like(valid))
    assert not torch.equal(make()(logits, valid=valid).labels, result.labels)
    assert (make()(logits, valid=valid).labels[1] == 255).all()


@pytest.mark.parametrize("name", ["hard", "reweighted", "soft", "fixed, batch", "softmatch", "freematch", "flexmatch"])
def test_the_pixels_that_remain_are_as_if_alone(name):
    """Those that are not there taken out of the tensor, for what looks at pixels one by one or at the batch."""
    one, alone = SELECTORS[name](), SELECTORS[name]()
    for seed in range(3):
        logits, valid = batch(seed=seed)
        result = one(logits, valid=valid)
        expected = alone(logits.permute(0, 2, 3, 1)[valid].T.reshape(1, 4, 1, -1))
        assert torch.equal(result.labels[valid], expected.labels.flatten())
        assert torch.equal(result.predicted[valid], expected.predicted.flatten())
        torch.testing.assert_close(result.confidence[valid], expected.confidence.flatten())
        if result.pixel_weight is not None:
            torch.testing.assert_close(result.pixel_weight[valid], expected.pixel_weight.flatten())
        for key, value in state_of(one).items():
            torch.testing.assert_close(value, state_of(alone)[key], rtol=1e-6, atol=0)


@pytest.mark.parametrize("with_prior", [False, True])
def test_functions_oracle(with_prior):
    logits, valid = batch()
    prior = 0.2 + 2 * torch.rand(4, 9, 7, generator=torch.Generator().manual_seed(2)) if with_prior else None
    z, kc, q = oracle.without(logits.numpy(), valid.numpy()), KC.numpy(), None if prior is None else prior.numpy()
    options = {"prior": prior, "valid": valid}
    assert np.array_equal(select_hard(logits, KC, **options).labels.numpy(), oracle.hard(z, kc, q))
    assert np.array_equal(select_reweighted(logits, KC, **options).labels.numpy(), oracle.reweighted(z, kc, q))
    soft = select_soft(logits, KC, alpha=0.5, **options)
    np.testing.assert_allclose(soft.soft.numpy(), oracle.soft(z, kc, 0.5, q), atol=2e-5)
    np.testing.assert_allclose(soft.confidence.numpy(), oracle.confidence(z, q)[1], rtol=1e-5)


@pytest.mark.parametrize("weigh_by", [None, "image", "batch"])
@pytest.mark.parametrize("threshold", [0.0, 0.7, 0.95, 1.0])
def test_fixed_oracle(weigh_by, threshold):
    logits, valid = batch()
    z = oracle.without(logits.numpy(), valid.numpy())
    labels, m = oracle.confidence(z)
    result = select_fixed(logits, threshold=threshold, weigh_by=weigh_by, valid=valid)
    sure = (m > 0) & ((m >= threshold) | (weigh_by is not None))
    assert np.array_equal(result.labels.numpy(), np.where(sure, labels, 255))
    if weigh_by is not None:
        np.testing.assert_allclose(
            result.pixel_weight.numpy(), adaptive.fixed_weight(z, threshold, weigh_by), rtol=1e-6
        )


def test_modules_oracle():
    free, flex, running = MODULES["freematch"](), MODULES["flexmatch"](), MODULES["running"]()
    soft, each, whole = (MODULES[name]() for name in list(MODULES)[3:] if name != "running")
    tau, sigma, mu = (0.25, np.full(4, 0.25), np.full(4, 0.25)), np.zeros(4), (0.25, 1.0, np.full(4, 0.25))
    r, seen, theta, theta_of_batches = np.full(4, 1e-3), np.zeros(4, bool), np.full(4, 0.9), np.full(4, 0.9)
    options = {"portion": 0.2, "momentum": 0.5, "gamma": 8.0}
    for seed in range(3):
        logits, valid = batch(seed=seed)
        z = oracle.without(logits.numpy(), valid.numpy())

        labels, tau = adaptive.freematch(z, tau, 0.5)
        assert np.array_equal(free(logits, valid=valid).labels.numpy(), labels)
        for value, expected in zip(
            (free.global_threshold, free.running_probs, free.running_histogram), tau, strict=True
        ):
            np.testing.assert_allclose(value.numpy(), expected, rtol=1e-6)

        labels, sigma = adaptive.flexmatch(z, sigma, 0.7, 0.5)
        assert np.array_equal(flex(logits, valid=valid).labels.numpy(), labels)
        np.testing.assert_allclose(flex.running_shares.numpy(), sigma, rtol=1e-6)

        weights, mu = adaptive.softmatch(z, mu, momentum=0.5, sigmas=2.0, align=True)
        np.testing.assert_allclose(soft(logits, valid=valid).pixel_weight.numpy(), weights, rtol=2e-4, atol=1e-7)
        for value, expected in zip((soft.mean, soft.variance, soft.running_probs), mu, strict=True):
            np.testing.assert_allclose(value.numpy(), expected, rtol=1e-5)

        labels, r, seen = adaptive.running_confidence(z, r, seen, upper=0.8, lower=0.2, beta=1e-3, momentum=0.9)
        assert np.array_equal(running(logits, valid=valid).labels.numpy(), labels)
        np.testing.assert_allclose(running.running_confidence.numpy(), r, rtol=1e-6)

        labels, theta = adaptive.instance_adaptive(z, theta, **options)
        assert np.array_equal(each(logits, valid=valid).labels.numpy(), labels)
        np.testing.assert_allclose(each.thresholds.numpy(), theta, rtol=1e-6)
        labels, theta_of_batches = adaptive.instance_adaptive(z, theta_of_batches, per="batch", **options)
        assert np.array_equal(whole(logits, valid=valid).labels.numpy(), labels)
        np.testing.assert_allclose(whole.thresholds.numpy(), theta_of_batches, rtol=1e-6)


@EACH
def test_nothing_there_and_empty_batches(make):
    selector = make()
    selector(random_logits(1, 4, 5, 5))
    before = {name: value.clone() for name, value in state_of(selector).items()}
    for shape in ((2, 4, 5, 6), (0, 4, 5, 6), (2, 4, 0, 6)):
        none = torch.zeros(shape[0], *shape[2:], dtype=torch.bool)
        result = selector(torch.randn(shape), valid=none)
        assert result.labels.shape == result.predicted.shape == none.shape
        assert (result.labels == 255).all()
        assert (result.confidence == 0).all()
        assert result.pixel_weight is None or (result.pixel_weight == 0).all()
        assert result.soft is None or ((result.soft == 0).all() and result.soft.shape == shape)
    for name, value in state_of(selector).items():
        assert torch.equal(value, before[name]), name


@EACH
def test_errors(make):
    logits = random_logits(2, 4, 5, 6)
    before = {name: value.clone() for name, value in state_of(make()).items()}
    for error, message, valid in [
        (ValueError, r"`valid`: expected \(B, H, W\) = \(2, 5, 6\), got \(2, 6, 5\)", torch.ones(2, 6, 5).bool()),
        (ValueError, r"`valid`: expected \(B, H, W\) = \(2, 5, 6\), got \(1, 5, 6\)", torch.ones(1, 5, 6).bool()),
        (ValueError, r"`valid`: expected \(B, H, W\)", torch.ones(2, 1, 5, 6).bool()),
        (TypeError, r"`valid`: expected dtype torch.bool, got torch.uint8", torch.ones(2, 5, 6).byte()),
        (TypeError, r"`valid`: expected dtype torch.bool, got torch.float32", torch.ones(2, 5, 6)),
        (TypeError, r"`valid`: expected a torch.Tensor, got list", [True]),
        (ValueError, r"`valid`: expected device cpu, got meta", torch.ones(2, 5, 6, device="meta").bool()),
    ]:
        selector = make()
        with pytest.raises(error, match=message):
            selector(logits, valid=valid)
        for name, value in state_of(selector).items():
            assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("name", FUNCTIONS)
def test_statistics_do_not_count_what_is_not_there(name):
    """By loops over what is there; the ground truth at the other pixels is wrong on purpose."""
    statistics, counts, sums = SelectionStatistics(4), np.zeros((4, 4)), np.zeros(4)
    for seed in range(3):
        logits, valid = batch(seed=seed)
        pseudo = FUNCTIONS[name](logits, valid=valid)
        target = torch.randint(0, 4, valid.shape, generator=torch.Generator().manual_seed(seed))
        target[:, 2] = 255
        statistics.update(pseudo, target.where(valid, 0))
        for b, i, j in np.argwhere(valid.numpy()):
            counts[0, logits[b, :, i, j].argmax()] += 1
            y, truth = int(pseudo.labels[b, i, j]), int(target[b, i, j])
            if y != 255:
                counts[1, y] += 1
                sums[y] += float(pseudo.confidence[b, i, j])
                counts[2, y] += truth != 255
                counts[3, y] += truth == y
    assert np.array_equal(statistics.counts.numpy(), counts)
    np.testing.assert_allclose(statistics.confidence_sums.numpy(), sums, rtol=1e-9)
    summary = statistics.compute()
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(summary.share.numpy(), counts[1] / counts[0])
        np.testing.assert_allclose(summary.precision.numpy(), counts[3] / counts[2])
