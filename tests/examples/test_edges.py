"""What once ended a run, or was silent: each a small thing that a user does."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import multiprocessing
import os
import re
import shutil
import sys
from argparse import Namespace
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from PIL import Image
from torch import nn

from selftrain_seg import PseudoLabels
from selftrain_seg.store import PseudoLabelStore
from tests.examples.trainers import EXAMPLES, LIMIT, result, run, start_ranks
from tests.fake_gpu.mode import Inputs, fake_gpu


@pytest.fixture
def common(monkeypatch):
    """Lets a test import what the examples share."""
    monkeypatch.syspath_prepend(EXAMPLES)


def bare_run(tmp_path, **changes):
    """What the functions under test read of a run."""
    settings = {"reestimate_bn": 1, "seed": 0, "data": "folders", "batch": 4, "workers": 0, "tile": None}
    settings |= {"label_scales": [1.0], "label_flip": False, "check": "none"}
    settings |= {"scales": [1.0], "flip": False, "network": "own", "overlap": 0.25, "predict_batch": 0, **changes}
    return Namespace(
        settings=Namespace(**settings),
        device=torch.device("cpu"),
        out=tmp_path,
        rank=0,
        world=1,
        main=True,
        picture=lambda *_: None,
        say=lambda _: None,
        track=lambda _: None,
        steps_done=0,
        average_buffers=lambda _: None,
        autocast=contextlib.nullcontext,
        evaluation=None,
        stage="",
    )


class Images(list):
    """(image, name) pairs that know their names."""

    @property
    def names(self):
        return [name for _, name in self]


def target_of(*sizes):
    generator = torch.Generator().manual_seed(0)
    return Images((torch.rand(3, *size, generator=generator), str(place)) for place, size in enumerate(sizes))


def pooled(classes=4):
    """A network with BatchNorm after pooling, as DeepLabV3 has."""
    return nn.Sequential(nn.Conv2d(3, classes, 1), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(classes))


# Evaluation


@pytest.mark.parametrize("sizes", [[(8, 8)], [(8, 8)] * 5, [(8, 8), (6, 10), (8, 8)], [(9, 7)] * 9])
def test_statistics_of_any_number_and_sizes_of_images(common, tmp_path, sizes):
    from _common import evaluation

    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    target = target_of(*sizes)
    evaluation.ready_to_predict(net, Namespace(target=target), bare_run(tmp_path))
    values = torch.cat([net[0](image[None])[0].flatten(1) for image, _ in target], dim=1)
    torch.testing.assert_close(net[1].running_mean, values.mean(dim=1).detach())
    torch.testing.assert_close(net[1].running_var, values.var(dim=1).detach())


def test_steps_do_not_wait_for_the_gpu(common):
    from _quickstart.benchmark import draw
    from recommended import may_be_of, restyled
    from torch.utils.data import TensorDataset

    with fake_gpu():
        given = Inputs("cuda")
        images = restyled(given.images, given.images, 0.5)
        found = may_be_of(given.logits, given.numbers(1, 2)), draw(TensorDataset(images), 4, torch.Generator())
        assert {tensor.device.type for tensor in (images, *found)} == {"cuda"}


def test_images_are_put_together_by_place_and_size(common, tmp_path):
    from _common.loading import in_blocks

    target = target_of((8, 8), (6, 10), (8, 8), (8, 8), (6, 10), (8, 8), (9, 9))
    whole = [names for _, names in in_blocks(target, bare_run(tmp_path, predict_batch=3))]
    assert whole == [["0", "2"], ["1"], ["3", "5"], ["4"], ["6"]]
    found = []
    for rank in (0, 1):
        run = bare_run(tmp_path, predict_batch=3)
        run.rank, run.world = rank, 2
        found += [names for _, names in in_blocks(target, run)]
    assert sorted(found) == sorted(whole)


def test_batchnorm_of_pooled_features_is_scored_before_training(common, tmp_path):
    from _common.evaluation import score_before

    from selftrain_seg.datasets import LabelMap

    data = Namespace(
        target=target_of((8, 8), (9, 7)), val=None, label_map=LabelMap.binary(), subsets={}, has_truth=False
    )
    assert score_before(pooled(2), data, bare_run(tmp_path)).statistics


def test_one_value_a_channel_is_said_in_options(common, tmp_path):
    from _common.settings import command_line

    with pytest.raises(SystemExit, match=r"one image at a time .*--batch.*--frozen-bn or --reestimate-bn 0"):
        command_line(lambda: pooled(2).train()(torch.rand(1, 3, 8, 8)))()


def test_first_score_leaves_the_network_and_the_generator_as_they_are(common, tmp_path):
    from _common.evaluation import score_before

    from selftrain_seg.datasets import LabelMap

    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Dropout(0.5))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.get_rng_state()
    data = Namespace(target=target_of((8, 8), (9, 7)), val=None, label_map=LabelMap.binary(), subsets={})
    score = score_before(net, data, bare_run(tmp_path))
    assert score.iou is None
    assert 0 < score.statistics["entropy"] < 1
    assert net.training
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    json.loads((tmp_path / "rounds" / "round-0000.json").read_text())


def held_out(labels):
    """Data with one held-out source image and these labels."""
    from selftrain_seg.datasets import LabelMap

    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))

    class Source(list):
        def only(self, places):
            return Source(self[place] for place in places)

    from _data.opening import Data

    return Data(
        source=Source([(image, labels)]),
        target=target_of((8, 8), (8, 8)),
        target_with=None,
        val=None,
        label_map=LabelMap.binary(),
        subsets={"mIoU": (0, 1)},
        has_truth=False,
        held_out=Source([(image, labels)]),
    )


@pytest.mark.parametrize("changes", [{"check": "restyled"}, {"reestimate_bn": "auto"}])
def test_no_labelled_pixel_in_held_out_images_is_said(common, tmp_path, changes):
    from _common.evaluation import score_before

    run = bare_run(tmp_path, check_images=8, check_tolerance=1.0, **changes)
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    score_before(net, held_out(torch.zeros(8, 8, dtype=torch.int64)), run)
    said = r"^--check and --reestimate-bn auto: .* have no labelled pixel: use more --check-images$"
    with pytest.raises(SystemExit, match=said):
        score_before(net, held_out(torch.full((8, 8), 255)), run)


def test_batchnorm_without_running_statistics_is_scored_as_it_is(common, tmp_path):
    from _common.evaluation import evaluate, score_before

    data, run, printed = held_out(torch.zeros(8, 8, dtype=torch.int64)), bare_run(tmp_path), []
    run.say = printed.append
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2, track_running_stats=False))
    assert score_before(net, data, run).statistics
    assert "--reestimate-bn has no effect: the network has no BatchNorm with running statistics" in printed[-1]
    assert evaluate(net, data, run, 1).statistics


def test_an_evaluation_restores_the_generators_of_its_own_device_only(common, tmp_path, monkeypatch):
    from _common.evaluation import _unchanged

    saved = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: saved.append(device))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *_: None)
    for device in (torch.device("cpu"), torch.device("cuda", 3)):
        run, state = bare_run(tmp_path), torch.get_rng_state()
        run.device = device
        with _unchanged(nn.Identity(), run):
            torch.rand(1)
        assert torch.equal(torch.get_rng_state(), state)
    assert saved == [torch.device("cuda", 3)]


def test_validation_images_of_several_sizes_give_the_iou_of_all(common, tmp_path):
    from _common.evaluation import evaluate

    from selftrain_seg.datasets import LabelMap

    generator = torch.Generator().manual_seed(0)
    val = []
    for size in ((8, 8), (8, 8), (5, 11), (8, 8), (3, 2)):
        image = torch.rand(3, *size, generator=generator)
        val.append((image, (image[0] > 0.5).long()))
    net = nn.Conv2d(3, 2, 1)
    with torch.no_grad():
        net.weight.zero_()
        net.bias.zero_()
        net.weight[1, 0] = 1.0
        net.bias[0] = 0.3
    pairs = [(torch.where(image[0] > 0.3, 1, 0), labels) for image, labels in val]
    expected = [
        100
        * sum(int(((p == c) & (t == c)).sum()) for p, t in pairs)
        / sum(int(((p == c) | (t == c)).sum()) for p, t in pairs)
        for c in (0, 1)
    ]
    data = Namespace(val=val, label_map=LabelMap.binary(), subsets={"mIoU": (0, 1)})
    for changes in ({"reestimate_bn": 0}, {"reestimate_bn": 0, "tile": [4, 4]}):
        iou = evaluate(net.eval(), data, bare_run(tmp_path, **changes), 1).iou
        assert iou.tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("layers", "said", "rounds"),
    [
        ("trained", "; BatchNorm re-estimated on the target images: ", ["round-0000", "round-source"]),
        ("mixed", "; BatchNorm outside the frozen backbone re-estimated on", ["round-0000", "round-source"]),
        ("frozen", "; --reestimate-bn has no effect: all BatchNorm layers are frozen", ["round-source"]),
        ("none", "; --reestimate-bn has no effect: the network has no BatchNorm", ["round-source"]),
    ],
)
def test_batchnorm_that_is_frozen_is_not_said_to_be_re_estimated(common, tmp_path, layers, said, rounds):
    from _common.evaluation import score_before
    from _networks.build import freeze_batchnorm

    from selftrain_seg.datasets import LabelMap

    frozen, trained = (nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for _ in range(2))
    freeze_batchnorm(frozen)
    parts = {"trained": [trained], "mixed": [frozen, trained], "frozen": [frozen], "none": []}
    data = Namespace(target=target_of((8, 8)), val=None, label_map=LabelMap.binary(), subsets={}, has_truth=False)
    run, printed = bare_run(tmp_path), []
    run.say = printed.append
    score_before(nn.Sequential(*parts[layers], nn.Conv2d(3, 2, 1)), data, run)
    assert said in printed[-1]
    assert ("re-estimated" in printed[-1]) == (len(rounds) == 2)
    assert sorted(path.stem for path in (tmp_path / "rounds").iterdir()) == rounds


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"frozen_bn": True, "reestimate_bn": 1}, "BatchNorm frozen"),
        ({"frozen_bn": False, "reestimate_bn": 1}, "BatchNorm trained, its statistics re-estimated on target images"),
        (
            {"frozen_bn": False, "reestimate_bn": "auto"},
            "BatchNorm trained, a share (auto) of target statistics mixed in",
        ),
        (
            {"frozen_bn": False, "reestimate_bn": 0.25},
            "BatchNorm trained, a share (0.25) of target statistics mixed in",
        ),
        ({"frozen_bn": False, "reestimate_bn": 0}, "BatchNorm trained"),
    ],
)
def test_what_happens_to_batchnorm_is_said_at_the_start(common, options, said):
    from _data.opening import batchnorm_line

    assert batchnorm_line(Namespace(**options)) == said


def test_the_tracker_gets_the_miou_of_every_evaluation(common, tmp_path):
    from _common.evaluation import evaluate, score_before

    from selftrain_seg.datasets import LabelMap

    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    target = Images([(image, "a"), (1 - image, "b")])
    data = Namespace(
        target=target, val=[(image, (image[0] > 0.5).long())], label_map=LabelMap.binary(), subsets={"mIoU": (0, 1)}
    )
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    run, tracked = bare_run(tmp_path), []
    run.track = tracked.append
    start = score_before(net, data, run)
    run.steps_done = 3
    run.evaluation("round 1, step 3")
    run.steps_done = 6
    score = evaluate(net, data, run, 1)
    evaluate(net, data, run, 1, group="second")
    names = ["mIoU source only", "mIoU BatchNorm re-estimated", "mIoU", "mIoU", "mIoU", "mIoU second"]
    assert [name for values in tracked for name in values] == names
    assert tracked[1]["mIoU BatchNorm re-estimated"] == tracked[2]["mIoU"] == pytest.approx(float(start.iou.mean()))
    assert tracked[4]["mIoU"] == pytest.approx(float(score.iou.mean()))


def test_a_process_without_a_validation_image_does_not_warn(common, tmp_path):
    """There are fewer blocks of images than processes."""
    from _common.evaluation import evaluate

    from selftrain_seg.datasets import LabelMap

    run = bare_run(tmp_path)
    run.rank, run.world, run.main = 1, 2, False
    val = [(torch.rand(3, 8, 8), torch.zeros(8, 8, dtype=torch.int64))]
    data = Namespace(val=val, label_map=LabelMap.binary(), subsets={"mIoU": (0, 1)})
    assert evaluate(nn.Conv2d(3, 2, 1).eval(), data, run, 1, ready=True).iou.isnan().all()


def test_the_first_image_is_named_like_any_other_if_it_cannot_be_read(common, tmp_path):
    from _common.loading import in_blocks
    from _common.settings import Unreadable

    class Damaged(list):
        def __getitem__(self, index):
            raise ValueError("a.png: damaged file")

    with pytest.raises(Unreadable, match=r"a\.png: damaged file"):
        next(in_blocks(Damaged([0, 1]), bare_run(tmp_path)))


def test_small_unet_takes_odd_sizes_and_any_channels(common):
    from _networks.small_unet import SmallUNet

    torch.manual_seed(0)
    net = SmallUNet(5, channels=4).eval()
    assert net(torch.rand(1, 4, 33, 50)).shape == (1, 5, 33, 50)
    image = torch.rand(1, 4, 32, 48)
    grown = nn.functional.pad(image, (0, 0, 0, 0))
    assert torch.equal(net(image), net(grown))


# JSON


def test_json_has_no_nan(common, tmp_path):
    from _common.files import save_json

    path = tmp_path / "new" / "result.json"
    save_json({"iou": {"road": float("nan"), "sky": 1.5}, "list": (float("inf"), 2, None, "x")}, path)
    text = path.read_text(encoding="utf-8")
    found = json.loads(text, parse_constant=pytest.fail)
    assert found == {"iou": {"road": None, "sky": 1.5}, "list": ["inf", 2, None, "x"]}
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]


# Random numbers


def test_loading_leaves_the_generators_of_gpus_alone(common, monkeypatch):
    from _common.loading import Seeded

    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeded"))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *_: pytest.fail("set"))
    items = Seeded([(torch.zeros(1), "a")], lambda image, name: (torch.rand(3), name))
    state = torch.get_rng_state()
    first, again, other = items[0, 7][0], items[0, 7][0], items[0, 8][0]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# Rounds


def finished_round(folder, names=("a", "b")):
    store = PseudoLabelStore(folder, 3, keep=("predicted",))
    thresholds = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    with store.write(0, names, thresholds=thresholds) as writer:
        labels = torch.tensor([[[0, 255], [1, 0]]] * len(names))
        predicted = torch.tensor([[[0, 1], [1, 0]]] * len(names))
        writer.add(list(names), PseudoLabels(labels, torch.ones(labels.shape), predicted=predicted))
        writer.finish()
    return store, thresholds


def test_a_finished_round_is_used_as_it_is(common, tmp_path, monkeypatch):
    """Killed between the last label and the first checkpoint: nothing is estimated again, whatever the machine."""
    import cbst
    import crst
    import dst_cbc
    from _labelling import rounds

    store, _ = finished_round(tmp_path)
    monkeypatch.setattr(rounds, "estimate_thresholds", lambda *_: pytest.fail("estimated again"))
    monkeypatch.setattr(rounds, "write_labels", lambda *_, **__: pytest.fail("written again"))
    for begun in (False, True):
        started = Namespace(has_begun=lambda stage, begun=begun: begun)
        found = rounds.label_target(None, None, started, store, "round1", 0, None, None, 0.2)
        assert found.names == ("a", "b")
    for trainer in (cbst, crst, dst_cbc):
        assert trainer.label_target.__module__ == "_labelling.rounds"


def test_a_damaged_round_is_mended_with_its_own_thresholds(common, tmp_path):
    from _labelling.rounds import finished, thresholds_of

    store, thresholds = finished_round(tmp_path)
    assert finished(store, 1) is None
    next(tmp_path.glob("round-0000/labels/a.png")).unlink()
    assert finished(store, 0) is None
    kept = thresholds_of(store, 0, bare_run(tmp_path), lambda: pytest.fail("estimated again"))
    assert torch.equal(kept, thresholds)


def test_precision_where_only_some_images_have_masks(common, tmp_path):
    from _data.opening import Part
    from _reporting import _precision

    from selftrain_seg.datasets import LabelMap, SegmentationFolder

    truth = {name: np.full((4, 6), number % 2, np.uint8) for number, name in enumerate("abcdefg")}
    for name, labels in truth.items():
        for kind in ("images", "masks"):
            (tmp_path / kind).mkdir(exist_ok=True)
        Image.fromarray(np.full((4, 6, 3), 90, np.uint8)).save(tmp_path / "images" / f"{name}.png")
        if name not in "ad":
            Image.fromarray(labels).save(tmp_path / "masks" / f"{name}.png")
    store = PseudoLabelStore(tmp_path / "store", 2)
    with store.write(0, list(truth)) as writer:
        labels = torch.stack([torch.from_numpy(labels) for labels in truth.values()]).long()
        labels[4, 0, :3] = 1  # three pixels of image e, which is of class 0, are wrong
        writer.add(list(truth), PseudoLabels(labels, torch.ones(labels.shape), predicted=labels))
        stored = writer.finish()

    def target_with(_):
        masks = {"masks": tmp_path / "masks", "unpaired": "leave out", "label_map": LabelMap.binary()}
        return Part(SegmentationFolder(tmp_path / "images", **masks))

    data = Namespace(has_truth=True, target_with=target_with, label_map=LabelMap.binary())
    (tmp_path / "out").mkdir()
    found = _precision(bare_run(tmp_path / "out"), data, 1, stored, "")
    assert found.tolist() == pytest.approx([1, 2 * 24 / (2 * 24 + 3)])
    for name in "bcefg":
        (tmp_path / "masks" / f"{name}.png").rename(tmp_path / "masks" / f"other-{name}.png")
    for path in (tmp_path / "images").iterdir():
        path.with_name(f"other-{path.name}").write_bytes(path.read_bytes())
    assert _precision(bare_run(tmp_path / "out"), data, 1, stored, "") is None  # no mask is of an image with labels


@pytest.mark.parametrize(("processes", "device", "expected"), [("1", "cuda", "cuda"), ("2", "cuda", None)])
def test_each_process_has_a_gpu_of_its_own(common, monkeypatch, processes, device, expected):
    """Accelerate takes the variable as the device of every process."""
    from _common import run as of_run
    from _common.settings import Settings

    found = []
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "")  # so that the end of the test removes it
    monkeypatch.delenv("ACCELERATE_TORCH_DEVICE")
    monkeypatch.setenv("WORLD_SIZE", processes)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)  # as if there were a GPU
    monkeypatch.setattr(of_run, "Accelerator", lambda **_: found.append(os.environ.get("ACCELERATE_TORCH_DEVICE")))
    of_run._accelerator(Settings(device=device, tracker="none"))
    assert found == [expected]


def test_classes_that_are_never_predicted_are_not_mined(common, tmp_path):
    from _labelling.rounds import small_class_crop

    store = PseudoLabelStore(tmp_path, 6)
    predicted = torch.tensor([[[0] * 40, [0] * 38 + [1, 1], [3] * 39 + [5]]])
    with store.write(0, ["a"]) as writer:
        writer.add(["a"], PseudoLabels(predicted, torch.ones(predicted.shape), predicted=predicted))
        stored = writer.finish()
    crop = small_class_crop(stored, (2, 2))
    small, rarest = (row.nonzero()[:, 0].tolist() for row in crop.mined)
    assert small == []
    assert rarest == [1, 3, 5]
    assert small_class_crop(stored, (2, 2), rarest=False).mined.sum() == 0


# Workers


@pytest.mark.parametrize("start", ["spawn", "forkserver"])
def test_loaders_work_however_their_processes_start(common, tmp_path, start):
    """macOS, Windows and Python 3.14 do not fork: everything that a worker needs must be picklable."""
    from _common.loading import Seeded
    from _data.augmentation import training_transform
    from _data.opening import Part

    from selftrain_seg.datasets import GTA5, SyntheticStreets
    from selftrain_seg.mining import SmallClassCrop

    root = SyntheticStreets(length=2).export(tmp_path, "gta5")
    transform = training_transform((32, 32), crop=SmallClassCrop(torch.tensor([1]), (32, 32)))
    dataset = Seeded(Part(GTA5(root), resize=(48, 64)), transform)
    context = multiprocessing.get_context(start)
    loader = torch.utils.data.DataLoader(
        dataset, batch_sampler=[[(0, 1), (1, 2)]], num_workers=1, multiprocessing_context=context
    )
    ((images, labels),) = list(loader)
    assert images.shape == (2, 3, 32, 32)
    assert labels.shape == (2, 32, 32)


# Runs a trainer, each of whose loaders hands its data set over as to a process that is not forked.
HANDS_OVER = """
import pickle, runpy, sys
import torch.utils.data

