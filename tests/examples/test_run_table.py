"""The table of the documentation comes from runs, and its numbers are theirs."""

import json
import statistics
import subprocess
import sys

import pytest
import torch

from selftrain_seg import PseudoLabels
from selftrain_seg.store import PseudoLabelStore
from selftrain_seg.visualize import record_round
from tests import worlds
from tests.examples.trainers import EXAMPLES, environment


@pytest.mark.slow
def test_table(tmp_path):
    words = [sys.executable, EXAMPLES / "run_table.py", "--smoke", "--seeds", "0", "1", "--rows", "mean teacher"]
    words += ["--out", tmp_path / "runs", "--write", tmp_path / "docs" / "table.md"]
    first = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=3000)
    assert first.returncode == 0, first.stdout + first.stderr
    table = (tmp_path / "docs" / "table.md").read_text(encoding="utf-8")
    found = {}
    for row in ("source-only", "batchnorm-re-estimated", "mean-teacher"):
        files = [tmp_path / "runs" / f"seed{seed}" / row / "result.json" for seed in (0, 1)]
        found[row] = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        assert [one["seed"] for one in found[row]] == [0, 1]
    mean = statistics.mean(one["mIoU"] for one in found["mean-teacher"])
    gains = [
        one["mIoU"] - base["mIoU"]
        for one, base in zip(found["mean-teacher"], found["batchnorm-re-estimated"], strict=True)
    ]
    line = next(line for line in table.splitlines() if line.startswith("| **mean teacher**"))
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[1].startswith(f"{mean:.1f} ± ")
    assert cells[3] == f"{statistics.mean(gains):+.1f}"
    assert cells[4] == ("yes" if min(gains) > 0 else "no")
    assert "python examples/mean_teacher.py --init MODEL --teacher mean" in table
    # What is there is not run again.
    again = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300, check=True)
    assert "seed 0" in first.stdout
    assert "seed" not in again.stdout.replace("written", "")
    # Numbers of another command or of other code do not get into the table.
    other = [word for word in words if word != "--smoke"]
    refused = subprocess.run(other, env=environment(), capture_output=True, text=True, timeout=300)
    assert refused.returncode == 1
    assert "made by another command or by other code; remove it" in refused.stderr


@pytest.mark.slow
def test_table_of_folders(tmp_path):
    """The tables of other data come from runs, too: gains over the control, by seed, and what labels were like."""
    made = worlds.write(tmp_path / "made", size=32, count=4) / "fundus"
    source = ["--source-images", made / "source" / "images", "--source-masks", made / "source" / "masks"]
    masked = ["images", made / "target" / "images", "masks", made / "target" / "masks", "names", made / "val.txt"]
    parts = [f"--{part}-{word}" if isinstance(word, str) else word for part in ("target", "val") for word in masked]
    words = [sys.executable, EXAMPLES / "run_table.py", "--smoke", "--seeds", "0", "1", "--source-steps", "3"]
    words += ["--steps", "4", "--rows", "CBST", "recommended", "target labels (bound)", "--adaptation", "--lr 1e-3"]
    words += ["--out", tmp_path / "runs", "--write", tmp_path / "table.md", "--data", "folders"]
    words += ["--network", "small-unet", "--classes", made / "classes.csv", *source, *parts]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout + done.stderr
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "CBST --init" not in table
    assert "python examples/cbst.py --init MODEL --rounds 2 --steps 2 --batch 2 --lr 1e-3" in table
    assert "python examples/source_only.py --steps 3\n" in table  # without --adaptation
    found = {
        row: [json.loads((tmp_path / "runs" / f"seed{seed}" / row / "result.json").read_text()) for seed in (0, 1)]
        for row in ("cbst", "recommended", "more-source-steps")
    }
    cells = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in table.splitlines() if line.startswith("| ")}
    for row, name in (("cbst", "CBST"), ("recommended", "recommended")):
        gains = [one["mIoU"] - base["mIoU"] for one, base in zip(found[row], found["more-source-steps"], strict=True)]
        line = next(line for line in table.splitlines() if line.startswith(f"| {name} |"))
        told = [cell.strip() for cell in line.split("|")[2:-1]]
        assert told[1] == ", ".join(f"{one['mIoU']:.1f}" for one in found[row])
        assert told[2:4] == [f"{statistics.mean(gains):+.1f}", ", ".join(f"{gain:+.1f}" for gain in gains)]
    kept = ", ".join(f"{one['kept mIoU']:.1f}" for one in found["recommended"])
    assert told[4] == kept
    assert {"CBST, round 1", "CBST, round 2"} <= set(cells)  # of pseudo-labels
    labelled, right, *classes = (float(cell) if cell.strip() != "–" else None for cell in cells["CBST, round 2"])
    assert 0 < labelled < 100
    assert 0 <= right <= 100
    assert len(classes) == 3


def test_an_unknown_row_is_refused(tmp_path):
    words = [sys.executable, EXAMPLES / "run_table.py", "--rows", "CBSD", "--out", tmp_path]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "--rows CBSD: expected some of source only, BatchNorm re-estimated" in done.stderr


@pytest.mark.parametrize("truth", [False, True])
def test_labels_without_truth(tmp_path, monkeypatch, truth):
    """Target images need no masks: how many labels are right is then unknown, not 0."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from _study.tables import labels_by_round

    labels = torch.tensor([[[0, 1], [1, 255]]])
    with PseudoLabelStore(tmp_path / "pseudo-labels", 2).write(0, ["a"]) as writer:
        writer.add(["a"], PseudoLabels(labels, torch.ones(1, 2, 2)))
        writer.finish()
    record_round(tmp_path, 1, classes=["a", "b"], precision=torch.tensor([1.0, 0.5]) if truth else None)
    *_, line = labels_by_round({"CBST": [{"folder": tmp_path, "iou": {"a": 1.0, "b": 2.0}}]})
    assert line == f"| CBST, round 1 | 75 | {'67 | 100 | 50' if truth else '– | – | –'} |"


@pytest.mark.parametrize("rounds", ["0", "7"])
def test_rounds_share_the_steps(tmp_path, rounds):
    words = [sys.executable, EXAMPLES / "run_table.py", "--data=folders", "--rounds", rounds, "--out", tmp_path]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert f"--steps 120 --rounds {rounds}: expected rounds that share the steps evenly" in done.stderr


def test_data_after_an_equals_sign(tmp_path):
    """It named rows of the synthetic benchmark, and drew that."""
    words = [sys.executable, EXAMPLES / "run_table.py", "--data=folders", "--rows", "?", "--out", tmp_path]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "CRST" not in done.stderr
    assert "target labels (bound)" in done.stderr
