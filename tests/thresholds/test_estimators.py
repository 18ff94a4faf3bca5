import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from selftrain_seg.selectors import select_hard, select_reweighted
from selftrain_seg.thresholds import ClassBalancedThreshold, GlobalThreshold
from tests.helpers import layouts, random_logits, saturated_logits
from tests.oracles import selection as oracle

BOTH = pytest.mark.parametrize("estimator", [ClassBalancedThreshold, GlobalThreshold])


def estimate(estimator, logits, portion, prior=None, **options):
    kc = estimator(logits.shape[1], portion, prior=prior, **options)
    for batch in logits.split(1):
        kc.update(batch)
    return kc


@BOTH
@pytest.mark.parametrize("pool", ["predicted", "all"])
@pytest.mark.parametrize("rank", ["last_in", "first_out"])
@pytest.mark.parametrize("small", [None, "none", "all"])
@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("with_prior", [False, True])
def test_exact_mode_is_the_oracle_to_the_element(estimator, pool, rank, small, stride, with_prior):
    # Class 4 is never predicted and class 3 hardly ever, so every policy is met.
    logits = random_logits(2, 5, 11, 8) - torch.tensor([0.0, 0.0, 0.0, 4.0, 50.0]).view(-1, 1, 1)
    prior = 0.2 + 2 * torch.rand(5, 11, 8, generator=torch.Generator().manual_seed(3)) if with_prior else None
    options = {"pool": pool, "rank": rank, "small": small, "stride": stride}
    kc = estimate(estimator, logits, 0.3, prior, exact=True, **options)
    for portion in (0.05, 0.3, 0.77, 1.0):
        expected = oracle.kc(
            logits.double().numpy(),
            portion,
            prior=None if prior is None else prior.double().numpy(),
            pooled=estimator is GlobalThreshold,
            **options,
        )
        computed = kc.compute(portion=portion)
        assert computed.dtype == torch.float64
        assert computed.shape == (5,)
        # Scores are float32 logarithms, so a probability of e^-43 is known to 43 roundings.
        np.testing.assert_allclose(computed.numpy(), expected, rtol=1e-5)


@BOTH
def test_sketch_agrees_with_exact_to_a_bin_and_in_portion(estimator):
    logits = torch.cat([saturated_logits(seed=s) for s in range(2)])
    sketch, exact = (estimate(estimator, logits, 0.2, exact=mode) for mode in (False, True))
    size = exact.class_counts() if estimator is ClassBalancedThreshold else exact.class_counts().sum()
    for portion in (0.03, 0.2, 0.5, 0.9):
        a, b = sketch.compute(portion), exact.compute(portion)
        assert (torch.logit(a) - torch.logit(b)).abs().max() <= sketch.sketch.bin_width
        selected = [torch.bincount(labels[labels < 255], minlength=19) for labels in
                    (select_hard(logits, t).labels for t in (a, b))]  # fmt: skip
        if estimator is GlobalThreshold:
            selected = [counts.sum() for counts in selected]
        assert ((selected[0] - selected[1]).abs() / size).max() <= 5e-4 + 1 / size.min()


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 0.005), (torch.float16, 0.02), (torch.bfloat16, 0.02)]
)
@pytest.mark.parametrize("select", [select_hard, select_reweighted])
def test_saturated_classes_yield_their_portion(dtype, tolerance, select):
    logits = saturated_logits().to(dtype)
    result = select(logits, estimate(ClassBalancedThreshold, logits, 0.2).compute())
    predicted = torch.bincount(result.predicted.flatten(), minlength=19)
    saturated = torch.bincount(result.predicted[result.confidence == 1], minlength=19)
    selected = torch.bincount(result.labels[result.labels < 255], minlength=19)
    assert int((saturated / predicted > 0.6).sum()) >= 6  # else this would test nothing
    assert (predicted > 1000).all()
    assert ((selected / predicted - 0.2).abs() <= tolerance).all()


def test_portion_per_class():
    logits = random_logits(2, 3, 200, 200)
    portions = torch.tensor([0.1, 0.5, 0.9])
    thresholds = estimate(ClassBalancedThreshold, logits, portions).compute()
    result = select_hard(logits, thresholds)
    share = torch.bincount(result.labels[result.labels < 255], minlength=3) / torch.bincount(result.predicted.flatten())
    torch.testing.assert_close(share, portions, atol=2e-3, rtol=0)