class Loader(torch.utils.data.DataLoader):
    def __init__(self, dataset, **settings):
        dataset, collate = pickle.loads(pickle.dumps((dataset, settings.get("collate_fn"))))
        print("handed over", flush=True)
        super().__init__(dataset, **settings)

torch.utils.data.DataLoader = Loader
sys.path.insert(0, {folder!r})
runpy.run_path({script!r}, run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("script", ["cbst.py --mine", "dst_cbc.py --mutual", "crst.py --regularizer lrent", "dtst.py"])
def test_what_a_trainer_gives_to_its_workers_is_picklable(script, tmp_path_factory, tmp_path):
    shared = tmp_path_factory.getbasetemp() / "picklable"
    if not shared.exists():
        run("source_only.py", shared, "--smoke", "--root", shared / "streets")
    name, *more = script.split()
    wrapper = tmp_path / name
    wrapper.write_text(HANDS_OVER.format(folder=str(EXAMPLES), script=str(EXAMPLES / name)), encoding="utf-8")
    more += [] if name == "dtst.py" else ["--rounds", 1]
    options = ["--smoke", "--steps", 1, "--root", shared / "streets", "--init", shared / "model.pt"]
    assert "handed over" in run(wrapper, tmp_path / "out", *options, *more)


# Arguments


def parsed(monkeypatch, script, *words):
    """The arguments as a script would have them, without its run."""
    module = importlib.import_module(Path(script).stem)
    seen = []

    class Stop(Exception):
        pass

    def stop(args):
        seen.append(args)
        raise Stop

    monkeypatch.setattr(module, "Run", stop)
    monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
    with pytest.raises(Stop):
        module.main()
    return seen[0]


def test_defaults_belong_to_the_network_not_to_the_data(common, monkeypatch):
    streets = parsed(monkeypatch, "cbst.py")
    assert (streets.network, streets.optimizer, streets.frozen_bn) == ("small-unet", "adamw", False)
    own = parsed(monkeypatch, "cbst.py", "--data", "gta5", "--network", "small-unet")
    changed = {name for name, value in vars(own).items() if vars(streets)[name] != value}
    assert changed == {"data"}
    paper = parsed(monkeypatch, "cbst.py", "--data", "gta5")
    assert (paper.network, paper.optimizer, paper.frozen_bn, paper.lr) == ("deeplabv2_resnet101", "sgd", True, 1e-4)
    assert parsed(monkeypatch, "cbst.py", "--network=deeplabv2_resnet101").optimizer == "sgd"
    own = parsed(monkeypatch, "cbst.py", "--data", "folders")
    assert (own.network, own.optimizer, own.frozen_bn, own.lr) == ("deeplabv2_resnet101", "adamw", True, 5e-5)
    scratch = parsed(monkeypatch, "cbst.py", "--data", "folders", "--from-scratch")
    assert (scratch.frozen_bn, scratch.optimizer) == (False, "adamw")
    assert parsed(monkeypatch, "cbst.py", "--data", "folders", "--network", "mine:net").frozen_bn is False
    assert parsed(monkeypatch, "cbst.py", "--from-scratch", "--network", "mine:net", "--init", "x").frozen_bn is True
    assert parsed(monkeypatch, "cbst.py", "--data", "folders", "--from-scratch", "--frozen-bn").frozen_bn is True


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "--batch 0: expected at least 1"),
        ({"rounds": -1}, "--rounds -1: expected at least 0"),
        ({"checkpoint_every": 0}, "--checkpoint-every 0: expected at least 1"),
        ({"crop": [0, 5]}, "--crop 0 5: expected a height and a width"),
        ({"overlap": 1.0}, "--overlap 1: expected a share"),
        ({"lr": -1.0}, "--lr -1: expected a number above 0"),
        ({"lr": float("nan")}, "--lr nan: expected a number above 0"),
        ({"portion": [20.0, 5.0, 50.0]}, "--portion 20 5 50: expected start, step and stop as shares of 1"),
        ({"portion": [0.5, 0.1, 0.2]}, "--portion 0.5 0.1 0.2: .* start at most stop"),
        ({"source_portion": [0.0, 0.1, 0.2]}, "--source-portion 0 0.1 0.2: expected"),
        ({"scales": [1.0, 0.0]}, "--scales 1 0: expected numbers above 0"),
        ({"label_scales": []}, "--label-scales .*: expected numbers above 0"),
        ({"lr_factors": [1.0, -0.5]}, "--lr-factors 1 -0.5: expected numbers above 0"),
        ({"dynamic_update": [9, 0, 30]}, "--dynamic-update 9 0 30: expected numbers above 0"),
        ({"decay_over": 0.0}, "--decay-over 0: expected a number above 0"),
        ({"lr_warmup": 1500.0}, "--lr-warmup 1500: expected a share of --steps from 0 to 1"),
        ({"labelled_batch": 0}, "--labelled-batch 0: expected at least 1"),
        (
            {"colour_jitter": [0.1, 0.1, 0.1, 0.6]},
            "--colour-jitter 0.1 0.1 0.1 0.6: expected at least 0; of four numbers each at most 1, and the last",
        ),
        ({"jitter": [0.1, math.nan, 0.1, 0.1]}, "--jitter 0.1 nan 0.1 0.1: expected at least 0"),
        ({"jitter": -0.1}, "--jitter -0.1: expected at least 0"),
        ({"data": "streets", "source_images": Path("a")}, "^--source-images needs --data folders$"),
        ({"data": "voc", "classes": Path("a")}, "^--classes needs --data folders$"),
    ],
)
def test_numbers_that_cannot_be(common, changes, message):
    from _common.numbers import check

    sound = {"steps": 1, "batch": 1, "crop": None, "largest_crop": [1, 1], "tile": None, "resize": None, "overlap": 0.2}
    check(Namespace(**sound))
    with pytest.raises(SystemExit, match=message):
        check(Namespace(**{**sound, **changes}))


