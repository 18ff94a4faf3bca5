"""DT-ST: snapshots, a dynamic teacher and pasted regions, from folders; killed at any moment, on two ranks."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from selftrain_seg.store import PseudoLabelStore
from tests.examples.trainers import EXAMPLES, assert_same_network, result, run, run_and_kill

pytestmark = pytest.mark.slow

# Snapshots at steps 0, 4 and 8; the teacher decides for the first time at the ninth step.
SHORT = ["--smoke", "--steps", 11, "--batch", 2, "--refresh", 4, "--checkpoint-every", 3]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Options that name the data and the network to start from."""
    folder = tmp_path_factory.mktemp("source")
    run("source_only.py", folder / "out", "--smoke", "--steps", 20, "--root", folder / "streets")
    return ["--root", folder / "streets", "--init", folder / "out" / "model.pt"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, start):
    """The folder of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    assert "continues after step" not in run("dtst.py", out, *start, *SHORT)
    return out


def files(out, round="*"):
    """The bytes of the pseudo-labels of the snapshots."""
    paths = (out / "pseudo-labels").glob(f"round-{round}/**/*.png")
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths}


def checkpoint(out, rank=0, world=1):
    folder = out / "checkpoints" / "snapshot2-000003"
    files = {"net": "pytorch_model.bin", "optimizer": "optimizer.bin"}
    own = torch.load(folder / f"rank{rank}of{world}.pt", weights_only=True)
    return own | {name: torch.load(folder / file, weights_only=True) for name, file in files.items()}


def assert_equal(one, other, place):
    """Of the same tensors and numbers."""
    assert type(one) is type(other), place
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, (dict, list)):
        pairs = one if isinstance(one, dict) else range(len(one))
        assert (one.keys() == other.keys()) if isinstance(one, dict) else (len(one) == len(other)), place
        for key in pairs:
            assert_equal(one[key], other[key], f"{place}/{key}")
    else:
        assert one == other, place


# Runs the trainer, and prints for each batch how much is padding and which share of the padding has a label.
PADDING = """
import runpy, sys
from selftrain_seg.selectors import RunningConfidenceSelector
from selftrain_seg.teachers import DynamicTeacher

seen, predict, select = [], DynamicTeacher.forward, RunningConfidenceSelector.forward

def forward(self, images):
    seen.append((images == 0).all(dim=1))
    return predict(self, images)

def selected(self, logits, **options):
    pseudo = select(self, logits, **options)
    padding = seen[-1]
    print("padding", float(padding.float().mean()), "labelled", int((pseudo.labels[padding] != 255).sum()))
    return pseudo

