"""What the trainers' stack promises beside training: what is measured, kept, told, and said in options."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from tests.examples.trainers import EXAMPLES, environment, result, run


@pytest.fixture
def common(monkeypatch):
    """Lets a test import what the examples share."""
    monkeypatch.syspath_prepend(EXAMPLES)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that evaluates every two steps, without a terminal, and what it printed."""
    out = tmp_path_factory.mktemp("stack")
    words = ["--smoke", "--images", 8, 6, 4, "--batch", 2, "--steps", 5, "--rounds", 2, "--eval-every", 2]
    printed = run("cbst.py", out / "run", *words, "--root", out / "streets", "--tracker", "none")
    return out / "run", printed


def rounds(out):
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (out / "rounds").glob("*.json")}


def mean(iou):
    values = [value for value in iou if value is not None]
    return sum(values) / len(values)


@pytest.mark.slow
def test_source_only_and_batchnorm_are_rounds_before_the_first(trained):
    out, printed = trained
    recorded = rounds(out)
    assert {name: one["round"] for name, one in recorded.items()} == {
        "round-source": -1,
        "round-0000": 0,
        "round-0001": 1,
        "round-0002": 2,
    }
    before, adapted = (f"mIoU {mean(recorded[name]['iou']):.1f}" for name in ("round-source", "round-0000"))
    assert before != adapted
    line = f"before training: {before}, .*; BatchNorm re-estimated on the target images: {adapted}, "
    assert re.search(line, printed)


@pytest.mark.slow
def test_the_best_of_all_evaluations_is_kept(trained):
    out, printed = trained
    measured = [float(value) for value in re.findall(r"^round\d, step [24]: mIoU (\d+\.\d)", printed, re.MULTILINE)]
    assert len(measured) == 4  # two in each round; the last step is evaluated as the round
    measured += [mean(rounds(out)[name]["iou"]) for name in rounds(out)]
    found = result(out)
    assert found["best mIoU"] == pytest.approx(max(measured), abs=0.051)
    assert f"best: {found['best at']}, mIoU {found['best mIoU']:.1f}; weights in {out / 'best.pt'}" in printed
    weights = torch.load(out / "best.pt", weights_only=True)
    last = torch.load(out / "model.pt", weights_only=True)
    assert weights.keys() == last.keys()
    assert all(torch.equal(weights[name], last[name]) for name in last) == (found["best at"] == "round 2")


@pytest.mark.slow
def test_only_the_last_checkpoint_stays_and_the_report_is_there(trained):
    out, _ = trained
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["round2-000005"]
    progress = json.loads((out / "checkpoints" / "round2-000005" / "progress.json").read_text())
    assert progress.pop("seconds") > 0
    assert progress == {"stage": "round2", "step": 5, "finished": {"round1": 5}}
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "source only" in page
    assert re.search(r"<th[^>]*>rare</th>|<td[^>]*>rare</td>", page)  # a row of the table
    assert not (out / "tensorboard").exists()  # --tracker none


def test_a_line_now_and_then_where_there_is_no_terminal(common, monkeypatch, capsys):
    from _common import progress

    now = iter(range(0, 1000, 11))
    bar = progress.progress(range(9), "labelling", disable=False)
    assert isinstance(bar, progress._Lines)
    start = bar.start_t
    monkeypatch.setattr(bar, "_time", lambda: start + next(now))
    for _ in bar:
        pass
    lines = capsys.readouterr().out.splitlines()
    assert 1 < len(lines) < 8
    assert all(re.search(r"labelling: .*\d/9", line) for line in lines)