TRAINERS = ["cbst", "crst", "dst_cbc", "dtst", "iast", "mean_teacher", "mic", "online", "recommended", "sac"]
TRAINERS += ["source_only", "unimatch"]


def test_all_trainers_are_walked_over():
    written = {path.stem for path in EXAMPLES.glob("*.py") if "parse(" in path.read_text(encoding="utf-8")}
    assert set(TRAINERS) == written


def settings_of(script):
    """The class of a trainer's settings."""
    from _common.settings import Settings

    kinds = [kind for kind in vars(importlib.import_module(script)).values() if isinstance(kind, type)]
    return next(kind for kind in kinds if issubclass(kind, Settings) and kind is not Settings)


def numbers_of(hint):
    """Numbers that no option can take, in the shape of a type: NaN, or -1 for integers; None if it holds no number."""
    if hint in (int, float):
        return -1 if hint is int else math.nan
    parts = [numbers_of(part) for part in get_args(hint) if get_origin(hint) is not Literal and part is not ...]
    if get_origin(hint) is tuple:
        return None if None in parts else tuple(parts)
    return next((part for part in parts if part is not None), None)


@pytest.mark.parametrize("script", TRAINERS)
def test_every_number_of_every_trainer_has_a_rule(common, script):
    from _common.numbers import check

    kind = settings_of(script)
    wrong = {name: numbers_of(hint) for name, hint in get_type_hints(kind).items()}
    wrong = {name: value for name, value in wrong.items() if value is not None}
    assert {"lr", "weight_decay", "scale_range", "reestimate_bn", "images", "seed"} <= wrong.keys()
    for name, value in wrong.items():
        with pytest.raises(SystemExit, match=rf"^--{name.replace('_', '-')} (-1|nan).*: expected "):
            check(kind(**{name: value}))


