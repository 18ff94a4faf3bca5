import numpy as np
import pytest
import torch
from torch._inductor.utils import run_and_get_code

from selftrain_seg.confidence import log_odds, top_confidence
from tests.helpers import layouts, random_logits
from tests.oracles import selection as oracle


def test_by_hand():
    # Two classes, margins ln 3 and ln 9: probabilities 3/4 and 9/10.
    logits = torch.tensor([[3.0, 1.0], [1.0, 9.0]]).log().reshape(1, 2, 1, 2)
    top = top_confidence(logits)
    assert top.labels.tolist() == [[[0, 1]]]
    torch.testing.assert_close(top.log_confidence.exp(), torch.tensor([[[0.75, 0.9]]]))
    assert top.labels.dtype == torch.int64
    assert top.log_confidence.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize("shape", [(2, 5, 7, 9), (1, 3, 3, 1), (1, 2, 1, 1), (3, 19, 5, 4)])
def test_oracle(dtype, with_prior, shape):
    logits = random_logits(*shape).to(dtype)
    prior = torch.rand(shape[1:], generator=torch.Generator().manual_seed(1)) * 2 if with_prior else None
    top = top_confidence(logits, prior=prior)
    # The oracle gets the values the function gets: already rounded to bf16 or fp16.
    labels, values = oracle.confidence(logits.double().numpy(), None if prior is None else prior.double().numpy())
    assert np.array_equal(top.labels.numpy(), labels)
    np.testing.assert_allclose(top.log_confidence.double().exp().numpy(), values, rtol=1e-5)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided", "transposed"])
def test_layouts_and_blocks(layout):
    # 70 x 300 pixels: several blocks of rows, and the last one smaller.
    logits = random_logits(2, 6, 70, 300)
    whole = top_confidence(logits[:, :, :1])
    top = top_confidence(layouts(logits)[layout])
    assert torch.equal(top.labels[:, :1], whole.labels)
    assert torch.equal(top.labels, logits.argmax(1))
    torch.testing.assert_close(top.log_confidence, logits.log_softmax(1).amax(1), rtol=1e-5, atol=1e-6)


def test_saturation_keeps_the_order():
    margins = torch.arange(20.0, 80.0)
    logits = torch.stack([margins, torch.zeros_like(margins)]).reshape(1, 2, 1, -1)
    log_confidence = top_confidence(logits).log_confidence
    assert (log_confidence.exp() == 1).all()
    assert (log_confidence.diff() > 0).all()
    torch.testing.assert_close(log_odds(log_confidence).flatten(), margins, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("classes", [2, 4])
def test_unusable_pixels_are_nan(bad, classes):
    logits = random_logits(1, classes, 2, 2)
    logits[0, 0, 0, 0] = bad
    logits[0, :, 1, 1] = -float("inf")
    log_confidence = top_confidence(logits).log_confidence
    assert log_confidence[0, 0, 0].isnan()
    assert log_confidence[0, 1, 1].isnan()
    assert log_confidence[0, 0, 1].isfinite()


def test_masked_classes_are_fine():
    logits = torch.tensor([0.0, 1.0, -float("inf")]).reshape(1, 3, 1, 1)
    torch.testing.assert_close(top_confidence(logits).log_confidence.exp().item(), torch.tensor(1.0).sigmoid().item())


def test_empty_batch_and_detached():
    top = top_confidence(torch.zeros(0, 3, 4, 5))
    assert top.labels.shape == top.log_confidence.shape == (0, 4, 5)
    assert not top_confidence(random_logits().requires_grad_()).log_confidence.requires_grad


def test_input_is_not_mutated():
    logits = random_logits()
    before = logits.clone()
    top_confidence(logits, prior=torch.rand(5, 7, 9))
    assert torch.equal(logits, before)


def test_autocast_changes_nothing():
    logits = random_logits()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = top_confidence(logits)
    assert torch.equal(inside.log_confidence, top_confidence(logits).log_confidence)


@pytest.mark.parametrize("with_prior", [False, True])
def test_compiles_whole(with_prior):
    logits = random_logits(2, 4, 20, 16)
    prior = torch.rand(4, 20, 16) if with_prior else None
    compiled = torch.compile(top_confidence, fullgraph=True)(logits, prior=prior)
    eager = top_confidence(logits, prior=prior)
    assert torch.equal(compiled.labels, eager.labels)
    torch.testing.assert_close(compiled.log_confidence, eager.log_confidence, rtol=1e-5, atol=1e-7)


def test_compiled_for_channels_last_logits():
    logits = random_logits(2, 5, 9, 7).contiguous(memory_format=torch.channels_last)
    torch._dynamo.reset()
    compiled, (code,) = run_and_get_code(torch.compile(top_confidence, fullgraph=True), logits)
    eager = top_confidence(logits)
    assert torch.equal(compiled.labels, eager.labels)
    torch.testing.assert_close(compiled.log_confidence, eager.log_confidence, rtol=1e-5, atol=1e-7)
    # Loops over the logits as they lie would be ten times slower, so the operator, which copies them, is called.
    assert "torch.ops.selftrain_seg.read" in code


def test_log_odds_compiles_whole():
    log_confidence = top_confidence(random_logits(1, 3, 8, 8)).log_confidence
    compiled = torch.compile(log_odds, fullgraph=True)(log_confidence)
    # Near certainty the compiler's expm1 may differ in the last bits of 1 - m, which is all that log-odds are made of.
    torch.testing.assert_close(compiled, log_odds(log_confidence), rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_gpu_equals_cpu():
    logits = random_logits(2, 19, 33, 65)
    gpu, cpu = top_confidence(logits.cuda()), top_confidence(logits)
    assert torch.equal(gpu.labels.cpu(), cpu.labels)
    torch.testing.assert_close(gpu.log_confidence.cpu(), cpu.log_confidence, rtol=1e-5, atol=1e-7)


def test_errors():
    good = random_logits()
    with pytest.raises(TypeError, match=r"`logits`: expected a torch.Tensor, got list"):
        top_confidence([1.0])
    with pytest.raises(ValueError, match=r"`logits`: expected \(B, C, H, W\), got \(5, 7, 9\)"):
        top_confidence(good[0])
    with pytest.raises(TypeError, match=r"`logits`: expected a floating-point dtype, got torch.int64"):
        top_confidence(good.long())
    with pytest.raises(ValueError, match="at least two classes"):
        top_confidence(good[:, :0])
    with pytest.raises(ValueError, match=r"`prior`: expected \(C, H, W\) = \(5, 7, 9\), got \(4, 7, 9\)"):
        top_confidence(good, prior=torch.ones(4, 7, 9))
    with pytest.raises(TypeError, match="`prior`"):
        top_confidence(good, prior=torch.ones(5, 7, 9).long())
    with pytest.raises(ValueError, match="`prior`: expected device cpu"):
        top_confidence(good, prior=torch.ones(5, 7, 9, device="meta"))
    with pytest.raises(TypeError, match="log_confidence"):
        log_odds(0.5)
