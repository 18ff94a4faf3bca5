"""The quickstart itself, run as a stranger runs it, with a setting small enough for a test."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
SMALL = ["--images", "16", "16", "8", "--source-steps", "4", "--steps", "40", "--rounds", "2"]


def command(out, *options):
    return [sys.executable, str(ROOT / "examples" / "quickstart.py"), "--out", str(out), *options]


def environment():
    # Matplotlib's and torch's caches must not decide whether the test passes.
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}


def run(out, *options):
    return subprocess.run(command(out, *options), env=environment(), capture_output=True, text=True, check=True).stdout


def rounds(out):
    return {path.name: torch.load(path, weights_only=True) for path in sorted((out / "rounds").glob("*.pt"))}


@pytest.mark.slow
def test_smoke_with_all_options(tmp_path):
    output = run(tmp_path, "--smoke", "--compare", "--mine", "--method", "mrkld", "--seed", "0", "1")
    table = output[output.index("target validation, IoU in %, mean of 2 seeds") :].splitlines()
    names = ["source only", "BatchNorm re-estimated", "CRST-MRKLD", "control: more source steps"]
    names += ["one global threshold", "bound: target labels"]
    for line, name in zip(table[2:8], names, strict=True):
        assert line.startswith(name)
        numbers = [float(number) for number in re.findall(r"\d+\.\d|nan", line[len(name) :])]
        assert len(numbers) == 15
        assert 0 <= numbers[0] <= 100
    assert output.count("round 2, portion 0.4") == 4  # two methods that select, two seeds
    with Image.open(tmp_path / "quickstart-report.png") as picture:
        assert picture.size[0] > 800
        assert len(picture.convert("RGB").getcolors(maxcolors=10**7)) > 1000
    assert not list(tmp_path.rglob("*.tmp*"))


@pytest.mark.slow
def test_killed_and_restarted_gives_the_same_numbers(tmp_path):
    whole = run(tmp_path / "whole", *SMALL)
    killed = tmp_path / "killed"
    with subprocess.Popen(command(killed, *SMALL), env=environment(), stdout=subprocess.DEVNULL) as process:
        while not list((killed / "rounds").glob("*round1.pt")):
            assert process.poll() is None, "ended before it could be killed"
            time.sleep(0.005)
        process.kill()
    assert not list((killed / "rounds").glob("*round2.pt")), "killed too late to show anything"
    resumed = run(killed, *SMALL)
    assert "(from " in resumed
    assert "(from " not in whole
    expected, got = rounds(tmp_path / "whole"), rounds(killed)
    assert expected.keys() == got.keys()
    assert len(got) == 2
    for name, saved in expected.items():
        assert torch.equal(saved["iou"].nan_to_num(-1), got[name]["iou"].nan_to_num(-1))
        for parameter, value in saved["net"].items():
            assert torch.equal(value, got[name]["net"][parameter]), parameter
    last = "target validation, IoU in %"
    assert whole[whole.index(last) :].splitlines()[:5] == resumed[resumed.index(last) :].splitlines()[:5]