@pytest.mark.parametrize("script", TRAINERS)
def test_rules_allow_the_defaults_and_the_settings_of_the_papers(common, script):
    from _common.defaults import TABLE
    from _common.numbers import check

    kind = settings_of(script)
    check(kind())
    offered = get_type_hints(kind)
    for name, cells in json.loads(TABLE.read_text(encoding="utf-8")).get(script, {}).items():
        for cell in cells.values():
            if name in offered and cell["ours"] is not None:
                check(kind(**{name: cell["ours"]}))


@pytest.mark.parametrize(
    ("script", "words", "expected"),
    [
        ("source_only", "--scale-range 1.5 0.5", "two numbers above 0, up to 100, the smaller one first"),
        ("source_only", "--weight-decay -1", "at least 0"),
        ("source_only", "--part 0.8 0.2", "two shares from 0 to 1, the smaller one first"),
        ("source_only", "--images 0 12 8", "at least 1"),
        ("mean_teacher", "--momentum 1.5", "a share from 0 to 1"),
        ("mean_teacher", "--blur-sigma 1 0.1", "two numbers above 0, up to 100, the smaller one first"),
        ("mean_teacher", "--blur-sigma 0 0", "two numbers above 0, up to 100, the smaller one first"),
        ("mean_teacher", "--jitter-chance 2", "a share from 0 to 1"),
        (
            "mean_teacher",
            "--jitter 5 0 0 0",
            "at least 0; of four numbers each at most 1, and the last, for the hue, at most 0.5",
        ),
        ("recommended", "--momentum 1.5", "a share from 0 to 1"),
        ("cbst", "--prior-sigma -1", "at least 0"),
        ("cbst", "--lr-decay 0", "a number above 0"),
        ("mic", "--mask-ratio 2", "a share from 0 to 1"),
        ("mic", "--temperature 0", "a number above 0"),
        ("mic", "--ignored-rows -5 0", "at least 0"),
        ("sac", "--zoom 2 1", "two numbers above 0, up to 100, the smaller one first"),
        ("sac", "--uniform 2", "a share from 0 to 1"),
        ("sac", "--focal -1", "at least 0"),
        ("sac", "--running-momentum 2", "a share from 0 to 1"),
        ("unimatch", "--drop 2", "a share from 0 to 1"),
        ("unimatch", "--box-area 0.5 0.1", "two shares from 0 to 1, the smaller one first"),
        ("iast", "--judge-width 0", "at least 1"),
        ("iast", "--adversarial-weight -1", "at least 0"),
        ("dtst", "--jitter-chance 2 --init x", "a share from 0 to 1"),
        ("dtst", "--upper 2 --init x", "a share from 0 to 1"),
        ("crst", "--alpha -1", "at least 0"),
        ("crst", "--alpha 0 --regularizer lrent", "at least 1e-6 for --regularizer lrent"),
        ("dst_cbc", "--gamma-agree inf", "at least 0"),
    ],
)
def test_a_number_of_a_trainer_that_cannot_be(common, monkeypatch, tmp_path, script, words, expected):
    """It is refused before anything is read or written."""
    monkeypatch.setattr(sys, "argv", [script, *words.split(), "--out", str(tmp_path / "out")])
    said = re.escape(f"{words.partition(' --')[0]}: expected {expected}")
    trainer = importlib.import_module(script)
    monkeypatch.setattr(trainer, "open_data", lambda *_, **__: pytest.fail("data are opened"))
    with pytest.raises(SystemExit, match=f"^{said}$"):
        trainer.main()
    assert not (tmp_path / "out").exists()


