"""The quickstart itself, run as a stranger runs it, with a setting small enough for a test."""

import re
import shutil

import pytest
import torch
from PIL import Image

from tests.examples.trainers import EXAMPLES, run, run_and_kill, run_as_people_do

SMALL = ["--images", 16, 16, 8, "--source-steps", 4, "--steps", 6, "--rounds", 2]


def rounds(out):
    return {path.name: torch.load(path, weights_only=True) for path in sorted((out / "rounds").glob("*.pt"))}


@pytest.mark.slow
def test_smoke_with_all_options(tmp_path):
    options = ["--smoke", "--compare", "--mine", "--method", "mrkld", "--seed", 0, 1]
    output = run_as_people_do("quickstart.py", tmp_path, *options)
    table = output[output.index("target validation, IoU in %, mean of 2 seeds") :].splitlines()
    names = ["source only", "BatchNorm re-estimated", "CRST-MRKLD", "control: more source steps"]
    names += ["one global threshold", "upper bound: target labels"]
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
    whole = run("quickstart.py", tmp_path / "whole", *SMALL)
    killed = tmp_path / "killed"
    run_and_kill("quickstart.py", killed, *SMALL, wait_for="rounds/*round1.pt", seed=0, within=0.0)
    assert not list((killed / "rounds").glob("*round2.pt")), "killed too late to show anything"
    resumed = run("quickstart.py", killed, *SMALL)
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


@pytest.mark.slow
def test_changed_code_is_run_again(tmp_path):
    """What is kept for later runs was made by the very code that reads it."""
    copied = tmp_path / "examples"
    shutil.copytree(EXAMPLES, copied, ignore=shutil.ignore_patterns("__pycache__"))
    first = run(copied / "quickstart.py", tmp_path / "out", *SMALL)
    script = copied / "quickstart.py"
    text = script.read_text(encoding="utf-8")
    assert "lr=2e-3" in text
    script.write_text(text.replace("lr=2e-3", "lr=3e-2"), encoding="utf-8")
    other = run(script, tmp_path / "out", *SMALL)
    assert "(from " not in other
    last = "target validation, IoU in %"
    assert first[first.index(last) :] != other[other.index(last) :]
    assert "(from " in run(script, tmp_path / "out", *SMALL)
