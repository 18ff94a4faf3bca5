"""The quickstart itself, run as a stranger runs it, with a setting small enough for a test."""

import json
import re
import shutil

import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

from selftrain_seg.datasets import SyntheticStreets
from selftrain_seg.stopping import RoundCheck
from tests.examples.trainers import EXAMPLES, run, run_and_kill, run_as_people_do

SMALL = ["--images", 16, 16, 8, "--source-steps", 4, "--steps", 6, "--rounds", 2]


@pytest.fixture
def common(monkeypatch):
    """Lets a test import what the examples share."""
    monkeypatch.syspath_prepend(EXAMPLES)


class SureNetwork(nn.Module):
    """A network whose confidence is set by a factor."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.norm = nn.Conv2d(3, 13, 3, padding=1), nn.BatchNorm2d(13)
        self.factor = nn.Parameter(torch.tensor(1.0))

    def forward(self, images):
        return self.factor * self.norm(self.head(images))


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
def test_smoke_of_the_recommended_recipe(tmp_path):
    output = run("quickstart.py", tmp_path, "--smoke", "--method", "recommended")
    score = r"mIoU on restyled source (\d+\.\d)"
    before = float(re.search(rf"^recommended recipe, before training: {score}$", output, re.MULTILINE)[1])
    after = re.findall(rf"^recommended recipe, round (\d): target mIoU \d+\.\d, {score}$", output, re.MULTILINE)
    assert [number for number, _ in after] == ["1", "2"]
    assert "precision" not in output  # no labels of a whole round
    (verdict,) = re.findall(r"^recommended recipe: (.*)$", output, re.MULTILINE)
    best = max(after, key=lambda found: float(found[1]))
    expected = "adaptation is not helping here: keep the network before training"
    if float(best[1]) > before + 1.05:  # scores are rounded
        expected = f"keep round {best[0]} (mIoU on restyled source {best[1]}, +"
    assert verdict.startswith(expected)
    assert output.index("target validation, IoU in %") < output.index(f"recommended recipe: {verdict}")
    found = json.loads((tmp_path / "quickstart" / "result.json").read_text(encoding="utf-8"))
    assert found["verdict, recommended recipe"] == verdict
    assert found["recommended recipe"]["iou"].keys() == found["source only"]["iou"].keys()
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert verdict in page
    assert "mIoU on restyled source by round" in page
    assert "confidence that a pixel must reach" not in page
    assert "left out" not in page


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cbst", "recommended"])
def test_killed_and_restarted_gives_the_same_numbers(tmp_path, method):
    small = [*SMALL, "--method", method]
    whole = run("quickstart.py", tmp_path / "whole", *small)
    killed = tmp_path / "killed"
    run_and_kill("quickstart.py", killed, *small, wait_for="rounds/*round1.pt", seed=0, within=0.0)
    assert not list((killed / "rounds").glob("*round2.pt")), "killed too late to show anything"
    resumed = run("quickstart.py", killed, *small)
    assert "(from " in resumed
    assert "(from " not in whole
    expected, got = rounds(tmp_path / "whole"), rounds(killed)
    assert expected.keys() == got.keys()
    assert len(got) == 2
    for name, saved in expected.items():
        assert torch.equal(saved["iou"].nan_to_num(-1), got[name]["iou"].nan_to_num(-1))
        for parameter, value in saved["net"].items():
            assert torch.equal(value, got[name]["net"][parameter]), parameter
        if method == "recommended":
            teacher, again = (one["recipe"]["teacher"] for one in (saved, got[name]))
            assert all(torch.equal(value, again[parameter]) for parameter, value in teacher.items())
            assert teacher["step"] == 6 * int(re.search(r"round(\d)", name)[1])  # it is not begun anew
            assert saved["recipe"]["check"] == got[name]["recipe"]["check"]
    # The table, and the verdict of the recommended recipe.
    last, end = "target validation, IoU in %", "\nreport:"
    assert ("recommended recipe: " in whole) == (method == "recommended")
    assert whole[whole.index(last) : whole.index(end)] == resumed[resumed.index(last) : resumed.index(end)]


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


def test_crops_need_the_labels_of_a_round(common, monkeypatch, capsys):
    import quickstart

    monkeypatch.setattr("sys.argv", ["quickstart.py", "--mine", "--method", "recommended"])
    with pytest.raises(SystemExit):
        quickstart.arguments()
    assert "--mine needs the labels of a whole round: expected --method cbst or mrkld, got recommended" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [
        (
            [50.0, 53.0, 54.5, 54.2],
            "keep round 2 (mIoU on restyled source 54.5, +4.5 over the network before training)",
        ),
        ([50.0, 53.0, 53.4], "keep round 2 (mIoU on restyled source 53.4, +3.4 over the network before training)"),
        (
            [50.0, 50.6, 51.0],
            "adaptation is not helping here: keep the network before training (mIoU on restyled source 50.0, at best "
            "51.0 after a round; a gain of 1 point or less is noise)",
        ),
        (
            [50.0, 48.0, 49.0],
            "adaptation is not helping here: keep the network before training (mIoU on restyled source 50.0, at best "
            "49.0 after a round; a gain of 1 point or less is noise)",
        ),
    ],
)
def test_verdict(common, scores, verdict):
    from _quickstart import online

    check = RoundCheck(online.SCORE)
    for number, score in enumerate(scores):
        check.record(number, {online.SCORE: score})
    assert online.verdict(check) == verdict


def streets(domain, length):
    images, labels = zip(*SyntheticStreets(domain, "val", length=length, size=(32, 48)), strict=True)
    return TensorDataset((torch.stack(images) * 255).byte(), torch.stack(labels).byte())


def test_recipe_trains_the_student_by_the_confidence_of_its_teacher(common):
    from _quickstart.online import Recommended

    target = streets("target", 4)
    net = SureNetwork()
    recipe = Recommended(net, streets("source", 4), target)
    net.factor.data.fill_(0.01)  # no pixel reaches the threshold: a teacher in doubt teaches nothing
    assert recipe.loss(net, target.tensors[0]) == 0
    assert recipe.teacher.step == 1
    net.factor.data.fill_(100.0)  # the teacher follows slowly, and is sure of some pixels
    recipe.teacher.load_state_dict({**recipe.teacher.state_dict(), "step": torch.tensor(0)})
    loss = recipe.loss(net, target.tensors[0])
    loss.backward()
    assert loss > 0
    assert net.head.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in recipe.teacher.parameters())


def test_check_reads_labels_of_held_out_source_images_only(common):
    from _quickstart.online import Recommended

    net, source, target = SureNetwork(), streets("source", 4), streets("target", 4)

    def score(held_out, target):
        return Recommended(net, held_out, target).check.scores[0]

    before = score(source, target)
    assert before == score(source, TensorDataset(target.tensors[0], 12 - target.tensors[1].clamp(max=12)))
    assert before != score(TensorDataset(source.tensors[0], 12 - source.tensors[1].clamp(max=12)), target)
    assert before != score(source, TensorDataset(255 - target.tensors[0], target.tensors[1]))
