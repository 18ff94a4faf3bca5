"""The operators `select` and `soften`, as torch wants operators to be, and on both kinds of device."""

import pytest
import torch

from selftrain_seg import ops
from tests.helpers import random_logits
from tests.ops.cases import CHECKS, KINDS, as_on_a_gpu, logits_of, op_module, prior_of, thresholds_of, valid_of

EXTRA = pytest.mark.parametrize("extra", ["nothing", "valid", "prior", "all"])


def given(extra):
    return (
        valid_of() if extra in ("valid", "all") else None,
        prior_of() if extra in ("prior", "all") else None,
    )


@KINDS
@EXTRA
@pytest.mark.parametrize("reweighted", [False, True])
def test_opcheck_of_select(kind, extra, reweighted):
    args = (logits_of(kind), thresholds_of(), reweighted, *given(extra), 255)
    torch.library.opcheck(torch.ops.selftrain_seg.select.default, args, test_utils=CHECKS)


@KINDS
@EXTRA
def test_opcheck_of_soften(kind, extra):
    args = (logits_of(kind), thresholds_of(), torch.tensor(0.25), *given(extra), 255)
    torch.library.opcheck(torch.ops.selftrain_seg.soften.default, args, test_utils=CHECKS)


@pytest.mark.parametrize("extra", ["nothing", "valid", "prior", "all"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "channels_last"])
def test_the_same_on_every_device(kind, extra, monkeypatch):
    """With ties, NaN, infinities and blocks; exponentials may differ in their last bits."""
    size = (40, 211)
    logits = logits_of(kind, batch=3, size=size)
    logits[0, :, :3] = logits[0, :, :3].round()
    logits[0, 1, 5], logits[1, 2, 6], logits[2, :, 7], logits[2, 0, 8] = torch.nan, torch.inf, -torch.inf, -torch.inf
    options = {
        "valid": valid_of(3, size) if extra in ("valid", "all") else None,
        "prior": prior_of(size) if extra in ("prior", "all") else None,
        "ignore_index": 99,
    }

    def run():
        hard = [ops.select(logits, thresholds_of(), reweighted=way, **options) for way in (False, True)]
        return [*hard, ops.soften(logits, thresholds_of(), torch.tensor(0.25), **options)]

    found = run()
    as_on_a_gpu(monkeypatch)
    monkeypatch.setattr(op_module("_blocks"), "_GPU_BLOCK_PIXELS", 1 << 12)
    for ours, theirs in zip(found, run(), strict=True):
        usable = ours[2] > 0
        assert torch.equal(usable, theirs[2] > 0)
        assert 0.3 < usable.float().mean() < 1.0
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1][usable], theirs[1][usable])
        for a, b in zip(ours[2:], theirs[2:], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_results_lie_as_the_logits_do():
    logits = random_logits(2, 5, 6, 7).contiguous(memory_format=torch.channels_last)
    labels, predicted, confidence, soft = ops.soften(logits, thresholds_of(), torch.tensor(0.25), ignore_index=255)
    assert soft.is_contiguous(memory_format=torch.channels_last)
    assert all(part.is_contiguous() for part in (labels, predicted, confidence))
    assert (labels.dtype, predicted.dtype, confidence.dtype, soft.dtype) == (
        torch.int64,
        torch.int64,
        torch.float32,
        torch.float32,
    )
