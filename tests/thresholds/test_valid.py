"""`valid` in the estimators: pixels where it is False are not counted, as if they did not exist."""

import numpy as np
import pytest
import torch

from selftrain_seg.thresholds import ClassBalancedThreshold, GlobalThreshold
from tests.helpers import layouts, random_logits
from tests.oracles import selection as oracle

BOTH = pytest.mark.parametrize("estimator", [ClassBalancedThreshold, GlobalThreshold])


def batches(shape=(3, 4, 9, 7)):
    for seed in range(2):
        valid = torch.rand(shape[0], *shape[2:], generator=torch.Generator().manual_seed(10 + seed)) < 0.5
        valid[1] = False
        yield random_logits(*shape, seed=seed), valid


def estimate(estimator, pairs, **options):
    kc = estimator(4, 0.3, **options)
    for logits, valid in pairs:
        kc.update(logits, valid=valid)
    return kc


@BOTH
@pytest.mark.parametrize("pool", ["predicted", "all"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("with_prior", [False, True])
def test_oracle(estimator, pool, stride, with_prior):
    prior = 0.2 + 2 * torch.rand(4, 9, 7, generator=torch.Generator().manual_seed(3)) if with_prior else None
    options, pairs = {"pool": pool, "stride": stride}, list(batches())
    kc = estimate(estimator, pairs, exact=True, prior=prior, **options)
    z = np.concatenate([oracle.without(logits.numpy(), valid.numpy()) for logits, valid in pairs])
    q = None if prior is None else prior.double().numpy()
    for portion in (0.05, 0.3, 1.0):
        expected = oracle.kc(z, portion, prior=q, pooled=estimator is GlobalThreshold, **options)
        np.testing.assert_allclose(kc.compute(portion).numpy(), expected, rtol=1e-5)
    pools = oracle.pools(z, pooled=False, prior=q, **options)
    assert kc.class_counts().tolist() == [len(values) for values in pools]


@BOTH
@pytest.mark.parametrize("pool", ["predicted", "all"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided", "transposed"])
@pytest.mark.parametrize("exact", [False, True])
def test_as_if_the_logits_were_nan_in_any_layout(estimator, pool, layout, exact):
    pairs = [(layouts(logits)[layout], valid) for logits, valid in batches((3, 4, 70, 301))]
    before = [part.clone() for pair in pairs for part in pair]
    kc = estimate(estimator, pairs, pool=pool, exact=exact)
    assert all(torch.equal(a, b) for a, b in zip(before, (part for pair in pairs for part in pair), strict=True))
    nan = [(logits.masked_fill(~valid.unsqueeze(1), torch.nan), None) for logits, valid in pairs]
    expected = estimate(estimator, nan, pool=pool, exact=exact)
    assert torch.equal(kc.sketch.counts, expected.sketch.counts)
    assert torch.equal(kc.compute(), expected.compute())
    alone = [(logits.permute(0, 2, 3, 1)[valid].T.reshape(1, 4, 1, -1), None) for logits, valid in pairs]
    assert torch.equal(kc.compute(), estimate(estimator, alone, pool=pool, exact=exact).compute())
    assert not torch.equal(kc.compute(), estimate(estimator, [(p[0], None) for p in pairs], pool=pool).compute())


@BOTH
@pytest.mark.parametrize("pool", ["predicted", "all"])
@pytest.mark.parametrize("exact", [False, True])
def test_nothing_there_and_empty_batches(estimator, pool, exact):
    kc = estimator(4, 0.3, pool=pool, exact=exact)
    for shape in ((2, 4, 5, 6), (0, 4, 5, 6), (2, 4, 0, 6)):
        kc.update(torch.randn(shape), valid=torch.zeros(shape[0], *shape[2:], dtype=torch.bool))
    assert kc.class_counts().tolist() == [0] * 4
    assert kc.compute().tolist() == [1.0] * 4  # it was updated, with nothing


@BOTH
def test_errors(estimator):
    kc, logits = estimator(4, 0.3), random_logits(2, 4, 5, 6)
    for error, message, valid in [
        (ValueError, r"`valid`: expected \(B, H, W\) = \(2, 5, 6\), got \(2, 6, 5\)", torch.ones(2, 6, 5).bool()),
        (ValueError, r"`valid`: expected \(B, H, W\) = \(2, 5, 6\), got \(5, 6\)", torch.ones(5, 6).bool()),
        (TypeError, r"`valid`: expected dtype torch.bool, got torch.int64", torch.ones(2, 5, 6).long()),
        (TypeError, r"`valid`: expected a torch.Tensor, got bool", True),
        (ValueError, r"`valid`: expected device cpu, got meta", torch.ones(2, 5, 6, device="meta").bool()),
    ]:
        with pytest.raises(error, match=message):
            kc.update(logits, valid=valid)
    assert kc.updates == 0
    assert kc.class_counts().sum() == 0