def test_a_device_or_a_folder_that_cannot_be_used_ends_in_one_line(common, monkeypatch, tmp_path):
    from _common.run import Run

    (tmp_path / "file").write_text("", encoding="utf-8")
    cannot = [["--device", "foo"], ["--out", tmp_path / "file"], ["--out", tmp_path / "file" / "run"]]
    if not torch.cuda.is_available():
        cannot += [["--device", "cuda"], ["--device", "cuda:1"]]
    for words in cannot:
        with monkeypatch.context() as patch:
            patch.delenv("ACCELERATE_TORCH_DEVICE", raising=False)
            settings = parsed(patch, "source_only.py", "--out", tmp_path / "out", "--tracker", "none", *words)
            for state in (AcceleratorState, PartialState):  # of an earlier run of this process
                patch.setattr(state, "_shared_state", {})
            with pytest.raises(SystemExit, match=f"{words[0]} {re.escape(str(words[1]))}: ") as caught:
                Run(settings)
        assert "\n" not in str(caught.value)


def test_one_number_for_all_colours_may_exceed_the_most_of_the_hue(common):
    from _common.numbers import check

    for value in (0.0, 0.6, 4.0):
        check(Namespace(jitter=value))


def test_a_setting_of_the_prior_without_the_prior_is_refused(common, monkeypatch):
    with pytest.raises(SystemExit, match=r"^--normalise-prior has no effect without --spatial-prior$"):
        parsed(monkeypatch, "cbst.py", "--normalise-prior")
    assert parsed(monkeypatch, "cbst.py", "--normalise-prior", "--spatial-prior").normalise_prior


@pytest.mark.parametrize("words", [["--second-init", "model.pt"], ["--flip-labels"]])
def test_a_setting_of_two_students_for_one_is_refused(common, monkeypatch, words):
    with pytest.raises(SystemExit, match=r"^--second-init and --flip-labels need two students: add --mutual$"):
        parsed(monkeypatch, "dst_cbc.py", *words)
    assert parsed(monkeypatch, "dst_cbc.py", "--mutual", *words).mutual


# The synthetic benchmark


def drawn(root, run=None, **changes):
    """The data of a small synthetic benchmark in a folder, opened as a trainer does."""
    from _data.opening import _streets

    run = run or bare_run(root.parent, root=root, images=(3, 2, 1), check_images=2, resize=None, **changes)
    return _streets(run.settings, run)


def files_of(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def during_export(monkeypatch, number, act):
    """Act once, before the export of this number."""
    from selftrain_seg.datasets import SyntheticStreets

    export, begun = SyntheticStreets.export, []

    def exported(*args, **settings):
        begun.append(1)
        if len(begun) == number:
            act()
        return export(*args, **settings)

    monkeypatch.setattr(SyntheticStreets, "export", exported)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_benchmark_that_two_runs_draw_at_once_is_whole(common, monkeypatch, tmp_path, number):
    """The second run draws all while the first is at its source images, target images, ..., held-out images."""
    drawn(tmp_path / "alone", check="restyled")
    during_export(monkeypatch, number, lambda: drawn(tmp_path / "both", check="restyled"))
    data = drawn(tmp_path / "both", check="restyled")
    assert [len(part) for part in (data.source, data.target, data.val, data.held_out)] == [3, 2, 1, 2]
    assert files_of(tmp_path / "both") == files_of(tmp_path / "alone")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "both"]


