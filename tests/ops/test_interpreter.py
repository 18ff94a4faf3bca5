"""The kernels where there is no GPU: run in Triton's interpreter, chosen by the environment, imported late."""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import selftrain_seg

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
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "skipped"),
    [
        ("ops/test_triton.py", ", 1 skipped"),  # it needs a GPU's memory
        ("ops/test_triton_state.py", ""),
        ("ops/test_triton_memory.py", ""),
        ("ops/test_triton_maps.py", ""),
        ("selectors/test_bars.py", ""),  # thresholds at equality, with the kernels
    ],
)
def test_kernels_in_the_interpreter(file, skipped, pytestconfig):
    pytest.importorskip("triton")
    environment = {"TRITON_INTERPRET": "1", "SELFTRAIN_SEG_KERNELS": "1"}
    warnings = ["ignore::RuntimeWarning"]  # NumPy's, of logarithms of 0, which a GPU takes
    warnings += pytestconfig.option.pythonwarnings or []
    words = [word for warning in warnings for word in ("-W", warning)]
    report = run("-m", "pytest", HERE.parent / file, *words, "-p", "no:cacheprovider", "-rs", **environment)
    assert f" passed{skipped} in" in report, report


@pytest.mark.parametrize(
    ("switch", "interpret", "keys"),
    [
        ("", "", "['CUDA']"),
        ("0", "", "[]"),
        ("1", "", "['CUDA']"),
        ("1", "1", "['CUDA', 'CPU']"),
        ("", "1", "['CUDA']"),
        ("0", "1", "[]"),
    ],
)
def test_switched_by_the_environment(switch, interpret, keys):
    pytest.importorskip("triton")
    code = "from selftrain_seg.ops import _library; print(_library._kernel_keys())"
    assert run("-c", code, SELFTRAIN_SEG_KERNELS=switch, TRITON_INTERPRET=interpret).strip() == keys


def test_the_dispatcher_has_the_kernels():
    """Without a GPU a meta tensor tells nothing, so look at what is registered."""
    pytest.importorskip("triton")
    code = """if True:
        import torch
        import selftrain_seg.mining, selftrain_seg.ops, selftrain_seg.teachers
        names = "read observe select soften decide weigh follow discount adapt tabulate ranked count".split()
        names += "weighted_loss weighted_loss_backward mutual_loss negative_loss negative_loss_backward".split()
        names += "fairness_loss fairness_loss_backward".split()
        names += "connected_components mine draw_classes distinct directions fit topmost".split()
        print([torch._C._dispatch_has_kernel_for_dispatch_key(f"selftrain_seg::{name}", "CUDA") for name in names])
    """
    with_kernels, without = ["True"] * 26, ["False"] * 26
    assert run("-c", code, SELFTRAIN_SEG_KERNELS="").strip() == f"[{', '.join(with_kernels)}]"
    assert run("-c", code, SELFTRAIN_SEG_KERNELS="0").strip() == f"[{', '.join(without)}]"


def kernels_of(file):
    """(operator, file of its launcher) for each operator that a file registers with a kernel."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "operator":
            launchers = [word.value.value for word in node.keywords if word.arg == "kernel"]
            yield from ((re.search(r"\w+(?=\()", ast.unparse(node.args[0]))[0], launcher) for launcher in launchers)


def test_every_kernel_is_in_the_file_that_its_operator_names():
    found = [pair for file in sorted((ROOT / "selftrain_seg" / "ops").glob("*.py")) for pair in kernels_of(file)]
    assert len(found) == 26
    for name, file in found:
        assert callable(getattr(importlib.import_module(f"selftrain_seg.ops.triton.{file}"), name))


def test_triton_is_imported_late_and_need_not_be_there():
    stages = "import selftrain_seg.ops, selftrain_seg.selectors, selftrain_seg.thresholds, selftrain_seg.losses"
    assert run("-c", f"{stages}\nimport sys; print('triton' in sys.modules)").split() == ["False"]
    absent = """if True:
        import sys, importlib.machinery
        find = importlib.machinery.PathFinder.find_spec
        def without(name, *rest):
            return None if name.partition(".")[0] == "triton" else find(name, *rest)
        importlib.machinery.PathFinder.find_spec = without
        from selftrain_seg.ops import _library
        from selftrain_seg.ops.triton import loss, reading
        print(_library._kernel_keys(), loss.forward_kernel.__name__, reading.read_kernel.__name__)
    """
    assert run("-c", absent).split() == ["[]", "forward_kernel", "read_kernel"]