@BOTH
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("pool", ["predicted", "all"])
def test_merge_of_any_split_is_one_pass_bit_for_bit(estimator, exact, pool):
    logits = random_logits(6, 4, 9, 10)
    whole = estimate(estimator, logits, 0.4, exact=exact, pool=pool)
    for split in ([0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 1, 1], [2, 0, 2, 1, 0, 2]):
        parts = [estimator(4, 0.4, exact=exact, pool=pool) for _ in range(3)]
        for image, part in enumerate(np.array(split) % 3):
            parts[part].update(logits[image : image + 1])
        for other in parts[1:]:
            parts[0].merge(other)
        assert torch.equal(parts[0].compute(), whole.compute())
        assert torch.equal(parts[0].class_counts(), whole.class_counts())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.5, 3.0, 30.0]), st.booleans())
@example(440637, 3.0, False)  # a score just below the edge of a bin
def test_a_larger_portion_never_unselects(seed, scale, exact):
    logits = random_logits(2, 3, 8, 8, scale=scale, seed=seed)
    kc = estimate(ClassBalancedThreshold, logits, 0.5, exact=exact)
    before = torch.zeros(2, 8, 8, dtype=torch.bool)
    for portion in np.linspace(0.01, 1.0, 25):
        selected = select_hard(logits, kc.compute(float(portion))).labels != 255
        assert not (before & ~selected).any()
        before = selected
    assert before.all()


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(5)), st.integers(1, 4))
def test_order_and_duplication_of_images_do_not_matter(order, copies):
    logits = random_logits(5, 3, 8, 8)
    kc = estimate(ClassBalancedThreshold, logits, 0.25)
    shuffled = estimate(ClassBalancedThreshold, logits[list(order)], 0.25)
    assert torch.equal(kc.compute(), shuffled.compute())
    repeated = estimate(ClassBalancedThreshold, logits.repeat(copies, 1, 1, 1), 0.25)
    assert torch.equal(repeated.class_counts(), copies * kc.class_counts())
    # floor(n · portion) may move by one element: at most the gap to the next lower one, here a bin or two of odds.
    exact = estimate(ClassBalancedThreshold, logits.repeat(copies, 1, 1, 1), 0.25, exact=True)
    assert ((repeated.compute().logit() - exact.compute().logit()).abs() <= kc.sketch.bin_width).all()


@BOTH
@pytest.mark.parametrize("exact", [False, True])
def test_state_dict_mid_stream(estimator, exact, tmp_path):
    logits = random_logits(4, 3, 6, 6)
    straight = estimate(estimator, logits, 0.3, exact=exact)
    first = estimate(estimator, logits[:2], 0.3, exact=exact)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    resumed = estimator(3, 0.3, exact=exact)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    resumed.update(logits[2:])
    assert torch.equal(resumed.compute(), straight.compute())
    assert torch.equal(resumed.class_counts(), straight.class_counts())


def test_memory_does_not_grow_with_images():
    kc = ClassBalancedThreshold(4, 0.2)
    size = {name: value.numel() for name, value in kc.state_dict().items()}
    assert "sketch.counts" in size
    for seed in range(3):
        kc.update(random_logits(2, 4, 16, 16, seed=seed))
        assert {name: value.numel() for name, value in kc.state_dict().items()} == size


def test_nan_pixels_are_never_counted_and_never_selected():
    logits = random_logits(1, 3, 10, 10)
    dirty = logits.clone()
    dirty[0, 1, 2, :] = float("nan")
    kc = estimate(ClassBalancedThreshold, dirty, 0.5, exact=True)
    assert kc.class_counts().sum() == 90
    for thresholds in (kc.compute(), torch.zeros(3), kc.compute(1.0)):
        for select in (select_hard, select_reweighted):
            assert (select(dirty, thresholds).labels[0, 2] == 255).all()
    clean = estimate(ClassBalancedThreshold, torch.cat([logits[:, :, :2], logits[:, :, 3:]], dim=2), 0.5, exact=True)
    assert torch.equal(kc.compute(), clean.compute())


@BOTH
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided", "transposed"])
def test_layouts(estimator, layout):
    logits = random_logits(2, 4, 70, 301)
    kc = estimator(4, 0.2, stride=2)
    kc.update(layouts(logits)[layout])
    assert torch.equal(kc.compute(), estimate(estimator, logits.contiguous(), 0.2, stride=2).compute())


def test_empty_batch_counts_as_an_update_of_nothing():
    kc = ClassBalancedThreshold(3, 0.2)
    kc.update(torch.zeros(0, 3, 8, 8))
    assert kc.compute().tolist() == [1.0, 1.0, 1.0]
    assert ClassBalancedThreshold(3, 0.2, small="all").merge(kc) is None


@BOTH
def test_one_class_is_refused(estimator):
    with pytest.raises(ValueError, match="`num_classes`: expected at least 2, got 1"):
        estimator(1, 0.5)
    with pytest.raises(ValueError, match=r"`logits`: expected at least two classes .* got 1 .*binary=True"):
        estimator(2, 0.5).update(torch.randn(1, 1, 4, 4))