DynamicTeacher.forward, RunningConfidenceSelector.forward = forward, selected
sys.path.insert(0, {folder!r})
runpy.run_path({script!r}, run_name="__main__")
"""


def test_padding_has_no_labels(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for number, (height, width) in enumerate([(64, 96), (40, 96), (64, 50), (33, 41)]):
        noise = np.random.default_rng(number).integers(60, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(noise[:, :, 0] // 160).save(tmp_path / "masks" / f"{number}.png")
    (tmp_path / "classes.json").write_text('{"0": "ground", "1": "roof"}', encoding="utf-8")
    script = tmp_path / "dtst.py"
    script.write_text(PADDING.format(folder=str(EXAMPLES), script=str(EXAMPLES / "dtst.py")), encoding="utf-8")
    options = ["--data", "folders", "--target-images", tmp_path / "images", "--classes", tmp_path / "classes.json"]
    options += ["--smoke", "--network", "small-unet", "--batch", 4]
    source = ["--source-images", tmp_path / "images", "--source-masks", tmp_path / "masks"]
    run("source_only.py", tmp_path / "source", *options, *source)
    output = run(script, tmp_path / "out", *options, "--init", tmp_path / "source" / "model.pt")
    batches = re.findall(r"padding (\S+) labelled (\d+)", output)
    assert max(float(share) for share, _ in batches) > 0.2
    assert {labelled for _, labelled in batches} == {"0"}


def test_options(start, tmp_path):
    options = ["--accumulate", 2, "--amp", "bf16", "--score", "entropy", "--train-resize", 32, 64, "--crop", 48, 80]
    options += ["--pastes", 2, "--view-scale", 0.5, 2.0, "--negative", 0, "--decay-over", 3.5, "--workers", 1]
    options += ["--cut-out-chance", 0.5, "--dynamic-update", 2, 1, 4]
    output = run("dtst.py", tmp_path, *start, "--smoke", *options)
    assert "round 1: StoredRound(0, 12 images" in output
    before, after = (torch.load(path, weights_only=True) for path in (start[-1], tmp_path / "model.pt"))
    assert before.keys() == after.keys()
    assert all(tensor.isfinite().all() for tensor in after.values())
    # The teacher is saved, and follows the student only once it has improved: look at the student.
    student = torch.load(tmp_path / "checkpoints" / "snapshot0-000003" / "pytorch_model.bin", weights_only=True)
    assert any(not torch.equal(before[name], tensor) for name, tensor in student.items() if name.endswith("weight"))
    assert 0 <= result(tmp_path)["mIoU"] <= 100
    assert not list(tmp_path.rglob("*.tmp*"))


def test_killed_twice_and_restarted_gives_the_same_network(start, whole, tmp_path):
    # What is there when the process is killed, each a random moment later: half a snapshot, steps not yet saved.
    for moment in ("pseudo-labels/round-0001/settings.json", "checkpoints/snapshot1-000003"):
        run_and_kill("dtst.py", tmp_path, *start, *SHORT, wait_for=moment, seed=len(moment), within=0.2)
        assert not (tmp_path / "result.json").exists(), "killed too late to show anything"
    assert "continues after step" in run("dtst.py", tmp_path, *start, *SHORT)
    assert_same_network(whole, tmp_path)
    assert result(whole) == result(tmp_path)
    assert len(files(whole)) == 3 * 12 + 12  # labels, and confidences of the first snapshot
    assert files(whole) == files(tmp_path)
    store = PseudoLabelStore(whole / "pseudo-labels", 13)
    assert all(torch.equal(one.counts.sum(1), one.pixels) for one in map(store.round, range(3)))  # of all pixels
    state = checkpoint(whole)
    assert state.keys() == {"net", "teacher", "selector", "bank", "optimizer", "buffers"}
    assert_equal(state, checkpoint(tmp_path), "checkpoint")
    assert state["bank"]["snapshots"] == 3
    assert state["bank"]["compared"].all()
    assert len(state["teacher"]["_extra_state"]["history"]) == 1


def test_two_processes(start, whole, tmp_path):
    run("dtst.py", tmp_path, *start, *SHORT, processes=2)
    assert files(whole, "0000") == files(tmp_path, "0000")
    first, second = (checkpoint(tmp_path, rank, 2) for rank in (0, 1))
    for name in ("selector", "bank"):
        assert_equal(first[name], second[name], name)
    for key, value in first["teacher"].items():
        # Each rank keeps its own target batches, and BatchNorm's statistics of them.
        if key != "_extra_state" and "running_" not in key:
            assert_equal(value, second["teacher"][key], f"teacher/{key}")
    images = [[kept[0] for kept in state["teacher"]["_extra_state"]["images"]] for state in (first, second)]
    # An image may be drawn on both ranks, as images are drawn with replacement.
    assert not all(torch.equal(*pair) for pair in zip(*images, strict=True))
    assert 0 <= result(tmp_path)["mIoU"] <= 100


def test_no_stable_labels_is_an_error(start, tmp_path):
    weights = torch.load(start[-1], weights_only=True)
    blank = {name: tensor * torch.nan if name.startswith("head") else tensor for name, tensor in weights.items()}
    torch.save(blank, tmp_path / "blank.pt")  # NaN logits: not one pixel gets a label
    with pytest.raises(AssertionError, match=r"snapshot 0: no class of any image has stable labels.*--init.*--refresh"):
        run("dtst.py", tmp_path / "out", *start[:-1], tmp_path / "blank.pt", *SHORT)
