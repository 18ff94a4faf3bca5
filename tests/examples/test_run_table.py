"""The table of the documentation comes from runs, and its numbers are theirs."""

import json
import statistics
import subprocess
import sys

import pytest

from tests.examples.trainers import EXAMPLES, environment


@pytest.mark.slow
def test_table(tmp_path):
    words = [sys.executable, EXAMPLES / "run_table.py", "--smoke", "--seeds", "0", "1", "--rows", "mean teacher"]
    words += ["--out", tmp_path / "runs", "--write", tmp_path / "docs" / "table.md"]
    first = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=600)
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
    again = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=60, check=True)
    assert "seed 0" in first.stdout
    assert "seed" not in again.stdout.replace("written", "")
    # Numbers of another command or of other code do not get into the table.
    other = [word for word in words if word != "--smoke"]
    refused = subprocess.run(other, env=environment(), capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert "made by another command or by other code; remove it" in refused.stderr
