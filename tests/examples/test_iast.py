"""IAST: a sequential selector, two networks that learn at once, kills at any moment, two ranks."""

import json
import random
import shutil

import pytest
import torch

from selftrain_seg.store import PseudoLabelStore
from tests.examples.trainers import assert_same_network, result, run, run_and_kill

pytestmark = pytest.mark.slow

# γ = 0 and a large portion: a network that has learnt next to nothing labels half of the pixels, too.
SETTINGS = ["--smoke", "--rounds", 2, "--portion", 0.5, 0.05, 0.6, "--gamma", 0, "--momentum", 0.5]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder for the data, which the first run draws."""
    return tmp_path_factory.mktemp("data") / "streets"


def stored(out):
    store = PseudoLabelStore(out / "pseudo-labels", 13)
    assert store.rounds() == [0, 1]
    assert not any(store.verify(round) for round in store.rounds())
    return [store.round(round) for round in store.rounds()]


def files(out):
    """The bytes of all pseudo-labels and of the list that tells their counts and checksums."""
    folder = out / "pseudo-labels"
    paths = [*folder.rglob("*.png"), *folder.rglob("images.jsonl")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_options(root, tmp_path):
    options = [*SETTINGS, "--root", root, "--images", 8, 20, 4, "--per", "batch", "--accumulate", 2, "--amp", "bf16"]
    options += ["--lr-factors", 1, 0.5, "--schedule", "cosine", "--decay-over", 1.5, "--optimizer", "adam"]
    assert "before training: mIoU" in run("iast.py", tmp_path, *options, "--warmup-steps", 0)
    assert not list(tmp_path.glob("checkpoints/warmup*"))
    assert [round.settings.portion for round in stored(tmp_path)] == [0.5, 0.55]
    assert 0 <= json.loads((tmp_path / "result.json").read_text())["mIoU"] <= 100


def test_killed_again_and_again_gives_the_same_labels_and_network(root, tmp_path):
    """In the warm-up, while labelling, while training."""
    options = [*SETTINGS, "--root", root, "--images", 8, 20, 4, "--batch", 2, "--steps", 6, "--warmup-steps", 6]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run("iast.py", whole, *options)
    assert all(0.2 < round.selected_share < 0.9 for round in stored(whole))

    run_and_kill("iast.py", killed, *options, wait_for="checkpoints/warmup-000002", seed=1, within=0.1)
    assert not (killed / "pseudo-labels").exists(), "killed too late to show anything"
    written = random.Random(2).randint(1, 10)  # noqa: S311
    labels = "pseudo-labels/round-0001/labels/**/*.png"
    for _ in range(5):  # on a busy machine the kill may come too late
        run_and_kill("iast.py", killed, *options, wait_for=labels, files=written, seed=2, within=0.0)
        if len(list(killed.glob(labels))) < 20:
            break
        shutil.rmtree(killed / "pseudo-labels")
    assert len(list(killed.glob(labels))) < 20, "killed too late to show anything"
    run_and_kill("iast.py", killed, *options, wait_for="checkpoints/round2-000002", seed=3, within=0.1)
    assert not (killed / "result.json").exists(), "killed too late to show anything"
    assert "continues after step" in run("iast.py", killed, *options)

    assert files(whole) == files(killed)
    assert len(files(whole)) == 2 * (20 + 1)
    assert_same_network(whole, killed)
    assert result(whole) == result(killed)
    first, second = (json.loads((whole / "rounds" / f"round-000{number}.json").read_text()) for number in (1, 2))
    assert first["thresholds"] != second["thresholds"]
    assert not list(killed.rglob("*.tmp"))


def test_two_processes(tmp_path):
    # An odd number of images: one rank runs out first.
    options = [*SETTINGS, "--root", tmp_path / "streets", "--images", 8, 7, 4]
    # In pieces of the same batch: no BatchNorm, and nothing that makes much of little gradients.
    options += ["--frozen-bn", "--reestimate-bn", 0, "--optimizer", "sgd"]
    warm_up = [0 if before == "--rounds" else word for before, word in zip([None, *options], options, strict=False)]
    run("iast.py", tmp_path / "one", *warm_up)
    run("iast.py", tmp_path / "two", *warm_up, processes=2)
    folders = [tmp_path / name / "checkpoints" / "warmup-000003" for name in ("one", "two")]
    for network, tolerance in (("pytorch_model.bin", 1e-5), ("pytorch_model_1.bin", 1e-4)):  # student and judge
        one, two = (torch.load(folder / network, weights_only=True) for folder in folders)
        assert len(one) == len(two) > 5
        for name, tensor in two.items():
            torch.testing.assert_close(tensor, one[name.removeprefix("module.")], atol=tolerance, rtol=0, msg=name)
    assert "warmup: continues after step 3" in run("iast.py", tmp_path / "two", *options, processes=2)
    assert [len(found) for found in stored(tmp_path / "two")] == [7, 7]
    last = tmp_path / "two" / "checkpoints" / "round2-000003"
    thetas = [torch.load(last / f"rank{rank}of2.pt", weights_only=True)["selector"]["thresholds"] for rank in (0, 1)]
    assert torch.equal(*thetas)
    assert (thetas[0] != 0.9).any()
