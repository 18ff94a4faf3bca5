import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selftrain_seg.selectors import select_hard, select_reweighted, select_soft
from tests.helpers import layouts, random_logits
from tests.oracles import selection as oracle

SELECTORS = pytest.mark.parametrize("select", [select_hard, select_reweighted, select_soft])
KC = torch.tensor([0.9, 0.35, 0.6, 0.2, 0.75], dtype=torch.float64)


def test_hard_by_hand():
    # Probabilities 3/4 and 1/4: selected at 0.75 itself, not above it.
    logits = torch.tensor([3.0, 1.0]).log().reshape(1, 2, 1, 1)
    assert select_hard(logits, torch.tensor([0.75, 0.0])).labels.item() == 0
    assert select_hard(logits, torch.tensor([0.7501, 0.0])).labels.item() == 255
    assert select_hard(logits, torch.tensor([0.7501, 0.0]), ignore_index=-1).labels.item() == -1
    assert select_hard(logits, torch.tensor([0.9, 0.0])).confidence.item() == pytest.approx(0.75)


def test_reweighted_by_hand():
    # p / kc = (3/4) / (9/10) < 1 and (1/4) / (1/5) > 1: the less probable class wins.
    logits = torch.tensor([3.0, 1.0]).log().reshape(1, 2, 1, 1)
    result = select_reweighted(logits, torch.tensor([0.9, 0.2]))
    assert (result.labels.item(), result.predicted.item()) == (1, 0)


def test_soft_by_hand():
    # (p / kc)^(1/α) with α = 1/2: (1.5², 0.5²) = (2.25, 0.25), a tenth of the sum to class 1.
    logits = torch.tensor([3.0, 1.0]).log().reshape(1, 2, 1, 1)
    result = select_soft(logits, torch.tensor([0.5, 0.5]), alpha=0.5)
    torch.testing.assert_close(result.soft.flatten(), torch.tensor([0.9, 0.1]))
    assert result.labels.item() == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_prior", [False, True])
def test_oracle(dtype, with_prior):
    logits = random_logits(2, 5, 11, 13, scale=2.0).to(dtype)
    prior = 0.2 + 2 * torch.rand(5, 11, 13, generator=torch.Generator().manual_seed(2)) if with_prior else None
    z, q, kc = logits.double().numpy(), None if prior is None else prior.double().numpy(), KC.numpy()
    assert np.array_equal(select_hard(logits, KC, prior=prior).labels.numpy(), oracle.hard(z, kc, q))
    assert np.array_equal(select_reweighted(logits, KC, prior=prior).labels.numpy(), oracle.reweighted(z, kc, q))
    for alpha in (1.0, 0.25, 0.1):
        soft = select_soft(logits, KC, alpha=alpha, prior=prior)
        expected = oracle.soft(z, kc, alpha, q)
        np.testing.assert_allclose(soft.soft.numpy(), expected, atol=2e-5)
        selected = expected.sum(1) > 0
        assert np.array_equal(soft.labels.numpy() != 255, selected)
        assert np.array_equal(soft.labels.numpy()[selected], expected.argmax(1)[selected])


def test_soft_selection_is_the_literal_cost_comparison():
    """No disagreement with the paper's two costs in float64, except where they tie to rounding."""
    generator = torch.Generator().manual_seed(7)
    for case in range(20):
        scale = [0.5, 2.0, 8.0][case % 3]
        logits = scale * torch.randn(2, 6, 12, 12, generator=generator, dtype=torch.float64)
        kc = 0.05 + 0.95 * torch.rand(6, generator=generator, dtype=torch.float64)
        alpha = [0.1, 0.25, 1.0][case % 3]
        selected = select_soft(logits, kc, alpha=alpha).labels != 255
        ratio = logits.softmax(1) / kc.view(-1, 1, 1)
        y = (ratio.log() / alpha).softmax(1)
        cost = (-y * ratio.log() + alpha * torch.xlogy(y, y)).sum(1)
        tie = cost.abs() < 1e-5
        assert tie.double().mean() < 0.01
        assert torch.equal(selected | tie, (cost < 0) | tie)


def test_reweighted_equals_hard_when_thresholds_are_half_or_more():
    logits = random_logits(2, 5, 40, 40)
    kc = torch.tensor([0.5, 0.6, 0.7, 0.8, 0.9])
    assert torch.equal(select_reweighted(logits, kc).labels, select_hard(logits, kc).labels)


def test_soft_tends_to_reweighted():
    logits = random_logits(2, 5, 30, 30)
    hard, soft = select_reweighted(logits, KC), select_soft(logits, KC, alpha=1e-3)
    assert torch.equal(soft.labels, hard.labels)
    chosen = hard.labels != 255
    one_hot = torch.nn.functional.one_hot(hard.labels.clamp(max=4), 5).permute(0, 3, 1, 2) * chosen.unsqueeze(1)
    assert ((soft.soft - one_hot).abs().amax(1) > 0.01).float().mean() < 0.01  # but for near ties


@SELECTORS
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided", "transposed"])
def test_layouts_and_blocks(select, layout):
    logits = random_logits(2, 5, 70, 300)
    a, b = select(layouts(logits)[layout], KC), select(logits[:, :, :3].contiguous(), KC)
    assert torch.equal(a.labels[:, :3], b.labels)
    torch.testing.assert_close(a.confidence[:, :3], b.confidence)
    assert torch.equal(a.predicted, logits.argmax(1))
    if a.soft is not None:
        torch.testing.assert_close(a.soft[:, :, :3], b.soft)


