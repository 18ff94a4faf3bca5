"""The kernels where there is no GPU: run in Triton's interpreter, chosen or not, and imported late."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import selftrain_seg
from selftrain_seg import kernels
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
    options = ("-p", "no:cacheprovider", "-rs")
    report = run("-m", "pytest", HERE / "test_kernels.py", *options, TRITON_INTERPRET="1")
    assert " passed, 1 skipped" in report, report  # all but the one that needs a GPU's memory


def test_off_by_default_and_switched():
    code = """if True:
        import importlib, os
        from selftrain_seg import kernels
        for value in (None, "0", "1"):
            os.environ.pop("SELFTRAIN_SEG_KERNELS", None)
            os.environ |= {} if value is None else {"SELFTRAIN_SEG_KERNELS": value}
            print(importlib.reload(kernels)._enabled)
    """
    assert run("-c", code).split() == ["False", "False", "True"]


def test_what_is_chosen(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(kernels, "_enabled", False)
    monkeypatch.setattr(kernels, "_installed", lambda: True)
    logits = random_logits()
    kernels.enable()
    assert not kernels.chosen(logits)  # on the CPU
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert kernels.chosen(logits)
    assert kernels.chosen(torch.zeros(1, 256, 1, 1, dtype=torch.bfloat16))
    assert not kernels.chosen(torch.zeros(1, 257, 1, 1))
    assert not kernels.chosen(logits.double())
    assert not kernels.chosen(torch.nn.Parameter(logits))
    monkeypatch.setattr(kernels, "_installed", lambda: False)
    assert not kernels.chosen(logits)
    monkeypatch.setattr(kernels, "_installed", lambda: True)
    kernels.enable(False)
    assert not kernels.chosen(logits)


def test_triton_is_imported_late_and_need_not_be_there():
    stages = "import selftrain_seg.kernels.launch, selftrain_seg.selectors, selftrain_seg.thresholds"
    assert run("-c", f"{stages}\nimport sys; print('triton' in sys.modules)").split() == ["False"]
    absent = "import sys; sys.modules['triton'] = None\nimport selftrain_seg.kernels._triton as k; print(k.top_kernel)"
    assert "function top_kernel" in run("-c", absent)