def test_a_run_that_is_stopped_while_it_draws_leaves_nothing(common, monkeypatch, tmp_path):
    def stop():
        raise KeyboardInterrupt

    during_export(monkeypatch, 2, stop)
    with pytest.raises(KeyboardInterrupt):
        drawn(tmp_path / "streets")
    assert list(tmp_path.iterdir()) == []


def test_what_killed_runs_have_drawn_is_removed_after_a_day(common, tmp_path):
    old, new = (tmp_path / f".streets.{name}.unfinished" / "source" for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old.parent, (0, 0))
    drawn(tmp_path / "streets")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".streets.new.unfinished", "streets"]


@pytest.mark.parametrize("place", ["empty", "link"])
def test_a_benchmark_is_drawn_into_a_folder_that_is_there(common, tmp_path, place):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    drawn(tmp_path / place)
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == ["complete", "source", "target"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "link"]


@pytest.mark.parametrize("other", [None, "mine.png", "source-masks"])
def test_an_incomplete_benchmark_is_drawn_anew_and_no_other_file_is_removed(common, tmp_path, other):
    root = tmp_path / "streets"
    (root / "source" / "images").mkdir(parents=True)
    (root / "source" / "images" / "00009.png").touch()
    (root / "incomplete").touch()
    if other is None:
        assert len(drawn(root).source) == 3
        assert sorted(path.name for path in root.iterdir()) == ["complete", "source", "target"]
        return
    (root / other).touch()
    before = files_of(root)
    with pytest.raises(SystemExit, match="has files that are not of the synthetic benchmark"):
        drawn(root)
    assert files_of(root) == before


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        ({"seed": 1}, "--seed 1 --images 3 2 1, code"),
        ({"seed": 1, "check": "restyled"}, "--seed 1 --images 3 2 1, code"),
        ({"images": (3, 2, 2)}, "--seed 0 --images 3 2 2, code"),
    ],
)
def test_another_benchmark_in_the_folder_is_refused(common, tmp_path, changes, asked):
    root = tmp_path / "streets"
    drawn(root, check="restyled")
    before = files_of(root)
    run = bare_run(tmp_path, **{"root": root, "images": (3, 2, 1), "check_images": 2, "resize": None, **changes})
    with pytest.raises(SystemExit, match="holds the benchmark of --seed 0 --images 3 2 1, code") as caught:
        drawn(root, run)
    assert f"expected {asked}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert files_of(root) == before


def test_a_default_folder_of_an_older_version_is_used(common, monkeypatch, tmp_path):
    """It holds the digest of the code alone, and its name holds the rest."""
    monkeypatch.chdir(tmp_path)
    run = bare_run(tmp_path, root=None, images=(3, 2, 1), check_images=2, resize=None)
    drawn(None, run)
    (folder,) = (tmp_path / "runs" / "streets").iterdir()
    (folder / "complete").write_text(folder.name.rpartition("-")[2], encoding="utf-8")
    before = files_of(folder)
    drawn(None, run)
    assert files_of(folder) == before


# A user's own folders


def own_folders(root, *, count=3, size=(12, 10), bits=8):
    """The arguments of folders of noise, with two classes."""
    generator = torch.Generator().manual_seed(0)
    for part in ("source", "target", "val"):
        for kind in ("images", "masks"):
            (root / part / kind).mkdir(parents=True)
        for number in range(count):
            grey = torch.randint(0, 256 if bits == 8 else 4096, size, generator=generator)
            image = grey.to(torch.uint8 if bits == 8 else torch.uint16).numpy()
            Image.fromarray(image).save(root / part / "images" / f"{number}.png")
            Image.fromarray((grey % 2).to(torch.uint8).numpy()).save(root / part / "masks" / f"{number}.png")
    (root / "classes.json").write_text('{"0": "background", "1": "cell"}', encoding="utf-8")
    return words_of(root)


def words_of(root):
    words = ["--data", "folders", "--classes", root / "classes.json", "--network", "small-unet", "--batch", 2]
    for part, kinds in {"source": ("images", "masks"), "target": ("images",), "val": ("images", "masks")}.items():
        for kind in kinds:
            words += [f"--{part}-{kind}", root / part / kind]
    return words


def opened(monkeypatch, out, words):
    """What a trainer opens before it builds its network, its run, and what it says."""
    from _common.run import Run
    from _data.opening import open_data

    with monkeypatch.context() as patch:
        args = parsed(patch, "source_only.py", *words, "--out", out)
    started, told = Run(args), []
    monkeypatch.setattr(started, "say", told.append)
    try:
        return open_data(args, started), started, told
    finally:
        started.accelerator.end_training()


def begin(out):
    """As if there were a checkpoint."""
    (out / "checkpoints" / "labelled-000001").mkdir(parents=True)


@pytest.mark.parametrize("part", ["source", "target", "val", "classes"])
def test_other_data_in_a_begun_run_is_refused(common, monkeypatch, tmp_path, part):
    out, words = tmp_path / "out", own_folders(tmp_path / "data")
    opened(monkeypatch, out, words)
    begin(out)
    opened(monkeypatch, out, words)
    if part == "classes":
        (tmp_path / "data" / "classes.json").write_text('{"1": "background", "0": "cell"}', encoding="utf-8")
    else:
        Image.new("L", (10, 12)).save(tmp_path / "data" / part / "images" / "1.png")
    with pytest.raises(SystemExit, match=rf"was begun with other data \({part}: ") as caught:
        opened(monkeypatch, out, words)
    assert "\n" not in str(caught.value)


def test_a_moved_folder_goes_on_and_its_path_is_kept(common, monkeypatch, tmp_path):
    out, words = tmp_path / "out", own_folders(tmp_path / "data")
    opened(monkeypatch, out, words)
    begin(out)
    (tmp_path / "data").rename(tmp_path / "moved")
    opened(monkeypatch, out, words_of(tmp_path / "moved"))
    kept = json.loads((out / "arguments.json").read_text(encoding="utf-8"))
    assert kept["source_images"] == str(tmp_path / "moved" / "source" / "images")
    assert kept["classes"] == str(tmp_path / "moved" / "classes.json")


def test_a_run_begun_with_smoke_says_so(common, monkeypatch, tmp_path):
    words = own_folders(tmp_path / "data")
    opened(monkeypatch, tmp_path / "out", [*words, "--smoke"])
    begin(tmp_path / "out")
    with pytest.raises(SystemExit, match=r"was begun with .*steps 3, now .*; smoke True, now False: choose"):
        opened(monkeypatch, tmp_path / "out", words)


def test_one_class_is_refused(common, monkeypatch, tmp_path):
    words = own_folders(tmp_path / "data")
    (tmp_path / "data" / "classes.json").write_text('{"1": "cell"}', encoding="utf-8")
    with pytest.raises(SystemExit, match=r'1 class: name the background too, such as {"0": "background", "1": "cell"}'):
        opened(monkeypatch, tmp_path / "out", words)


