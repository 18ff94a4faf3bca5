"""The self-check passes right kernels and no wrong ones; on a CUDA device, or in the interpreter."""

import pytest
import torch

from selftrain_seg import kernels
from selftrain_seg.confidence import top_confidence
from selftrain_seg.kernels import _self_check, launch
from tests.helpers import random_logits
from tests.kernels.test_kernels import DEVICE, INTERPRETED, plain, pytestmark, switched_on  # noqa: F401

NAMES = ("top", "count_scores", "select_hard", "select_reweighted", "select_soft", "losses")


@pytest.mark.parametrize("kernel", NAMES)
@pytest.mark.parametrize(("classes", "dtype"), [(1, torch.float32), (3, torch.bfloat16), (19, torch.float16)])
def test_passes(kernel, classes, dtype):
    _self_check.check(kernel, torch.device(DEVICE), dtype, classes)


def test_uses_no_random_numbers_and_works_in_any_mode():
    before = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode():
            _self_check.check("losses", torch.device(DEVICE), torch.float32, 3)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), before)


def spoilt(name, function, number):
    """The function with one element of its ``number``-th result changed, or a count of one pixel moved."""

    def wrong(*arguments, **settings):
        out = function(*arguments, **settings)
        if name == "count_scores":
            counts = arguments[1]
            counts[0, number] += 1
            counts[0, counts[0].argmax()] -= 1
            return out
        part = out if name == "pixel_gradient" else out[number]
        at = (1, 0, 0, 1) if part.ndim == 4 else (1, 0, 1)  # an ordinary pixel
        part[at] = ~part[at] if part.dtype == torch.bool else part[at] + (1 if part.dtype == torch.int64 else 0.02)
        return out

    return wrong


@pytest.mark.parametrize(
    ("kernel", "name", "number"),
    [
        *(("top", "top", number) for number in range(2)),
        *(("count_scores", "count_scores", number) for number in (0, 511)),
        *(("select_hard", "select_hard", number) for number in range(3)),
        *(("select_reweighted", "select_reweighted", number) for number in range(3)),
        *(("select_soft", "select_soft", number) for number in range(4)),
        *(("losses", "pixel_maps", number) for number in range(6)),
        ("losses", "pixel_gradient", 0),
    ],
)
def test_notices_one_wrong_pixel(kernel, name, number, monkeypatch):
    monkeypatch.setattr(launch, name, spoilt(name, getattr(launch, name), number))
    with pytest.raises(ValueError, match="wrong"):
        _self_check.check(kernel, torch.device(DEVICE), torch.float32, 3)


@pytest.mark.skipif(INTERPRETED, reason="a CUDA graph is for a GPU")
def test_nobody_need_ask_and_a_graph_is_captured_without_a_check(monkeypatch):
    monkeypatch.setattr(kernels, "_enabled", None)
    monkeypatch.setattr(_self_check, "_passed", set())
    logits, others = random_logits(seed=1).to(DEVICE), random_logits(seed=2).to(DEVICE)
    expected = plain(top_confidence, others)
    monkeypatch.setattr(kernels, "_enabled", None)
    for known in (False, True):
        top_confidence(logits)  # warm up
        if not known:
            _self_check._passed.clear()
        graph, values = torch.cuda.CUDAGraph(), logits.clone()
        with torch.cuda.graph(graph):
            result = top_confidence(values)
        assert bool(_self_check._passed) == known
        values.copy_(others)
        graph.replay()
        assert torch.equal(result.labels, expected.labels)
        torch.testing.assert_close(result.log_confidence, expected.log_confidence, rtol=2e-5, atol=1e-37)
