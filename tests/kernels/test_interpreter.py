"""The kernels where there is no GPU: run in Triton's interpreter, chosen or not, and imported late."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import selftrain_seg
from selftrain_seg import kernels
from selftrain_seg.kernels import _self_check
from tests.helpers import random_logits

HERE = Path(__file__).parent
ROOT = Path(selftrain_seg.__file__).parent.parent


def run(*command, **environment):
    """Run a fresh Python in the root of the repository; its output."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return done.stdout


def test_kernels_equal_the_plain_path_in_the_interpreter():
    pytest.importorskip("triton")
    files = [HERE / f"test_{name}.py" for name in ("kernels", "losses", "memory", "self_check")]
    report = run("-m", "pytest", *files, "-p", "no:cacheprovider", "-rs", TRITON_INTERPRET="1")
    assert " passed, 2 skipped" in report, report  # one needs a GPU's memory, the other its graphs


def test_switched_by_the_environment():
    code = """if True:
        import importlib, os
        from selftrain_seg import kernels
        for value in (None, "", "0", "1"):
            os.environ.pop("SELFTRAIN_SEG_KERNELS", None)
            os.environ |= {} if value is None else {"SELFTRAIN_SEG_KERNELS": value}
            print(importlib.reload(kernels)._enabled)
    """
    assert run("-c", code).split() == ["None", "None", "False", "True"]


def test_what_is_chosen(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(kernels, "_enabled", None)
    monkeypatch.setattr(kernels, "_installed", lambda: True)
    logits = random_logits()
    kernels.enable()
    assert not kernels.chosen(logits)  # on the CPU
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert kernels.chosen(logits)
    assert kernels.chosen(logits, "losses")  # no self-check: tests are there for that
    assert kernels.chosen(torch.zeros(1, 256, 1, 1, dtype=torch.bfloat16))
    assert not kernels.chosen(torch.zeros(1, 257, 1, 1))
    assert not kernels.chosen(logits.double())
    assert not kernels.chosen(torch.nn.Parameter(logits))
    monkeypatch.setattr(kernels, "_installed", lambda: False)
    assert not kernels.chosen(logits)
    monkeypatch.setattr(kernels, "_installed", lambda: True)
    monkeypatch.setattr(kernels, "_enabled", None)
    assert not kernels.chosen(logits)  # nobody asked for kernels on the CPU
    kernels.enable(False)
    assert not kernels.chosen(logits)


def test_a_stand_in_for_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", types.ModuleType("triton"))
    assert not kernels._installed.__wrapped__()


def test_no_memory_for_a_check_is_no_verdict(monkeypatch):
    def check(*key):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(_self_check, "check", check)
    monkeypatch.setattr(_self_check, "_passed", set())
    monkeypatch.setattr(_self_check, "_failed", False)
    assert not _self_check.passed("top", random_logits())
    monkeypatch.setattr(_self_check, "check", lambda *key: None)
    assert _self_check.passed("top", random_logits())


def test_a_failed_check_warns_once_and_ends_all(monkeypatch):
    asked = []

    def check(kernel, *key):
        asked.append((kernel, *key))
        if kernel == "select_soft":
            raise ValueError("soft labels are wrong")

    monkeypatch.setattr(_self_check, "check", check)
    monkeypatch.setattr(_self_check, "_passed", set())
    monkeypatch.setattr(_self_check, "_failed", False)
    logits = random_logits(1, 5, 2, 3)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not _self_check.passed("top", logits)
    assert asked == []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert all(_self_check.passed("top", logits) for _ in range(3))
    assert _self_check.passed("top", logits.half())
    assert _self_check.passed("top", logits[:, :4])
    device = torch.device("cpu")
    assert asked == [
        ("top", device, torch.float32, 5),
        ("top", device, torch.float16, 5),
        ("top", device, torch.float32, 4),
    ]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert _self_check.passed("top", logits)  # known by now
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with pytest.warns(
        RuntimeWarning, match=r"`select_soft` .* 5 classes \(ValueError: soft labels are wrong\).* plain path"
    ):
        assert not _self_check.passed("select_soft", logits)
    assert not _self_check.passed("select_soft", logits)  # a second warning would be an error
    assert not _self_check.passed("top", logits)
    assert len(asked) == 4


def test_triton_is_imported_late_and_need_not_be_there():
    stages = "import selftrain_seg.kernels.launch, selftrain_seg.selectors, selftrain_seg.thresholds"
    assert run("-c", f"{stages}\nimport sys; print('triton' in sys.modules)").split() == ["False"]
    files = "from selftrain_seg.kernels import _losses, _selection"
    absent = f"import sys; sys.modules['triton'] = None\n{files}; print(_losses.maps_kernel, _selection.top_kernel)"
    assert "function top_kernel" in run("-c", absent)