def test_a_mask_of_another_size_is_found_at_the_start(common, monkeypatch, tmp_path):
    from _data.checks import look_at_masks

    words = own_folders(tmp_path / "data")
    mask = tmp_path / "data" / "source" / "masks" / "1.png"
    Image.new("L", (5, 4)).save(mask)
    data, started, _ = opened(monkeypatch, tmp_path / "out", words)
    with pytest.raises(SystemExit, match=r"masks.1\.png is 4 x 5, but its image .*images.1\.png is 12 x 10") as caught:
        look_at_masks(data, started)
    assert "\n" not in str(caught.value)


def test_rare_classes_are_counted_in_all_source_masks(common, tmp_path):
    """Class 1 covers 4 % of each of the first 50 masks, and is all that the others have."""
    from _labelling.rare import rare_source_classes

    from selftrain_seg.datasets import LabelMap

    first, others = torch.zeros(50, 5, 5, dtype=torch.long), torch.ones(70, 5, 5, dtype=torch.long)
    first[:, 0, 0] = 1
    source = Namespace(masks=lambda: list(torch.cat([first, others])))
    data, run = Namespace(source=source, label_map=LabelMap.binary()), bare_run(tmp_path, data="voc")
    assert rare_source_classes(data, run, 0.5).tolist() == [0]
    assert rare_source_classes(Namespace(), run, 0.0).tolist() == []  # nothing is read


def test_source_masks_are_counted_once_in_a_run_and_by_one_process(common, tmp_path):
    from _common.resuming import clear_records
    from _labelling.rare import source_index

    from selftrain_seg.datasets import LabelMap

    reads = []
    source = Namespace(masks=lambda: reads.append(1) or [torch.ones(5, 5, dtype=torch.long)])
    data, run = Namespace(source=source, label_map=LabelMap.binary()), bare_run(tmp_path)
    assert source_index(data, run).counts.tolist() == [[0, 25]]
    run.main = False  # another process
    assert source_index(data, run).counts.tolist() == [[0, 25]]
    assert reads == [1]
    run.main = True
    clear_records(run)  # of an attempt that was killed before its first checkpoint
    source_index(data, run)
    assert reads == [1, 1]


def test_a_mask_of_an_image_that_is_turned_is_as_it_is_shown(common, tmp_path):
    from _data.checks import _header_size

    image = Image.new("L", (10, 12))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert _header_size(tmp_path / "turned.jpg") == (10, 12)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_image_ends_in_one_line(common, monkeypatch, tmp_path, workers):
    from _common.loading import in_blocks
    from _common.settings import command_line
    from _data.augmentation import training_transform

    words = own_folders(tmp_path / "data")
    image = tmp_path / "data" / "source" / "images" / "2.png"
    image.write_bytes(image.read_bytes()[:-60])
    data, started, _ = opened(monkeypatch, tmp_path / "out", [*words, "--workers", workers])
    batches = iter(started.loader(data.source, "stage", training_transform((8, 8))))
    for read in (lambda: [next(batches) for _ in range(3)], lambda: list(in_blocks(data.source, started))):
        with pytest.raises(SystemExit, match=r"^\S*2\.png: ") as caught:
            command_line(read)()
        assert "\n" not in str(caught.value)


def floating(path, most):
    """Replace an image by one of the same size in floating point, from 0 to ``most``; returns its file."""
    with Image.open(path) as image:
        values = torch.linspace(0, most, image.width * image.height).view(image.height, image.width)
    path.unlink()
    Image.fromarray(values.numpy()).save(path.with_suffix(".tif"))
    return path.with_suffix(".tif")


@pytest.mark.parametrize("part", ["source", "target", "val"])
@pytest.mark.parametrize("most", [4095.0, math.nan])
def test_a_floating_point_image_beyond_1_ends_in_one_line(common, monkeypatch, tmp_path, part, most):
    from _common.loading import in_blocks
    from _common.settings import command_line
    from _data.augmentation import training_transform

    words = own_folders(tmp_path / "data")
    floating(tmp_path / "data" / part / "images" / "1.png", 1.0)
    path = floating(tmp_path / "data" / part / "images" / "2.png", most)
    data, started, _ = opened(monkeypatch, tmp_path / "out", words)
    images = getattr(data, part)
    assert images[1][0].max() == 1
    batches = iter(started.loader(images, "stage", training_transform((8, 8))))
    for read in (lambda: [next(batches) for _ in range(3)], lambda: list(in_blocks(images, started))):
        with pytest.raises(SystemExit, match=r"floating point from 0 to 1, got .* to .*16-bit .*--white$") as caught:
            command_line(read)()
        assert str(caught.value).startswith(f"{path}: expected 8 or 16 bits, or")
        assert "\n" not in str(caught.value)


def test_a_first_target_image_beyond_1_is_found_at_the_start(common, monkeypatch, tmp_path):
    words = own_folders(tmp_path / "data")
    path = floating(tmp_path / "data" / "target" / "images" / "0.png", 4095.0)
    with pytest.raises(SystemExit, match=r"got 0 to 4095: .*--white$") as caught:
        opened(monkeypatch, tmp_path / "out", words)
    assert str(caught.value).startswith(f"--data folders: {path}: ")


def test_prediction_reads_the_images_that_training_reads(common, tmp_path):
    from _prediction.images import open_images, read

    own_folders(tmp_path)
    folder = tmp_path / "target" / "images"
    floating(folder / "1.png", 1 + 2**-20)  # rounded
    path = floating(folder / "2.png", 4095.0)
    args = Namespace(names=None, channels=3, white=None, mask_suffix="", workers=0, batch=1)
    first, second, third = (item for batch in read(open_images(folder, args), range(3), args) for item in batch)
    assert not first.error
    assert not second.error
    assert third.image is None
    assert third.error.startswith(f"{path}: expected 8 or 16 bits, or floating point from 0 to 1, got 0 to 4095: ")


def test_dark_images_of_16_bits_are_asked_about(common, monkeypatch, tmp_path):
    words = own_folders(tmp_path / "data", bits=16)
    _, _, told = opened(monkeypatch, tmp_path / "out", words)
    assert any(
        re.search(r"target images: 16 bits, but the brightest value is 40\d\d of 65535: --white 40\d\d\?", text)
        for text in told
    )
    _, _, told = opened(monkeypatch, tmp_path / "other", [*words, "--white", 4095])
    assert not any("brightest" in text for text in told)


@pytest.mark.parametrize(
    "script",
    [
        "cbst",
        "crst",
        "dst_cbc",
        "iast",
        "mean_teacher",
        "mic",
        "online",
        "recommended",
        "sac",
        "source_only",
        "unimatch",
    ],
)
def test_the_network_is_built_before_the_masks_are_read(common, monkeypatch, tmp_path, script):
    words = own_folders(tmp_path / "data")
    module = importlib.import_module(script)
    monkeypatch.setattr(module, "look_at_masks", lambda *_: pytest.fail("masks are read"))
    for wrong in (["--network", "no_module:net"], ["--init", tmp_path / "none.pt"]):
        monkeypatch.setattr(sys, "argv", [script, *map(str, [*words, *wrong, "--out", tmp_path / "out"])])
        with pytest.raises(SystemExit, match=wrong[0] if wrong[0] == "--network" else "none.pt"):
            module.main()


