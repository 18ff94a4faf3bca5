"""The study on real images: its parts against plain computations, and a run on files that is asked for twice."""

import importlib
import json
import subprocess
import sys

import pytest
import torch

from tests import worlds
from tests.examples.trainers import EXAMPLES, environment


@pytest.fixture(scope="module")
def part():
    """Import a part of the study."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        yield lambda name: importlib.import_module(f"_study.{name}")
    finally:
        sys.path.remove(str(EXAMPLES))


def test_restyled_images_have_the_moments_of_a_target_image(part):
    generator = torch.Generator().manual_seed(0)
    source = torch.randint(0, 256, (3, 3, 40, 50), generator=generator, dtype=torch.uint8)
    target = torch.randint(90, 130, (1, 3, 30, 20), generator=generator, dtype=torch.uint8)
    made = part("restyling").restyle(source, target, "moments", generator)
    wanted = target.float().mean(dim=(2, 3)).expand(3, 3)
    torch.testing.assert_close(made.float().mean(dim=(2, 3)), wanted, rtol=0, atol=0.5)
    spread = target.float().std(dim=(2, 3)).expand(3, 3)
    torch.testing.assert_close(made.float().std(dim=(2, 3)), spread, rtol=0, atol=0.5)


def test_matched_histograms(part):
    image = torch.tensor([[9, 200, 30, 30]], dtype=torch.uint8).view(1, 1, 1, 4)
    style = torch.tensor([[100, 80, 70, 90]], dtype=torch.uint8).view(1, 1, 2, 2)
    # 9 is the darkest quarter, 200 the brightest; the two pixels of 30 have the middle of the ranks between.
    assert part("restyling").match_histograms(image, style).flatten().tolist() == [70, 100, 90, 90]
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 9, 11), generator=generator, dtype=torch.uint8)
    assert torch.equal(part("restyling").match_histograms(images, images), images)  # of itself


def test_mixed_styles_leave_some_images_alone(part):
    generator = torch.Generator().manual_seed(0)
    source = torch.randint(0, 256, (40, 3, 8, 8), generator=generator, dtype=torch.uint8)
    target = torch.randint(90, 130, (2, 3, 8, 8), generator=generator, dtype=torch.uint8)
    made = part("restyling").restyle(source, target, "mixed", generator)
    alone = (made == source).flatten(1).all(dim=1)
    assert 0 < int(alone.sum()) < 40
    moved = made[~alone].float().mean(dim=(2, 3))
    torch.testing.assert_close(moved, target.float().mean().expand_as(moved), rtol=0, atol=6)  # of the sources: 127
    assert source[~alone].float().mean(dim=(2, 3)).max() > 130


def test_borders_are_where_another_class_is_near(part):
    labels = torch.randint(0, 3, (2, 4, 5), generator=torch.Generator().manual_seed(1))
    labels = labels.repeat_interleave(5, 1).repeat_interleave(5, 2)
    found = part("labels").near_border(labels, 2)
    for image, row, column in [(0, 0, 0), *torch.cartesian_prod(*map(torch.arange, labels.shape)).tolist()]:
        window = labels[image, max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3]
        assert found[image, row, column] == bool((window != labels[image, row, column]).any())


def test_description_of_labels(part):
    logits = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.5, 0.5]]).log().T.reshape(1, 2, 1, 4)
    labels = torch.tensor([[[0, 1, 1, 255]]])
    truth = torch.tensor([[[0, 0, 1, 1]]])
    about = part("labels").describe(labels, logits, truth, ("a", "b"))
    assert about["share"] == pytest.approx(3 / 4)
    assert about["precision"] == pytest.approx(2 / 3)
    assert about["gradient from wrong labels"] == pytest.approx(0.6 / (0.1 + 0.6 + 0.2))
    assert about["not the most probable class"] == pytest.approx(1 / 3)
    assert about["by class"]["b"]["share of gradient"] == pytest.approx(0.8 / 0.9)
    assert about["by class"]["b"]["precision"] == pytest.approx(1 / 2)


def test_mixed_statistics(part):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
    images = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8)
    part("network").mix_statistics(net, images[:16], 0.25)
    floats = images[:16].float() / 255
    torch.testing.assert_close(net[0].running_mean, 0.25 * floats.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(net[0].running_var, 0.75 + 0.25 * floats.transpose(0, 1).flatten(1).var(dim=1))
    assert net[0].momentum == 0.1


@pytest.fixture
def results(part, tmp_path):
    """Two seeds; the second has no bound."""

    def run(*rounds):  # of mIoU and score
        found = [{"mIoU": value, "score": score} for value, score in rounds]
        return {**found[-1], "rounds": found}

    made = part("results").Results(tmp_path / "results.json")
    for seed, start in ((0, 40.0), (1, 30.0)):
        made.put("net", seed, "source only", {"mIoU": start, "score": 50.0})
        made.put("net", seed, "control", run((start + 1, 50.1), (start + 2, 51.0)))
        made.put("net", seed, "recipe", run((start + 4, 52.0), (start - 1, 51.9)))
    made.put("net", 0, "bound", run((44.0, 49.0), (48.0, 49.0)))
    return made


def test_table_of_gains(part, results):
    lines = part("results").gains(results, "net", (0, 1, 2), "control", "bound").splitlines()
    assert lines[0] == "|  | seed 0 | seed 1 | mean | gain | worst gain | share of the bound's gain |"
    assert "| source only | 40.0 | 30.0 | 35.0 | -2.0 | -2.0 | – |" in lines
    assert "| recipe | 39.0 | 29.0 | 34.0 | -3.0 | -3.0 | – |" in lines  # the last round counts
    assert "| bound | 48.0 | – | 48.0 | +6.0 | +6.0 | 1.00 |" in lines


def test_table_of_checks(part, results):
    lines = part("results").checks(results, "net", (0, 1), "score", 0.5).splitlines()
    assert "| control | 0 | 50.0, 50.1, 51.0 | 40.0, 41.0, 42.0 | round 2 | 42.0 |" in lines
    assert "| recipe | 1 | 50.0, 52.0, 51.9 | 30.0, 34.0, 29.0 | round 1 | 34.0 |" in lines
    assert "| bound | 0 | 50.0, 49.0, 49.0 | 40.0, 44.0, 48.0 | do not adapt | 40.0 |" in lines
    assert len(lines) == 2 + 5


@pytest.mark.slow
def test_study_on_files_goes_on_where_it_was(tmp_path):
    worlds.fundus(tmp_path, 48, 16, worlds.np.random.default_rng(0))
    source = ("--source", tmp_path / "source" / "images", tmp_path / "source" / "masks", "*")
    target = (tmp_path / "target" / "images", tmp_path / "target" / "masks", tmp_path / "val.txt")
    words = [sys.executable, EXAMPLES / "study_real.py", *source, "--target", *target, "--val", *target]
    words += ["--classes", tmp_path / "classes.csv", "--resize", "32", "32", "--network", "small-unet"]
    words += ["--source-steps", "3", "--steps", "1", "--out", tmp_path / "out"]
    few = ["--variants", "control: source only", "mean teacher, ClassMix", "LRENT soft labels"]
    few += ["two rounds, teacher, masked, mixed styles"]
    first = subprocess.run([*words, *few], env=environment(), capture_output=True, text=True, timeout=300)
    assert first.returncode == 0, first.stdout + first.stderr
    before = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["small-unet"]["0"]
    assert set(few[1:]) < set(before)
    more = subprocess.run([*words, *few, "all pixels"], env=environment(), capture_output=True, text=True, timeout=300)
    assert more.returncode == 0, more.stdout + more.stderr
    assert "seed 0, all pixels: mIoU" in more.stdout
    assert "seed 0, LRENT" not in more.stdout  # was there
    after = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["small-unet"]["0"]
    assert after.pop("all pixels")["labels"]["share"] == 1
    assert after == before
    other = subprocess.run([*words, "--lr", "1"], env=environment(), capture_output=True, text=True, timeout=300)
    assert other.returncode == 1
    assert "made with lr 0.0005, now 1.0; remove it" in other.stderr
    assert f"| control: source only | 1 | {before['control: source only']['mIoU']:.1f} |" in more.stdout
