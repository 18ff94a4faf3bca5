"""``python -m tests.gpu`` where there is no GPU: all but the timing itself."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from selftrain_seg import losses, selectors
from tests.benchmarks import _harness
from tests.gpu import __main__ as command
from tests.gpu import cases, measure, plugin, run_tests, table
from tests.gpu.cases import OPERATIONS, Inputs, Row
from tests.gpu.child import AGAIN, STEPS

CPU = torch.device("cpu")


# --- what is measured


def test_rows_have_names_and_cover_all_operations():
    for rows in (cases.rows(), cases.rows(full=True), cases.rows(smoke=True)):
        assert [Row.parse(row.key) for row in rows] == rows
        assert len(set(rows)) == len(rows)
        assert {row.operation for row in rows if row.version == "ours"} == set(OPERATIONS)
        assert {row.version for row in rows} == set(cases.VERSION)
        assert {row.classes for row in rows} == set(cases.BATCH)
    # Everything that has a limit of passes is measured in float32 and bfloat16, in both layouts.
    measured = {row[:5] for row in cases.rows()}
    for name, operation in OPERATIONS.items():
        if operation.passes is not None:
            assert {(name, "ours", 19, d, m) for d in cases.DTYPES for m in cases.LAYOUTS} <= measured


def test_every_loss_and_selector_is_measured():
    measured = {name.partition(",")[0] for name in OPERATIONS}
    assert set(losses.__all__) - measured == {"focal_class_weight"}
    assert set(selectors.__all__) - measured == {"SelectionStatistics", "SelectionSummary"}


def test_inputs_are_what_the_row_says():
    for row in (Row("top_confidence"), Row("top_confidence", "ours", 150, "bf16", "channels_last")):
        inputs = Inputs(row, CPU, smoke=True)
        (logits,) = inputs.logits
        assert logits.shape == (2, row.classes, 16, 24)
        assert logits.dtype == cases.DTYPES[row.dtype]
        assert logits.is_contiguous(memory_format=cases.LAYOUTS[row.layout])
        assert inputs.soft.stride() == logits.stride()
    large = Inputs(Row("top_confidence", size="small"), CPU)
    assert large.shape == (2, 19, 128, 256)
    assert len(large.logits) == 1


def results_of(name, dtype="fp32"):
    inputs = Inputs(Row(name, "plain torch", 19, dtype), CPU, smoke=True)
    versions = OPERATIONS[name].make(inputs)
    return versions["ours"](inputs.logits[0]), versions["torch"](inputs.logits[0])


@pytest.mark.parametrize("name", [n for n, operation in OPERATIONS.items() if operation.group == "selection"])
def test_plain_selections_are_ours(name):
    if name == "ClassBalancedThreshold.update":
        pytest.skip("its states are of two kinds")
    ours, torchs = results_of(name)
    if name == "select_soft":
        torch.testing.assert_close(ours.soft, torchs)
        return
    labels = torchs[1] if name == "top_confidence" else torchs[0] if isinstance(torchs, tuple) else torchs
    assert torch.equal(ours.labels, labels)
    if ours[1:] and isinstance(torchs, tuple):
        other = ours.log_confidence.exp() if name == "top_confidence" else ours.pixel_weight
        torch.testing.assert_close(other, torchs[name != "top_confidence"])


@pytest.mark.parametrize(
    "name", [n for n, operation in OPERATIONS.items() if operation.group == "loss" and operation.rival]
)
def test_plain_losses_are_ours(name):
    (ours,), (torchs,) = results_of(name)
    assert ours.abs().max() > 1e-6
    torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-8)


# --- how it is measured


class OnAGpu(torch.Tensor):
    """A tensor that says so."""

    is_cuda = True


class Event:
    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, other):
        return (other.at - self.at) * 1e3


class Graph:
    """Runs what it is to replay anew."""

    work = replays = 0

    def replay(self):
        Graph.replays += 1

    def reset(self):
        self.work = None


@pytest.fixture
def pretended_gpu(monkeypatch):
    """The names of ``torch.cuda`` that the timing uses, without a GPU; the sync modes that were set."""
    modes = []

    @contextmanager
    def nothing(*args):
        yield

    for name, value in {
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": nothing,
        "stream": nothing,
        "Stream": lambda: type("Stream", (), {"wait_stream": lambda self, other: None})(),
        "current_stream": lambda: type("Stream", (), {"wait_stream": lambda self, other: None})(),
        "synchronize": lambda: None,
        "_sleep": lambda cycles: None,
        "set_sync_debug_mode": modes.append,
        "reset_peak_memory_stats": lambda: None,
        "memory_allocated": lambda: 1_000_000,
        "max_memory_allocated": lambda: 3_000_000,
    }.items():
        assert hasattr(torch.cuda, name)
        monkeypatch.setattr(torch.cuda, name, value)
    return modes


def test_the_steps_of_timing(pretended_gpu):
    inputs, calls = [torch.ones(3).as_subclass(OnAGpu)] * 2, []
    found = measure.cost(calls.append, inputs, rounds=3)
    assert (found.by, found.peak_mb, found.waits, found.tainted) == ("graph", 2.0, False, False)
    assert pretended_gpu == ["error", "default"]
    assert Graph.replays >= 3
    assert all(call is inputs[0] for call in calls)


def test_a_call_that_waits_is_timed_by_events(pretended_gpu):

    def waits(_):
        if pretended_gpu[-1:] == ["error"]:
            raise RuntimeError("called a synchronizing CUDA operation")

    found = measure.cost(waits, [torch.ones(3).as_subclass(OnAGpu)], rounds=1)
    assert (found.by, found.waits, found.tainted) == ("events", True, False)
    with pytest.raises(RuntimeError, match="another"):
        measure.does_wait(lambda: (_ for _ in ()).throw(RuntimeError("another")))
    assert pretended_gpu[-1] == "default"


def test_a_failed_capture_is_timed_by_events_and_taints(pretended_gpu, monkeypatch):
    monkeypatch.setattr(
        torch.cuda, "graph", lambda graph: (_ for _ in ()).throw(RuntimeError("operation not permitted"))
    )
    found = measure.cost(lambda _: None, [torch.ones(3).as_subclass(OnAGpu)], rounds=1)
    assert (found.by, found.tainted) == ("events", True)
    assert "operation not permitted" in found.note


# --- processes


def options(*arguments):
    return command.parse(["--device", "cpu", "--smoke", "--jobs", "2", *arguments])


def test_a_process_that_dies_costs_one_row(monkeypatch):
    scripts = iter(
        [
            ({"a": {"passes": 1}}, -11, ["Segmentation fault"]),  # in b
            ({"c": {"passes": 2, "tainted": True}}, AGAIN, []),
            ({}, AGAIN, ["no row, again"]),  # in d
            ({"e": {"passes": 3}}, 0, []),
        ]
    )
    asked = []

    def child(keys, *_, **environment):
        asked.append(list(keys))
        return next(scripts)

    monkeypatch.setattr(command, "child", child)
    rows = command.rows_of("abcde", options(), time.monotonic() + 60)
    assert asked == [["a", "b", "c", "d", "e"], ["c", "d", "e"], ["d", "e"], ["e"]]
    assert [rows[key].get("passes") for key in "ace"] == [1, 2, 3]
    assert rows["b"]["error"] == "its process ended with -11: Segmentation fault"
    assert "no row, again" in rows["d"]["error"]


def test_what_there_is_no_time_for_is_named():
    assert command.rows_of(["a", "b"], options(), time.monotonic() - 1) == {
        key: {"error": table.OUT_OF_TIME} for key in ("a", "b")
    }
    assert list(table.failures({"rows": {"a": {"error": table.OUT_OF_TIME}, "b": {"error": "broken"}}})) == [
        "b: broken"
    ]


@pytest.mark.parametrize(
    "arguments",
    [["--device", "cpu"], ["--operations", "none"], *([] if torch.cuda.is_available() else [["--device", "cuda"]])],
)
def test_what_the_command_refuses(arguments, capsys):
    with pytest.raises(SystemExit):
        command.parse(arguments)
    assert "error: " in capsys.readouterr().err


TESTS = """
import threading, pytest
pytestmark = getattr(pytest.mark, "gpu")
def test_passes(): pass
def test_also(): pass
def test_fails(): assert 1 == 2, "as it should"
def test_skips(): pytest.skip("no reason")
def test_in_teardown(broken): pass
@pytest.fixture
def broken():
    yield
    raise ValueError("too late")
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS, encoding="utf-8")
    (tmp_path / "test_broken.py").write_text("import nothing_of_this_name\n", encoding="utf-8")
    (tmp_path / "test_others.py").write_text("def test_without_a_gpu(): assert False\n", encoding="utf-8")
    return tmp_path