@SELECTORS
def test_extremes(select):
    logits = random_logits(2, 5, 6, 6, scale=40.0).clamp(-80, 80)
    nothing = torch.ones(5, dtype=torch.float64)
    sure = select(logits, nothing)
    assert (sure.labels == 255).float().mean() > 0.9  # margins above 103 are certainty even for exp in float32
    assert (select(logits, torch.full((5,), 0.2)).labels == logits.argmax(1)).all()
    assert sure.confidence.isfinite().all()
    logits[0, 2] = float("nan")
    assert (select(logits, torch.full((5,), 1e-6)).labels[0] == 255).all()


def test_hard_at_zero_selects_all_and_at_infinity_nothing():
    logits = random_logits()
    assert (select_hard(logits, torch.zeros(5)).labels == logits.argmax(1)).all()
    prior = torch.ones(5, 7, 9)
    assert (select_hard(logits, torch.full((5,), torch.inf), prior=prior).labels == 255).all()
    assert (select_reweighted(logits, torch.full((5,), torch.inf), prior=prior).labels == 255).all()
    assert (select_hard(logits, torch.zeros(5), prior=prior).labels == logits.argmax(1)).all()


@SELECTORS
@settings(max_examples=20, deadline=None)
@given(value=st.floats(0.3, 1 - 1e-12), seed=st.integers(0, 100))
def test_a_pixel_passes_its_own_threshold(select, value, seed):
    """Rounding never keeps a class whose pixels all tie from being selected."""
    margin = torch.logit(torch.tensor(max(value, 0.5), dtype=torch.float64)).float()
    logits = torch.stack([margin.expand(4, 4), torch.zeros(4, 4)]).unsqueeze(0)
    from selftrain_seg.thresholds import ClassBalancedThreshold

    for exact in (False, True):
        kc = ClassBalancedThreshold(2, 0.5, exact=exact)
        kc.update(logits)
        assert (select(logits, kc.compute()).labels == 0).all()


@SELECTORS
def test_detached_unmutated_empty_and_single_class(select):
    logits, kc, prior = random_logits().requires_grad_(), KC.clone().requires_grad_(), torch.rand(5, 7, 9)
    before = logits.detach().clone()
    assert not select(logits, kc, prior=prior.requires_grad_()).confidence.requires_grad
    result = select(logits, kc)
    assert not any(t.requires_grad for t in result if t is not None)
    assert torch.equal(logits, before)
    assert select(torch.zeros(0, 5, 3, 3), KC).labels.shape == (0, 3, 3)
    with pytest.raises(ValueError, match=r"`logits`: expected at least two classes .* got 1 .*binary=True"):
        select(torch.zeros(1, 1, 2, 2), torch.tensor([0.9]))


@SELECTORS
def test_autocast_and_half(select):
    logits = random_logits()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(select(logits, KC).labels, select(logits, KC).labels)
    rounded = logits.bfloat16()
    assert torch.equal(select(rounded, KC).labels, select(rounded.float(), KC).labels)


@SELECTORS
@pytest.mark.parametrize("with_prior", [False, True])
def test_compiles_whole(select, with_prior):
    logits = random_logits(2, 5, 20, 16)
    prior = torch.rand(5, 20, 16) + 0.1 if with_prior else None
    compiled, eager = (
        torch.compile(select, fullgraph=True)(logits, KC, prior=prior),
        select(logits, KC, prior=prior),
    )
    assert torch.equal(compiled.labels, eager.labels)
    torch.testing.assert_close(compiled.confidence, eager.confidence)
    if eager.soft is not None:
        torch.testing.assert_close(compiled.soft, eager.soft, atol=1e-5, rtol=1e-4)


@SELECTORS
def test_every_argument_changes_the_result(select):
    logits = random_logits(2, 5, 20, 20)
    base = select(logits, KC).labels
    assert not torch.equal(select(logits, KC * 0.5).labels, base)
    assert not torch.equal(select(logits, KC, prior=torch.rand(5, 20, 20)).labels, base)
    assert (select(logits, KC, ignore_index=17).labels == 17).any()
    if select is select_soft:
        assert not torch.equal(select(logits, KC, alpha=0.5).soft, select(logits, KC).soft)


@pytest.mark.gpu
@SELECTORS
def test_gpu_equals_cpu(select):
    logits = random_logits(2, 5, 33, 65)
    gpu, cpu = select(logits.cuda(), KC), select(logits, KC)
    assert (gpu.labels.cpu() == cpu.labels).float().mean() > 0.999
    torch.testing.assert_close(gpu.confidence.cpu(), cpu.confidence)


@SELECTORS
def test_errors(select):
    logits = random_logits()
    with pytest.raises(ValueError, match=r"`thresholds`: expected \(C,\) = \(5,\), got \(4,\)"):
        select(logits, KC[:4])
    with pytest.raises(TypeError, match="`thresholds`: expected a number, got str"):
        select(logits, "0.9")
    for number in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"`thresholds`: expected a value in \[0.0, 1.0\]"):
            select(logits, number)
    with pytest.raises(TypeError, match="`thresholds`: expected a floating-point dtype"):
        select(logits, torch.ones(5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"`logits`: expected \(B, C, H, W\)"):
        select(logits[0], KC)
    with pytest.raises(TypeError, match="`logits`"):
        select(logits.long(), KC)
    with pytest.raises(ValueError, match="`prior`"):
        select(logits, KC, prior=torch.ones(5, 7, 8))


def test_soft_alpha_errors():
    for alpha in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="`alpha`"):
            select_soft(random_logits(), KC, alpha=alpha)
    with pytest.raises(TypeError, match="`alpha`"):
        select_soft(random_logits(), KC, alpha="0.25")