def test_every_option_changes_the_result():
    logits = random_logits(2, 4, 20, 20)
    base = estimate(ClassBalancedThreshold, logits, 0.2).compute()
    for options in ({"pool": "all"}, {"stride": 2}):
        assert not torch.equal(estimate(ClassBalancedThreshold, logits, 0.2, **options).compute(), base)
    exact = estimate(ClassBalancedThreshold, logits, 0.2, exact=True).compute()
    assert not torch.equal(estimate(ClassBalancedThreshold, logits, 0.2, exact=True, rank="first_out").compute(), exact)


@BOTH
def test_reset_forgets(estimator):
    kc = estimate(estimator, random_logits(), 0.2, exact=True)
    kc.reset()
    with pytest.raises(ValueError, match="`compute`: expected at least one call of update"):
        kc.compute()
    kc.update(random_logits(seed=4))
    assert torch.equal(kc.compute(), estimate(estimator, random_logits(seed=4), 0.2, exact=True).compute())


def test_errors():
    kc = ClassBalancedThreshold(3, 0.2)
    with pytest.raises(ValueError, match="`logits`: expected 3 classes on dimension 1, got 5"):
        kc.update(random_logits())
    with pytest.raises(ValueError, match=r"`logits`: expected \(B, C, H, W\)"):
        kc.update(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match=r"`prior`: expected \(C, H, W\) = \(3, 4, 4\), got \(3, 2, 2\)"):
        ClassBalancedThreshold(3, 0.2, prior=torch.ones(3, 2, 2)).update(torch.zeros(1, 3, 4, 4))
    for prior in (torch.ones(4, 2, 2), torch.ones(3, 2), [1.0]):
        with pytest.raises(ValueError, match=r"`prior`: expected \(C, H, W\) with C = 3, got"):
            ClassBalancedThreshold(3, 0.2, prior=prior)
    with pytest.raises(TypeError, match="`prior`: expected a floating-point dtype"):
        ClassBalancedThreshold(3, 0.2, prior=torch.ones(3, 2, 2).long())
    with pytest.raises(ValueError, match="`compute`: expected at least one call"):
        kc.compute()
    kc.update(torch.zeros(1, 3, 4, 4))
    for portion in (0.0, -0.1, 1.0001, float("nan")):
        with pytest.raises(ValueError, match=r"`portion`: expected a value in \(0.0, 1.0\]"):
            kc.compute(portion)
        with pytest.raises(ValueError, match="`portion`"):
            ClassBalancedThreshold(3, portion)
    with pytest.raises(TypeError, match="`portion`: expected a number, got str"):
        kc.compute("all")
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"`portion`: expected values in \[0.0, 1.0\]"):
            kc.compute(torch.tensor([0.1, wrong, 0.3]))
    with pytest.raises(ValueError, match=r"`portion`: expected a number or \(C,\) = \(3,\)"):
        kc.compute(torch.tensor([0.1, 0.3]))
    with pytest.raises(ValueError, match="`pool`: expected one of 'predicted', 'all', got 'some'"):
        ClassBalancedThreshold(3, 0.2, pool="some")
    with pytest.raises(ValueError, match="`rank`"):
        ClassBalancedThreshold(3, 0.2, rank="x")
    with pytest.raises(ValueError, match="`small`"):
        ClassBalancedThreshold(3, 0.2, small="x")
    with pytest.raises(ValueError, match="`stride`"):
        ClassBalancedThreshold(3, 0.2, stride=0)
    with pytest.raises(TypeError, match="`num_classes`"):
        ClassBalancedThreshold(3.0, 0.2)
    with pytest.raises(ValueError, match="`other`: expected num_classes = 3, got 4"):
        kc.merge(ClassBalancedThreshold(4, 0.2))
    with pytest.raises(ValueError, match="`other`: expected pool"):
        kc.merge(ClassBalancedThreshold(3, 0.2, pool="all"))
    with pytest.raises(TypeError, match="`other`"):
        kc.merge(kc.sketch)
    with pytest.raises(ValueError, match=r"`portion`: expected a number or \(C,\) = \(3,\)"):
        GlobalThreshold(3, torch.full((2,), 0.3))


@pytest.mark.parametrize("pool", ["predicted", "all"])
@pytest.mark.parametrize("exact", [False, True])
def test_a_prior_of_ones_is_no_prior_bit_for_bit(pool, exact):
    logits, ones = saturated_logits(64, 128), torch.ones(19, 64, 128)
    without, with_ones = (
        estimate(ClassBalancedThreshold, logits, 0.2, p, pool=pool, exact=exact) for p in (None, ones)
    )
    assert torch.equal(without.compute(), with_ones.compute())
    for select in (select_hard, select_reweighted):
        a, b = select(logits, without.compute()), select(logits, with_ones.compute(), prior=ones)
        assert torch.equal(a.labels, b.labels)