def test_a_tracker_that_is_not_installed_is_said(common, monkeypatch, tmp_path):
    import source_only

    words = ["source_only.py", "--tracker", "mlflow", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr("_common.run.get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(SystemExit, match="--tracker mlflow: not installed: pip install mlflow, or --tracker none"):
        source_only.main()


@pytest.mark.slow
def test_masks_of_several_channels_need_an_option_and_it_works(tmp_path):
    from PIL import Image

    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        for place in range(4):
            Image.new("RGB", (32, 16), (place % 2, 7, 9)).save(tmp_path / name / f"{place}.png")
    (tmp_path / "classes.json").write_text('{"0": "ground", "1": "tree"}')
    words = ["--data", "folders", "--network", "small-unet", "--smoke", "--batch", 2, "--steps", 1]
    words += ["--classes", tmp_path / "classes.json", "--target-images", tmp_path / "images"]
    words += ["--source-images", tmp_path / "images", "--source-masks", tmp_path / "masks"]
    with pytest.raises(AssertionError, match="--read-masks first") as caught:
        run("source_only.py", tmp_path / "out", *words)
    assert "Traceback" not in str(caught.value)
    assert "trained on source" in run("source_only.py", tmp_path / "out", *words, "--read-masks", "first")


@pytest.mark.parametrize("script", ["cbst.py", "source_only.py"])
def test_examples_run_from_a_copy_beside_an_installed_package(script, tmp_path):
    """Nothing in them needs the repository around them."""
    text = "".join(path.read_text(encoding="utf-8") for path in EXAMPLES.rglob("*.py"))
    assert not re.search(r"^(from|import) (tests|docs)\b", text, re.MULTILINE)
    copied = tmp_path / "elsewhere"
    subprocess.run(["cp", "-r", str(EXAMPLES), str(copied)], check=True)  # noqa: S607
    words = [sys.executable, str(copied / script), "--help"]
    done = subprocess.run(words, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "--eval-every" in done.stdout


def test_no_name_shadows_a_builtin():
    import ast
    import builtins

    taken = {name for name in dir(builtins) if not name.startswith("_")} - {"compile", "copyright", "license"}
    found = []
    for path in EXAMPLES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in taken:
                found.append(f"{path.name}:{node.lineno} {node.id}")
            if isinstance(node, ast.arg) and node.arg in taken:
                found.append(f"{path.name}:{node.lineno} {node.arg}")
    assert found == []


def test_sizes():
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in Path(EXAMPLES).rglob("*.py")}
    assert max(lines.values()) <= 400
    trainers = [path for path in Path(EXAMPLES).glob("*.py") if "\n@command_line\n" in path.read_text(encoding="utf-8")]
    assert len(trainers) == 12
    assert {path.name: lines[path] for path in trainers if lines[path] > 150} == {}


def test_logits_are_averaged_over_views(common):
    from argparse import Namespace
    from contextlib import nullcontext

    from _common.evaluation import _mean_logits

    settings = Namespace(tile=None)
    net = torch.nn.Conv2d(3, 4, 3, padding=1)
    images = torch.rand(2, 3, 8, 12)
    half = torch.nn.functional.interpolate(images, (4, 6), mode="bilinear", antialias=True)
    with torch.no_grad():
        found = _mean_logits(net, images, Namespace(settings=settings, autocast=nullcontext), (1.0, 0.5), True)
        views = [net(images), net(images.flip(-1)).flip(-1)]
        for small in (net(half), net(half.flip(-1)).flip(-1)):
            views.append(torch.nn.functional.interpolate(small, (8, 12), mode="bilinear"))
    torch.testing.assert_close(found, sum(views) / 4)


class _Tracked:
    """What ``start_tracker`` calls of an Accelerator."""

    is_main_process = True

    def __init__(self):
        self.started = []

    def init_trackers(self, project, config=None, init_kwargs=None):
        self.started.append((project, config, init_kwargs))

    def get_tracker(self, name, unwrap):
        from argparse import Namespace

        return Namespace(id="abc") if name == "wandb" else Namespace(info=Namespace(run_id="abc"))


@pytest.fixture
def store_of_mlflow(monkeypatch):
    """MLflow without MLFLOW_TRACKING_URI, and the address of its default store."""
    address = "sqlite:////where/it/began/mlflow.db"
    monkeypatch.setitem(sys.modules, "mlflow", types.SimpleNamespace(get_tracking_uri=lambda: address))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # taken back after the test
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    return address


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_a_resumed_run_continues_the_run_of_its_tracker(common, store_of_mlflow, tracker, tmp_path):
    from _common.settings import Settings
    from _common.trackers import start_tracker

    settings = Settings(tracker=tracker, out=tmp_path / "mine", lr=0.25)
    accelerator = _Tracked()
    start_tracker(accelerator, settings, False)
    start_tracker(accelerator, settings, True)
    start_tracker(accelerator, Settings(tracker="tensorboard", out=settings.out), False)  # of another run
    accelerator.started.pop()
    start_tracker(accelerator, settings, True)
    (first, config, new), (_, none, resumed), (_, _, other) = accelerator.started
    assert first == "selftrain-seg"
    assert config["lr"] == "0.25"
    assert none is None
    name = {"wandb": "name", "mlflow": "run_name"}[tracker]
    assert new == other
    assert new[tracker][name] == "mine"
    assert not new[tracker].get("id")
    assert not new[tracker].get("run_id")
    if tracker == "wandb":
        assert resumed[tracker] == {**new[tracker], "id": "abc", "resume": "allow"}
    else:
        assert resumed[tracker] == {**new[tracker], "run_id": "abc"}


def test_a_run_of_mlflow_is_found_from_another_working_folder(common, store_of_mlflow, monkeypatch, tmp_path):
    from _common.settings import Settings
    from _common.trackers import start_tracker

    settings = Settings(tracker="mlflow", out=tmp_path)
    start_tracker(_Tracked(), settings, False)
    assert "MLFLOW_TRACKING_URI" not in os.environ  # a new run asks MLflow
    start_tracker(_Tracked(), settings, True)
    assert os.environ["MLFLOW_TRACKING_URI"] == store_of_mlflow
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mine")
    start_tracker(_Tracked(), settings, True)
    assert os.environ["MLFLOW_TRACKING_URI"] == "https://mine"
    start_tracker(_Tracked(), settings, False)  # a new run with a store that its user names, perhaps with a password
    assert "store" not in json.loads((tmp_path / "tracker.json").read_text())


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_a_tracker_that_does_not_start_ends_the_run_with_its_reason(common, store_of_mlflow, tracker, tmp_path):
    from _common.settings import Settings
    from _common.trackers import start_tracker

    class Down(_Tracked):
        def init_trackers(self, *args):
            raise ConnectionError("no answer from the server")

    settings = Settings(tracker=tracker, out=tmp_path)
    with pytest.raises(SystemExit, match=f"--tracker {tracker}: no answer from the server$"):
        start_tracker(Down(), settings, False)
    start_tracker(_Tracked(), settings, False)
    with pytest.raises(SystemExit, match=r"no answer from the server; delete .*tracker.json to start a new run there"):
        start_tracker(Down(), settings, True)


def test_pictures_do_not_go_back_in_steps_where_that_loses_them(common):
    from argparse import Namespace

    from _common.run import Run

    class Board:
        def __init__(self, name):
            self.name, self.steps = name, []

        def log_images(self, values, step, **settings):
            assert values["a"].shape == (1, 4, 5, 3)
            self.steps.append(step)

    boards = [Board("tensorboard"), Board("wandb")]
    run = Namespace(_pictures=0, accelerator=Namespace(trackers=boards), main=True, steps_done=0)
    for run.steps_done in (0, 0, 20, 40):
        Run.picture(run, "a", torch.zeros(3, 4, 5, dtype=torch.uint8))
    assert [board.steps for board in boards] == [[1, 2, 3, 4], [0, 0, 20, 40]]


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_sharded_training_is_refused(common, monkeypatch, tmp_path, name):
    import source_only

    monkeypatch.setattr(sys, "argv", ["source_only.py", "--out", str(tmp_path / "out")])
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(SystemExit, match=f"{name} is not supported: each process trains the whole network"):
        source_only.main()
    assert not (tmp_path / "out").exists()
