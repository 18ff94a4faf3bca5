"""Trainers in rounds (CBST, CRST, DST-CBC, DMT), from exported folders: all options, two ranks, killed and resumed."""

import json
from argparse import Namespace
from contextlib import nullcontext

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision import tv_tensors

from selftrain_seg.mining import SmallClassCrop
from selftrain_seg.store import PseudoLabelStore
from tests.examples.trainers import EXAMPLES, assert_same_network, result, run, run_and_kill

pytestmark = pytest.mark.slow

SMALL = ["--smoke", "--images", 8, 6, 4, "--batch", 2, "--rounds", 2]
MINED = ["--mine", "--crop", 48, 160, "--source-portion", 0.5, 0.25, 1.0]  # crops higher and wider than what is left
CROPPED = ["--crop", 72, 96]
GAMMAS = ["--gamma-agree", 1, "--gamma-disagree", 2]
LABELLED = ["--label-scales", 0.5, 1.0, "--label-flip", "--stride", 2]
RUNS = {
    "cbst": ["cbst.py", "--spatial-prior", "--lr-decay", 0.7, *MINED],
    "crst": ["crst.py", "--regularizer", "lrent", *MINED],
    "crst-mrkld": ["crst.py", "--source-alpha", 0.01],
    "dmt": ["dst_cbc.py", "--mutual", "--flip-labels", "--stride", 2, *GAMMAS, *CROPPED],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder for the data, which the first run draws."""
    return tmp_path_factory.mktemp("data") / "streets"


def stores(out):
    found = [PseudoLabelStore(folder, 13) for folder in sorted(out.glob("pseudo-labels*"))]
    assert found
    return found


def files(out, round="*"):
    """The bytes of the pseudo-labels, and of the lists that tell their counts and checksums."""
    paths = [path for end in ("*.png", "images.jsonl") for path in out.glob(f"pseudo-labels*/round-{round}/**/{end}")]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths}


def losses(out):
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.endswith("loss")]
    return {tag: [event.value for event in events.Scalars(tag)] for tag in tags}


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("cbst.py", ["--policy", "global", "--accumulate", 2, "--portion", 0.4, 0.2, 0.6, *LABELLED]),
        ("crst.py", ["--regularizer", "mrent", "--source-alpha", 0.1, "--workers", 1]),
        ("crst.py", ["--regularizer", "mrl2", "--alpha", 0.5, "--scales", 0.5, 1.0, "--flip"]),
        ("dst_cbc.py", ["--gamma", 2, "--accumulate", 2, "--labelled-batch", 1, *CROPPED]),
    ],
)
def test_options(script, options, root, tmp_path):
    output = run(script, tmp_path, *SMALL, "--root", root, "--amp", "bf16", *options)
    assert output.index("round 1: mIoU") < output.index("round 2: mIoU")
    (store,) = stores(tmp_path)
    portions = [0.4, 0.6] if "global" in options else [0.2, 0.4] if script == "dst_cbc.py" else [0.3, 0.4]
    assert [store.round(round).settings.portion for round in store.rounds()] == portions
    assert 0 <= result(tmp_path)["mIoU"] <= 100
    assert len(losses(tmp_path)) == (1 if script == "dst_cbc.py" else 2)
    assert all(tensor.isfinite().all() for tensor in torch.load(tmp_path / "model.pt", weights_only=True).values())
    assert not list(tmp_path.rglob("*.tmp*"))


def test_the_first_of_two_students_is_measured_while_it_learns(root, tmp_path):
    output = run("dst_cbc.py", tmp_path, *SMALL, *CROPPED, "--root", root, "--mutual", "--rounds", 1, "--eval-every", 1)
    assert "round1, step 1: mIoU" in output
    assert "second-round1, step" not in output


def test_a_renormalised_prior_chooses_other_pixels_of_the_same_classes(root, tmp_path):
    rounds = []
    for name, options in (("product", []), ("posterior", ["--normalise-prior"])):
        run("cbst.py", tmp_path / name, *SMALL, "--root", root, "--spatial-prior", *options)
        (store,) = stores(tmp_path / name)
        rounds.append(store.round(0))
    product, posterior = rounds
    assert torch.equal(product.predicted, posterior.predicted)
    assert product.settings.thresholds.max() > 1 >= posterior.settings.thresholds.max()


# What is there when the process is killed, each a random moment later; steps are saved in twos.
@pytest.mark.parametrize(
    ("name", "processes", "moments"),
    [
        ("cbst", 1, ["checkpoints/round2-000002"]),
        ("crst", 1, ["checkpoints/round1-000004", "pseudo-labels/round-0001/settings.json"]),
        ("crst", 2, ["pseudo-labels/round-0001/settings.json", "checkpoints/round2-000002"]),
        ("crst-mrkld", 2, ["pseudo-labels/round-0000/settings.json", "checkpoints/round1-000002"]),
        ("dmt", 1, ["checkpoints/round1-000002", "checkpoints/second-round2-000002"]),
        ("dmt", 2, ["checkpoints/second-round1-000004", "pseudo-labels-second/round-0001/settings.json"]),
    ],
)
def test_killed_and_restarted_gives_the_same_labels_and_network(name, processes, moments, root, tmp_path):
    script, *options = RUNS[name]
    options += [*SMALL, "--root", root, "--steps", 8 // processes, "--accumulate", 2, "--amp", "bf16"]
    options += ["--predict-batch", 2]  # or one process would label all images
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert "continues after step" not in run(script, whole, *options, processes=processes)
    for seed, moment in enumerate(moments):
        run_and_kill(script, killed, *options, wait_for=moment, seed=seed, within=0.1, processes=processes)
        assert not (killed / "result.json").exists(), "killed too late to show anything"
        if name == "dmt" and moment == "checkpoints/round1-000002":  # the first learns what the second has labelled
            assert_damage_is_named("pseudo-labels-second/round-0000/labels/**/*.png", script, killed, *options)
            assert not list(killed.glob("checkpoints/round1-000008-*"))
    assert "continues after step" in run(script, killed, *options, processes=processes)

    assert files(whole) == files(killed)
    kinds = {"cbst": 1, "crst": 2, "crst-mrkld": 1, "dmt": 2 * 2}[name]  # labels, and soft labels or confidence
    assert len(files(whole)) == 2 * (6 * kinds + len(stores(whole)))
    assert_same_network(whole, killed)
    assert json.dumps(result(whole)) == json.dumps(result(killed))  # with NaN for classes that never occur
    assert ("second" in result(whole)) is (name == "dmt")
    assert not list(killed.rglob("*.tmp*"))


def assert_damage_is_named(pattern, script, out, *options):
    path = sorted(out.glob(pattern))[2]
    whole = path.read_bytes()
    path.write_bytes(whole[:-20] + bytes(20))
    with pytest.raises(AssertionError, match=f"{path}: damaged file"):
        run(script, out, *options)
    path.write_bytes(whole)


@pytest.mark.parametrize("mined", [False, True])
def test_maps_move_with_their_labels(mined, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    from _data.augmentation import training_transform

    torch.manual_seed(0)
    labels = torch.arange(20 * 30).remainder(250).reshape(20, 30)
    image = tv_tensors.Image(labels.byte().expand(3, -1, -1))
    pair, single = torch.stack([labels + 1, labels + 2]).byte(), labels / 250 + 0.5
    size = (24, 16)  # higher than the image
    crop = SmallClassCrop(torch.tensor([7]), size) if mined else None
    seen = set()
    for _ in range(20):
        parts = training_transform(size, crop=crop)(image, labels, pair, single)
        assert all(type(part) is torch.Tensor for part in parts)
        moved_image, moved, moved_pair, moved_single = parts
        assert moved_image.shape == (3, *size)
        valid = moved != 255
        assert valid.sum() == 20 * 16
        assert torch.equal(moved_pair, torch.stack([moved + 1, moved + 2]).byte() * valid)
        assert torch.equal(moved_single, torch.where(valid, moved / 250 + 0.5, 0.0))
        seen.add(int(moved[0, 0] - moved[0, 1]))
    assert {-1, 1} <= seen  # mirrored and not


def test_statistics_do_not_depend_on_what_was_drawn_before(monkeypatch):
    """Dropout is on while they are estimated: on all ranks, and after a restart, they must be the same."""
    monkeypatch.syspath_prepend(EXAMPLES)
    from _common.evaluation import ready_to_predict

    settings = Namespace(reestimate_bn=1, seed=0, data="gta5", batch=2, workers=0, tile=None, predict_batch=0)
    run = Namespace(settings=settings, device=torch.device("cpu"), main=True, rank=0, world=1, autocast=nullcontext)
    # Three images in twos would leave one, of which no statistics of one value a channel can be taken.
    data = Namespace(target=[(torch.rand(3, 8, 8), str(number)) for number in range(3)])
    pool = torch.nn.AdaptiveAvgPool2d(1)
    net = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Conv2d(3, 4, 1), pool, torch.nn.BatchNorm2d(4))
    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        assert ready_to_predict(net, data, run) is net
        assert torch.equal(torch.get_rng_state(), state)
        assert not net.training
        found.append(net[-1].running_mean.clone())
    assert torch.equal(*found)
    assert found[0].abs().sum() > 0


@pytest.mark.parametrize("name", ["crst", "dmt"])
def test_two_processes(name, root, tmp_path):
    script, *options = RUNS[name]
    # In pieces of the same batch: no BatchNorm, and nothing that makes much of little gradients.
    options += [*SMALL, "--root", root, "--rounds", 1, "--steps", 10, "--log-every", 1]
    options += ["--frozen-bn", "--reestimate-bn", 0, "--optimizer", "sgd"]
    one, two = tmp_path / "one", tmp_path / "two"
    run(script, one, *options)
    run(script, two, *options, processes=2)
    for expected, store in zip(stores(one), stores(two), strict=True):
        assert torch.equal(expected.round(0).thresholds, store.round(0).thresholds)
        assert not store.verify(0)
    assert files(one) == files(two)
    expected, found = losses(one), losses(two)
    assert expected.keys() == found.keys()
    assert len(expected) == 2
    for tag, values in expected.items():
        assert len(values) == 10
        assert len(set(values)) > 5
        assert found[tag] == pytest.approx(values, rel=1e-5)


def test_resumed_on_two_processes_gives_the_same_labels_and_network(root, tmp_path):
    """Each process has BatchNorm statistics of its own; a checkpoint is in the middle of nothing else."""
    options = ["cbst.py", *SMALL, "--root", root, "--steps", 3]
    options = [word for place, word in enumerate(options) if "--rounds" not in options[max(0, place - 1) : place + 1]]
    script, *options = options
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run(script, whole, *options, "--rounds", 2, processes=2)
    run(script, resumed, *options, "--rounds", 1, processes=2)
    assert not (resumed / "pseudo-labels" / "round-0001").exists()
    assert "round1: continues after step 3" in run(script, resumed, *options, "--rounds", 2, processes=2)
    assert files(whole) == files(resumed)
    assert len(files(whole)) == 2 * (6 + 1)
    assert_same_network(whole, resumed)
    assert json.dumps(result(whole)["iou"]) == json.dumps(result(resumed)["iou"])
