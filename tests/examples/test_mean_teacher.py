"""Source training and the online teachers, from exported folders."""

import json
import re

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.examples.trainers import assert_same_network, result, run, run_and_kill, run_as_people_do

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A source model, and the data it was trained on."""
    folder = tmp_path_factory.mktemp("source")
    out, root = folder / "out", folder / "streets"
    output = run("source_only.py", out, "--smoke", "--steps", 21, "--root", root)
    expected = r"before training: mIoU .*trained on source; on the target: mIoU \d+\.\d, rare \d+\.\d"
    assert re.search(expected, output, re.DOTALL)
    return out / "model.pt", root


def test_reads_folders_in_the_real_layout(source):
    model, root = source
    assert sorted(path.name for path in root.iterdir()) == ["complete", "source", "target"]
    with Image.open(root / "source" / "labels" / "00001.png") as labels:
        assert labels.mode == "P"
    # Training data without the target's labels: the files may as well not be there.
    assert (root / "target" / "gtFine" / "train").exists()
    assert result(model.parent).keys() >= {"mIoU", "rare", "iou", "seed", "data"}


def test_board_shows_numbers_and_label_maps(source):
    model, _ = source
    board = EventAccumulator(str(model.parent / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    board.Reload()
    assert [event.step for event in board.Scalars("loss")][:3] == [0, 10, 20]
    picture = board.Images("images, predictions, truth")[-1]
    # Three rows, and as many columns as validation images are shown: 6 of 8.
    assert (picture.height, picture.width) == (3 * (64 + 2) + 2, 6 * (128 + 2) + 2)


def test_batchnorm_alone(source, tmp_path):
    model, root = source
    options = ["--smoke", "--root", root, "--init", model, "--steps", 0]
    output = run("source_only.py", tmp_path / "as-is", *options)
    assert "not trained; on the target: mIoU" in output
    assert "trained on source" not in output
    run("source_only.py", tmp_path / "bn", *options, "--reestimate-bn", 1)
    as_is, bn = (torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("as-is", "bn"))
    trained = torch.load(model, weights_only=True)
    for name, tensor in trained.items():
        assert torch.equal(tensor, as_is[name]), name
        statistics = name.endswith(("running_mean", "running_var"))
        assert torch.equal(tensor, bn[name]) is not statistics, name
    assert result(tmp_path / "as-is")["iou"] != result(tmp_path / "bn")["iou"]


@pytest.mark.parametrize("teacher", ["dual", "dynamic"])
def test_killed_and_restarted_gives_the_same_network(teacher, source, tmp_path):
    model, root = source
    options = ["--smoke", "--root", root, "--init", model, "--teacher", teacher, "--steps", 14, "--batch", 2]
    options += ["--checkpoint-every", 2]
    options += ["--turn", 5] if teacher == "dual" else []
    run("mean_teacher.py", tmp_path / "whole", *options)
    killed = tmp_path / "killed"
    moment = {"wait_for": "checkpoints/*-000004", "seed": len(teacher), "within": 0.1}
    run_and_kill("mean_teacher.py", killed, *options, **moment)
    assert not (killed / "result.json").exists(), "killed too late to show anything"
    assert "continues after step" in run("mean_teacher.py", killed, *options)
    assert_same_network(tmp_path / "whole", killed)
    assert result(tmp_path / "whole") == result(killed)
    assert not list(killed.rglob("*.tmp"))


def test_two_processes(source, tmp_path):
    model, root = source
    options = ["--smoke", "--root", root, "--init", model, "--accumulate", 2, "--amp", "bf16", "--teacher", "dynamic"]
    run_as_people_do("mean_teacher.py", tmp_path, *options, processes=2)
    (folder,) = (tmp_path / "checkpoints").iterdir()
    first, second = (torch.load(path, weights_only=True) for path in sorted(folder.glob("rank*of2.pt")))
    for name, tensor in first["teacher"].items():
        # Each rank keeps its own target batches, and in train mode BatchNorm's running statistics serve nothing.
        if name != "_extra_state" and "running_" not in name:
            assert torch.equal(tensor, second["teacher"][name]), name
    assert first["teacher"]["observed"] == 3
    assert 0 <= json.loads((tmp_path / "result.json").read_text())["mIoU"] <= 100


def test_nothing_is_learnt_beyond_the_edge_of_an_image(source, tmp_path):
    model, root = source
    options = ["--smoke", "--root", root, "--init", model, "--threshold", 0, "--log-every", 1, "--batch", 2]
    for name, crop, share in (("inside", (64, 128), 1), ("beyond", (96, 192), 64 * 128 / (96 * 192))):
        run("mean_teacher.py", tmp_path / name, *options, "--steps", 2, "--crop", *crop)
        board = EventAccumulator(str(tmp_path / name / "tensorboard"))
        board.Reload()
        # Every pixel is sure enough, so the mean weight is the share of pixels that exist.
        assert [event.value for event in board.Scalars("weight")] == pytest.approx([share, share])


def test_other_settings_are_refused(source, tmp_path):
    model, root = source
    options = ["--smoke", "--root", root, "--init", model, "--steps", 2]
    run("source_only.py", tmp_path, *options)
    before = (tmp_path / "model.pt").read_bytes()
    with pytest.raises(AssertionError, match=r"was begun with steps 2, now 3; lr 0\.004, now 0\.1: choose"):
        run("source_only.py", tmp_path, *options, "--steps", 3, "--lr", 0.1)
    with pytest.raises(AssertionError, match="was begun with processes 1, now 2"):
        run("source_only.py", tmp_path, *options, processes=2)
    assert (tmp_path / "model.pt").read_bytes() == before
    assert "continues after step 2" in run("source_only.py", tmp_path, *options, "--flip", "--checkpoint-every", 7)


def test_what_cannot_work_is_said(source, tmp_path):
    model, root = source
    options = ["--smoke", "--root", root, "--init", model]
    with pytest.raises(AssertionError, match="not the weights of this --network with these classes"):
        run("source_only.py", tmp_path, *options, "--network", "lraspp_mobilenet_v3_large")
    with pytest.raises(AssertionError, match=r"nowhere\.pt: no such file"):
        run("source_only.py", tmp_path, *options, "--init", tmp_path / "nowhere.pt")
    with pytest.raises(AssertionError, match=r"--steps -1: expected at least 0"):
        run("source_only.py", tmp_path, *options, "--steps", -1)


def test_nothing_is_removed_that_was_not_drawn(tmp_path):
    kept = tmp_path / "cityscapes" / "leftImg8bit" / "kept.png"
    kept.parent.mkdir(parents=True)
    kept.touch()
    with pytest.raises(AssertionError, match="has files that are not of the synthetic benchmark"):
        run("source_only.py", tmp_path / "out", "--smoke", "--root", tmp_path / "cityscapes")
    assert kept.exists()


def test_data_that_is_not_there_is_said(source, tmp_path):
    _, root = source
    gta5 = ["--data", "gta5", "--network", "small-unet", "--source-root", root / "source"]
    with pytest.raises(AssertionError, match="give the folder of the data with --root"):
        run("mean_teacher.py", tmp_path, "--data", "gta5")
    with pytest.raises(AssertionError, match=r"--data gta5: .*expected a folder .*leftImg8bit") as caught:
        run("mean_teacher.py", tmp_path, *gta5, "--root", tmp_path)
    assert "Traceback" not in str(caught.value)
    (tmp_path / "train-only" / "leftImg8bit").mkdir(parents=True)
    (tmp_path / "train-only" / "leftImg8bit" / "train").symlink_to(root / "target" / "leftImg8bit" / "train")
    (tmp_path / "train-only" / "gtFine").symlink_to(root / "target" / "gtFine")
    with pytest.raises(AssertionError, match=r"--data gta5: .*expected a folder .*val"):
        run("mean_teacher.py", tmp_path, *gta5, "--root", tmp_path / "train-only")


def test_a_benchmark_that_other_code_drew_is_refused(tmp_path):
    run("source_only.py", tmp_path / "out", "--smoke", "--steps", 0, "--root", tmp_path / "streets")
    (tmp_path / "streets" / "complete").write_text("00000000", encoding="utf-8")
    with pytest.raises(
        AssertionError, match="holds the benchmark of 00000000; expected --seed 0 --images 16 12 8, code"
    ):
        run("source_only.py", tmp_path / "other", "--smoke", "--root", tmp_path / "streets")