def files_of(folder):
    return sorted(str(path) for path in folder.glob("test_*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("xdist", [False, pytest.param(True, marks=pytest.mark.skipif(
    importlib.util.find_spec("xdist") is None, reason="needs pytest-xdist"))])  # fmt: skip
def test_tests_are_run_and_counted(folder, xdist, monkeypatch):
    if not xdist:
        monkeypatch.setattr(run_tests, "with_xdist", lambda: False)
    result = run_tests.run(files_of(folder), jobs=2, seconds=120)
    assert [result[name] for name in ("passed", "failed", "skipped", "not run", "stopped")] == [2, 3, 1, 0, False]
    why = "\n".join(result["failures"])
    for part in ("test_fails: AssertionError: as it should", "ValueError: too late", "nothing_of_this_name"):
        assert part in why
    assert result["why skipped"] == {"Skipped: no reason": 1}
    assert "2 passed, 3 failed, 1 skipped" in run_tests.text(result)


@pytest.mark.slow
def test_what_hangs_is_stopped_and_what_ended_is_kept(folder, monkeypatch):
    monkeypatch.setattr(run_tests, "with_xdist", lambda: False)
    forever = TESTS + "def test_never_ends(): threading.Event().wait()\ndef test_waits(): pass\n"
    (folder / "test_some.py").write_text(forever, encoding="utf-8")
    result = run_tests.run([str(folder / "test_some.py")], jobs=1, seconds=30)
    assert result["stopped"]
    assert result["passed"] == 2
    assert result["not run"] == 2
    assert "stopped: out of time" in run_tests.text(result)