@pytest.mark.parametrize("select", [select_hard, select_reweighted])
@pytest.mark.parametrize("exact", [False, True])
def test_portions_under_a_prior_with_saturated_classes(select, exact):
    """Road below and sky above, as in a street: most pixels saturated, and a prior that varies over the picture."""
    height, width = 128, 256
    rows = torch.linspace(-1, 1, height).view(-1, 1).expand(height, width)
    prior = torch.stack([torch.sigmoid(4 * rows), torch.sigmoid(-4 * rows), torch.ones(height, width)])
    prior = prior * (1 + 0.1 * torch.rand(prior.shape, generator=torch.Generator().manual_seed(0)))
    prior = prior / prior.mean((1, 2), keepdim=True)
    generator = torch.Generator().manual_seed(1)
    labels = torch.multinomial((prior / prior.sum(0)).flatten(1).T, 4, replacement=True, generator=generator)
    labels = labels.T.reshape(4, height, width)
    margin = 24 + 5 * torch.randn(labels.shape, generator=generator)
    logits = torch.zeros(4, 3, height, width).scatter_(1, labels.unsqueeze(1), margin.unsqueeze(1))
    kc = estimate(ClassBalancedThreshold, logits, 0.2, prior, exact=exact)
    result = select(logits, kc.compute(), prior=prior)
    assert (result.confidence.float() > 0).all()
    share = torch.bincount(result.labels[result.labels < 255], minlength=3) / torch.bincount(result.predicted.flatten())
    assert ((share - 0.2).abs() < 0.01).all(), share


@pytest.mark.parametrize("select_zero", ["prior", "logits"])
def test_pool_all_counts_pixels_of_probability_zero(select_zero):
    logits, prior = random_logits(1, 3, 8, 8), None
    if select_zero == "prior":
        prior = torch.ones(3, 8, 8)
        prior[0, :4] = 0.0
    else:
        logits[:, 0, :4] = -torch.inf
    kc = estimate(ClassBalancedThreshold, logits, 0.4, prior, pool="all", exact=True)
    assert kc.class_counts().tolist() == [64, 64, 64]
    q = None if prior is None else prior.double().numpy()
    np.testing.assert_allclose(
        kc.compute().numpy(), oracle.kc(logits.double().numpy(), 0.4, pool="all", prior=q), rtol=1e-5
    )


def test_pool_all_of_a_rare_class_on_a_saturated_network():
    logits = saturated_logits(128, 256)
    logits[:, 18] -= 15  # far below everywhere: log-odds of -20 and less at nearly all pixels
    sketch, exact = (estimate(ClassBalancedThreshold, logits, 0.5, pool="all", exact=mode) for mode in (False, True))
    for portion in (0.2, 0.5, 0.9, 1.0):
        a, b = sketch.compute(portion), exact.compute(portion)
        assert (a > 0).all()
        assert (a.logit() - b.logit()).abs().max() <= sketch.sketch.bin_width
    chosen = select_reweighted(logits, sketch.compute(0.7)).labels == 18
    assert chosen.float().mean() < 0.5


def test_float32_portions_mean_their_decimals():
    logits = random_logits(1, 1, 1, 10) * 0 + torch.arange(10.0)
    wide = torch.cat([logits, logits * 0 - 5], dim=1)
    scalar = estimate(ClassBalancedThreshold, wide, 0.7, exact=True).compute()
    assert torch.equal(estimate(ClassBalancedThreshold, wide, torch.tensor([0.7, 0.7]), exact=True).compute(), scalar)


def test_merging_different_priors_is_refused():
    logits = random_logits(1, 3, 4, 4)
    a, b = (estimate(ClassBalancedThreshold, logits, 0.5, scale * torch.ones(3, 4, 4)) for scale in (1.0, 2.0))
    with pytest.raises(ValueError, match="`other`: expected the same prior"):
        a.merge(b)


@pytest.mark.gpu
@BOTH
def test_gpu_equals_cpu(estimator):
    logits = random_logits(2, 5, 65, 130)
    on_cpu, on_gpu = estimator(5, 0.2), estimator(5, 0.2).cuda()
    on_cpu.update(logits)
    on_gpu.update(logits.cuda())
    assert (on_gpu.compute().cpu().logit() - on_cpu.compute().logit()).abs().max() <= on_cpu.sketch.bin_width
    assert torch.equal(select_hard(logits, on_gpu.compute()).labels, select_hard(logits, on_gpu.compute().cpu()).labels)