def test_one_channel_of_logits_is_refused(common):
    from _networks.build import Scaled

    with pytest.raises(SystemExit, match=r"return as_logits\(x, binary=True\)"):
        Scaled(nn.Conv2d(3, 1, 1))(torch.zeros(1, 3, 4, 4))


def test_a_round_with_next_to_no_labels_warns(common, tmp_path):
    from _reporting import warn_of_few_labels

    told, stored = [], []
    for number, selected in enumerate((1, 2)):  # of 1600 pixels
        labels = torch.full((1, 40, 40), 255)
        labels.view(-1)[:selected] = 1
        with PseudoLabelStore(tmp_path / str(number), 3).write(0, ["a"]) as writer:
            writer.add(["a"], PseudoLabels(labels, torch.ones(labels.shape)))
            stored.append(writer.finish())
    for one in stored:
        warn_of_few_labels(Namespace(say=told.append), 1, one)
    assert len(told) == 1
    assert told[0].startswith("warning: round 1 selected only 0.0625 % of the target's pixels")


# Checkpoints


def attempt(monkeypatch, out, *, seconds_ago=0):
    """One attempt of a run with a network of one layer, as if it had begun so many seconds ago."""
    from _common.run import Run

    with monkeypatch.context() as patch:
        run = Run(parsed(patch, "source_only.py", "--out", out, "--tracker", "none"))
    run.started -= seconds_ago
    run.prepare(nn.Conv2d(3, 2, 1))
    run.restore()
    run.expect(100)
    return run


def seconds_of(run):
    """What a run writes at its end."""
    run.finish(run.networks[0], {})
    return json.loads((run.out / "result.json").read_text(encoding="utf-8"))["seconds"]


def test_seconds_are_those_of_all_attempts(common, monkeypatch, tmp_path):
    from _common.checkpoints import save_checkpoint

    first = attempt(monkeypatch, tmp_path, seconds_ago=1000)
    first.stage, first.step = "source", 10
    save_checkpoint(first)
    first.started -= 500  # lost: it is killed before the next checkpoint
    second = attempt(monkeypatch, tmp_path, seconds_ago=200)
    assert second.seconds == pytest.approx(1200, abs=90)
    second.step += 10
    remaining = re.search(r"(\S+) left", second._postfix()["run"])[1]
    assert remaining in [f"26:{second:02}" for second in range(40, 60)] + [f"{minute}:00" for minute in (27, 28)]
    save_checkpoint(second)
    assert seconds_of(second) == pytest.approx(1200, abs=90)
    for _ in range(2):
        assert seconds_of(attempt(monkeypatch, tmp_path)) == pytest.approx(1200, abs=90)


def test_a_file_among_the_checkpoints_stays(common, monkeypatch, tmp_path):
    from _common.checkpoints import save_checkpoint

    run = attempt(monkeypatch, tmp_path)
    for step in (1, 2):
        run.stage, run.step = "source", step
        save_checkpoint(run)
        (tmp_path / "checkpoints" / ".DS_Store").write_bytes(b"x")
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [".DS_Store", "source-000002"]
    run.accelerator.end_training()
    again = attempt(monkeypatch, tmp_path)
    assert again.step == 2
    again.accelerator.end_training()


# Runs


@pytest.mark.slow
def test_two_runs_that_start_at_once_share_a_benchmark(tmp_path):
    words = ["--smoke", "--steps", 0, "--tracker", "none", "--root", tmp_path / "streets"]
    logs = [tmp_path / name for name in ("one.txt", "two.txt")]
    started = [start_ranks("source_only.py", log.with_suffix(""), words, log)[0] for log in logs]
    for process, log in zip(started, logs, strict=True):
        process.join(LIMIT)
        assert process.exitcode == 0, log.read_text(encoding="utf-8")
    names = ["complete", "source", "target"]
    assert sorted(path.name for path in (tmp_path / "streets").iterdir()) == names
    assert not list(tmp_path.glob(".streets.*"))
    assert result(tmp_path / "one") == result(tmp_path / "two")


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Folder of a small run, and options for others like it."""
    out = tmp_path_factory.mktemp("edges")
    run("source_only.py", out / "source", "--smoke", "--images", 4, 3, 2, "--steps", 2, "--root", out / "streets")
    return out / "source", ["--smoke", "--images", 4, 3, 2, "--batch", 2, "--root", out / "streets"]


@pytest.mark.slow
@pytest.mark.parametrize("script", ["cbst.py", "crst.py", "dst_cbc.py", "iast.py"])
def test_no_rounds_give_the_score_of_what_was_given(script, begun, tmp_path):
    source, options = begun
    more = ["--warmup-steps", 0] if script == "iast.py" else []
    output = run(script, tmp_path, *options, *more, "--init", source / "model.pt", "--rounds", 0)
    before = json.loads((tmp_path / "rounds" / "round-0000.json").read_text(encoding="utf-8"))["iou"]
    found = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert list(found["iou"].values()) == pytest.approx(before)
    assert f"BatchNorm re-estimated on the target images: mIoU {found['mIoU']:.1f}" in output
    assert (tmp_path / "rounds" / "round-source.json").exists()
    assert not (tmp_path / "pseudo-labels").exists()


@pytest.mark.slow
def test_weights_however_they_were_saved(begun, tmp_path):
    """A state dict, one inside a checkpoint, one of a wrapped network; a pickled network is refused, not run."""
    source, options = begun
    weights = torch.load(source / "model.pt", weights_only=True)
    torch.save(
        {"state_dict": {f"module._orig_mod.{name}": tensor for name, tensor in weights.items()}}, tmp_path / "a.pt"
    )
    torch.save(nn.Conv2d(3, 13, 1), tmp_path / "b.pt")
    run("source_only.py", tmp_path / "out", *options, "--steps", 0, "--init", tmp_path / "a.pt")
    after = torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    assert all(torch.equal(tensor, after[name]) for name, tensor in weights.items())
    for wrong in (["--init", tmp_path / "b.pt"], ["--network", "small-unett"]):
        with pytest.raises(AssertionError, match=wrong[0]) as caught:
            run("source_only.py", tmp_path / "wrong", *options, "--steps", 0, *wrong)
        assert "Traceback" not in str(caught.value)


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_uses_the_finished_round(begun, tmp_path):
    source, options = begun
    words = [*options, "--init", source / "model.pt", "--rounds", 1, "--steps", 2]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run("cbst.py", whole, *words)
    shutil.copytree(whole, killed)
    shutil.rmtree(killed / "checkpoints")
    (killed / "result.json").unlink()
    labels = {path: path.stat().st_mtime_ns for path in killed.rglob("pseudo-labels/**/*")}
    # As if labelled on a machine that rounds otherwise: estimated again, the thresholds would not be these.
    output = run("cbst.py", killed, *words, "--threads", 2)
    assert "continues after step" not in output
    assert {path: path.stat().st_mtime_ns for path in killed.rglob("pseudo-labels/**/*")} == labels
    assert (killed / "result.json").exists()