def test_nothing_found_is_a_failure():
    assert run_tests.summary([], [5], 1.0)["failures"] == ["no test was found"]
    assert run_tests.summary([{"test": "a", "outcome": "passed"}], [-9], 1.0)["failed"] == 1
    shared = [{"test": "a.py", "outcome": "failed", "why": "ImportError"}] * 2  # one for each process
    assert run_tests.summary(shared, [2, 2], 1.0)["failed"] == 1


def test_files_with_gpu_tests():
    files = run_tests.gpu_files()
    assert {"tests/ops/test_triton.py", "tests/gpu/test_graphs.py"} <= set(files)
    assert "tests/test_docs.py" not in files


@pytest.mark.slow
def test_gpu_tests_need_no_more_than_is_there_on_a_fresh_machine():
    """All of them are collected without what only the other tests need."""
    absent = ["hypothesis", "scipy", "matplotlib", "torchmetrics", "tensorboard", "tqdm", "sphinx", "lightning"]
    code = f"""if True:
        import sys
        sys.modules.update(dict.fromkeys({absent}))  # None: neither found nor imported
        import pytest
        sys.exit(pytest.main(sys.argv[1:]))
    """
    arguments = ["-p", "tests.gpu.plugin", "-m", "gpu", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-c", code, *run_tests.gpu_files(), *arguments],
        cwd=run_tests.ROOT,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert all(f"{file}: " in done.stdout for file in run_tests.gpu_files())


def test_stand_ins():
    strategies = plugin.StandIn("hypothesis", refuses=False).strategies
    assert isinstance(strategies.integers(0, 3).map(lambda x: x), plugin.StandIn)
    with pytest.raises(pytest.skip.Exception, match=r"needs scipy\.stats\.norm"):
        plugin.StandIn("scipy", refuses=True).stats.norm(3)
    assert plugin.last_line("x\nE   ValueError: a\nE   more\n") == "ValueError: a"


# --- what is said


def row_of(**values):
    return {"passes": 1.5, "launches": 1, "wall": 1.0, "host": 0.1, "device": 0.1, "floor": 0.1, **values}


def test_targets_are_marked():
    rows = {
        Row("select_hard").key: row_of(),
        Row("select_hard", dtype="bf16", layout="channels_last").key: row_of(passes=2.3, launches=3),
        Row("mrkld_loss").key: row_of(wall=0.9),
        Row("mrkld_loss", size="small").key: row_of(wall=1.7),
        Row(cases.BASELINE, "plain torch").key: row_of(wall=1.0),
        Row(cases.BASELINE, "plain torch", size="small").key: row_of(wall=1.0),
        Row("MeanTeacher.update").key: row_of(host=0.8, device=0.11),
    }
    step = {"ms": {"CBST online": 102.0, "… and the teacher's forward": 100.0}}
    text = "\n".join([*table.targets(rows), *table.other_targets(rows, step)])
    for part in (
        "| select_hard | 1.50 ✓ (≤ 1.6) | – (≤ 1.6) | – (≤ 2.2) | 2.30 ✗ (≤ 2.2) | 3 ✗ (≤ 1) |  |  |",
        "0.90 ✓ (≤ 1) | 1.70 ✗ (≤ 1.6) |",
        "| MeanTeacher.update: host time, ms | 0.80 ✗ | 0.7 |",
        "| MeanTeacher.update: device time / floor | 1.10 ✓ | 1.2 |",
        "| training step: CBST beyond network and teacher | 0.02 ✓ | 0.03 |",
    ):
        assert part in text
    assert len(table.missed(rows, step)) == 3
    assert table.missed({}, {}) == []


def test_the_page_has_two_halves(tmp_path):
    page = tmp_path / "page.md"
    _harness.write_half(page, "GPU", table.markdown({}))
    _harness.write_half(page, "CPU", "### Targets\n\ncpu\n")
    first = page.read_text(encoding="utf-8")
    assert first.startswith("## On a CPU\n\n### Targets\n\ncpu\n\n## On a GPU\n\n")
    assert "Not measured yet" in first
    _harness.write_half(page, "GPU", "new")
    assert page.read_text(encoding="utf-8") == "## On a CPU\n\n### Targets\n\ncpu\n\n## On a GPU\n\nnew\n"


@pytest.mark.slow
def test_the_command(tmp_path):
    page, file = tmp_path / "page.md", tmp_path / "results.json"
    page.write_text("## On a CPU\n\nkept\n", encoding="utf-8")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.gpu", "--device", "cpu", "--smoke", "--jobs", "1", "--json", file),
            *("--seconds", "900", "--tests-seconds", "600"),
            *("--markdown", page, "--files", "tests/confidence/test_top.py"),
            *("--operations", "top_confidence", "mrkld_loss", "InstanceAdaptiveSelector", "paste_classes"),
        ],
        cwd=Path(run_tests.ROOT),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(table.SMOKE)
    results = json.loads(file.read_text(encoding="utf-8"))
    assert results["tests"]["skipped" if not torch.cuda.is_available() else "passed"] >= 1
    assert len(results["step"]["ms"]) == 5
    assert results["step"]["key"] == STEPS
    rows = results["rows"]
    assert {Row.parse(key).version for key in rows} == set(cases.VERSION)
    assert [found["error"] for found in rows.values() if "error" in found] == []
    assert all(found["passes"] > 0 for found in rows.values())
    assert all("launches" in found for found in rows.values())
    text = page.read_text(encoding="utf-8")
    assert text.startswith("## On a CPU\n\nkept\n\n## On a GPU\n\n")
    assert table.SMOKE in text
    assert "### All measurements on a GPU" in text
    assert "GPU tests: " in text
