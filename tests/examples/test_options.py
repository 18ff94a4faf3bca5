"""Options that several trainers share: what each of them does, on its own."""

from __future__ import annotations

import importlib
import itertools
import math
import sys
from argparse import Namespace
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torchvision import tv_tensors

from tests.datasets import trees
from tests.examples.trainers import EXAMPLES


@pytest.fixture
def common(monkeypatch):
    """Lets a test import what the examples share."""
    monkeypatch.syspath_prepend(EXAMPLES)


@pytest.fixture
def started(common, tmp_path):
    """Makes a run of ``source_only.py`` with some options."""
    from _common.run import Run
    from _common.settings import parse

    runs = []

    def start(*words):
        kind = importlib.import_module("source_only").SourceSettings
        runs.append(Run(parse(kind, "", [*map(str, words), "--tracker", "none", "--out", str(tmp_path / "out")])))
        return runs[-1]

    yield start
    for run in runs:
        run.accelerator.end_training()
    sys.modules.pop("source_only", None)


# Learning rate and optimizer


def learning_rates(run, steps, **how):
    net = nn.Linear(2, 2)
    run.prepare(net)
    optimizer = run.optimizer(net)
    return [optimizer.param_groups[0]["lr"] for _ in run.steps("stage", steps, **how)]


@pytest.mark.parametrize(
    ("words", "shares"),
    [
        (["--schedule", "poly"], [1, 0.75**0.9, 0.5**0.9, 0.25**0.9]),
        (["--schedule", "constant"], [1, 1, 1, 1]),
        (["--schedule", "linear"], [1, 0.75, 0.5, 0.25]),
        (["--schedule", "cosine"], [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
        (["--schedule", "linear", "--decay-over", 2], [1, 0.875, 0.75, 0.625]),
        (["--schedule", "linear", "--decay-over", 0.5], [1, 0.5, 0, 0]),
        (["--schedule", "linear", "--lr-warmup", 0.75], [1 / 3, 0.75 * 2 / 3, 0.5, 0.25]),
    ],
)
def test_schedules(started, words, shares):
    run = started("--steps", 4, "--lr", 8, *words)
    assert learning_rates(run, 4) == pytest.approx([8 * share for share in shares])


def test_a_part_of_a_schedule(started):
    run = started("--steps", 8, "--lr", 8, "--schedule", "linear", "--decay-over", 3)
    assert learning_rates(run, 2, decay=(4, 16), lr_scale=0.5) == pytest.approx([4 * 0.75, 4 * 11 / 16])


@pytest.mark.parametrize(
    ("words", "kind", "decay"),
    [
        (["--optimizer", "adamw"], torch.optim.AdamW, 0.01),
        (["--optimizer", "adam"], torch.optim.Adam, 5e-4),
        (["--optimizer", "sgd"], torch.optim.SGD, 5e-4),
        (["--optimizer", "sgd", "--weight-decay", 0], torch.optim.SGD, 0.0),
        (["--optimizer", "adamw", "--weight-decay", 1e-4], torch.optim.AdamW, 1e-4),
    ],
)
def test_optimizers(started, words, kind, decay):
    optimizer = started(*words).optimizer(nn.Linear(2, 2)).optimizer
    assert type(optimizer) is kind
    assert [group["weight_decay"] for group in optimizer.param_groups] == [decay]
    assert optimizer.param_groups[0].get("momentum", 0.9) == 0.9


# What may change when a run is resumed


@pytest.mark.parametrize("words", [["--flip"], ["--scales", 0.5, 1.0], ["--fusion", "logits"]])
@pytest.mark.parametrize(
    ("begun", "refused"),
    [
        ([], False),
        (["--check", "restyled"], True),
        (["--reestimate-bn", "auto"], True),
        (["--reestimate-bn", 1], False),
    ],
)
def test_how_images_are_measured_may_change_unless_that_decides(started, tmp_path, words, begun, refused):
    started(*begun)
    (tmp_path / "out" / "checkpoints" / "labelled-000001").mkdir(parents=True)
    expected = (
        pytest.raises(SystemExit, match=f"was begun with {words[0][2:]} .*: choose") if refused else nullcontext()
    )
    with expected:
        started(*begun, *words)
    started(*begun)


@pytest.mark.parametrize(("domain", "refused"), [("source", False), ("target", True)])
def test_missing_classes_may_change_unless_training_sees_target_labels(started, tmp_path, domain, refused):
    started("--domain", domain)
    (tmp_path / "out" / "checkpoints" / "labelled-000001").mkdir(parents=True)
    expected = pytest.raises(SystemExit, match="was begun with missing_classes counted, now ignored: choose")
    with expected if refused else nullcontext():
        started("--domain", domain, "--missing-classes", "ignored")


# Images


def test_no_jitter_leaves_colours_as_they_are(common):
    from _data.augmentation import training_transform

    for channels in (3, 4):
        image = tv_tensors.Image(torch.arange(channels * 64, dtype=torch.uint8).reshape(channels, 8, 8))
        labels = torch.arange(64).reshape(8, 8)
        new, moved = training_transform((8, 8), jitter=(0, 0, 0, 0))(image, labels)
        assert torch.equal(new, image.as_subclass(torch.Tensor).flatten(1)[:, moved.flatten()].view_as(new))
        torch.manual_seed(0)
        new, moved = training_transform((8, 8), jitter=(0.5, 0.5, 0.5, 0.1))(image, labels)
        assert not torch.equal(new, image.as_subclass(torch.Tensor).flatten(1)[:, moved.flatten()].view_as(new))


def test_a_quarter_of_the_squares_of_some_images_is_black(common):
    from _data.augmentation import cut_squares

    torch.manual_seed(0)
    images = torch.rand(400, 3, 8, 8) + 0.1
    cut = cut_squares(images, 0.25, side=2)
    black = (cut == 0).all(dim=1)
    touched = black.flatten(1).any(dim=1)
    assert touched.float().mean() == pytest.approx(0.25, abs=0.07)
    assert black[touched].float().mean() == pytest.approx(0.25, abs=0.05)
    assert torch.equal(cut.where(~black[:, None], 0), images.where(~black[:, None], 0))
    squares = black.view(400, 4, 2, 4, 2).float().mean(dim=(2, 4))
    assert set(squares.unique().tolist()) == {0, 1}
    assert torch.equal(cut_squares(images, 0.0), images)


def test_parts_of_the_labelled_images_differ_as_much_as_they_can(common):
    module = importlib.import_module("source_only")
    left, right = (module.part_of(10, part, seed=1) for part in ((0.0, 0.8), (0.2, 1.0)))
    assert (len(left), len(right)) == (8, 8)
    assert {*left} | {*right} == {*range(10)}
    assert left[2:] == right[:6]  # one random order
    assert left != module.part_of(10, (0.0, 0.8), seed=2)
    for part in ((0.5, 0.5), (0.8, 0.2), (0.0, 1.5), (-0.5, 1.0)):
        with pytest.raises(SystemExit, match=f"--part {part[0]:g} {part[1]:g}: expected two shares"):
            module.part_of(10, part, seed=1)
    sys.modules.pop("source_only")


def test_a_loader_may_have_a_batch_of_its_own(common):
    from _common.loading import StepSampler

    ranks = [Namespace(settings=Namespace(batch=8), rank=rank, world=2, seed=lambda *place: 0) for rank in range(2)]
    for batch, expected in ((2, [[2], [3]]), (None, [[8, 9, 0, 1], [2, 3, 4, 5]])):
        samplers = [StepSampler(run, "x", 10, order=range(10), batch=batch) for run in ranks]
        second = [list(itertools.islice(sampler, 2))[1] for sampler in samplers]
        assert [[image for image, _ in part] for part in second] == expected


@pytest.mark.parametrize("fusion", ["probabilities", "logits"])
def test_a_network_that_is_entirely_sure_is_measured_at_another_size(common, fusion):
    """Probabilities of 0 have no logarithm that can be resized."""
    from _common.evaluation import _measure
    from _data.opening import Data

    from selftrain_seg.datasets import LabelMap

    class Sure(nn.Module):
        def forward(self, images):
            return torch.stack([images[:, 0] * 200, images[:, 1] * 200], dim=1)

    image = torch.zeros(3, 4, 6)
    image[0, :, :3], image[1, :, 3:] = 1, 1
    labels = image[1].repeat_interleave(2, 0).repeat_interleave(2, 1).long()
    settings = Namespace(tile=None, scales=(1.0,), flip=True, fusion=fusion, predict_batch=1, workers=0)
    run = Namespace(settings=settings, autocast=nullcontext, rank=0, world=1, main=False, device=torch.device("cpu"))
    data = Data(None, None, None, [(image, labels)], LabelMap.binary(), {"mIoU": (0, 1)})
    assert _measure(Sure(), data, run, None).iou.tolist() == [100, 100]


def test_labels_come_from_several_views(common):
    from _common.evaluation import predict, predict_labels

    net, images = nn.Conv2d(3, 4, 3, padding=1), torch.rand(2, 3, 8, 12)

    def run(**settings):
        return Namespace(settings=Namespace(tile=None, scales=(2.0,), flip=True, **settings), autocast=nullcontext)

    with torch.no_grad():
        one = run(label_scales=(1.0,), label_flip=False)
        assert torch.equal(predict_labels(net, images, one), predict(net, images, one))
        found = predict_labels(net, images, run(label_scales=(1.0,), label_flip=True))
        torch.testing.assert_close(found, (net(images) + net(images.flip(-1)).flip(-1)) / 2)
        half = nn.functional.interpolate(images, (4, 6), mode="bilinear", antialias=True)
        found = predict_labels(net, images, run(label_scales=(0.5,), label_flip=False))
        torch.testing.assert_close(found, nn.functional.interpolate(net(half), (8, 12), mode="bilinear"))


# SYNTHIA with 16 outputs


@pytest.mark.parametrize("outputs", [16, 19])
def test_synthia_has_a_class_for_each_output(started, tmp_path, outputs):
    from _data.opening import open_data

    trees.synthia(tmp_path / "synthia", 2)
    for split in ("train", "val"):
        trees.cityscapes(tmp_path / "cityscapes", split)
    folders = ["--source-root", tmp_path / "synthia", "--root", tmp_path / "cityscapes"]
    run = started("--data", "synthia", "--outputs", outputs, "--network", "small-unet", *folders)
    data = open_data(run.settings, run)
    assert data.label_map.num_classes == outputs
    missing = {"terrain", "truck", "train"}
    assert missing.isdisjoint(data.label_map.classes) == (outputs == 16)
    for heading, count in (("mIoU-16", 16), ("mIoU-13", 13)):
        names = {data.label_map.classes[number] for number in data.subsets[heading]}
        assert len(names) == count
        assert names.isdisjoint(missing | (set() if count == 16 else {"wall", "fence", "pole"}))
    for part in (data.source, data.val, data.target_with(True)):
        labels = torch.cat([part[number][1].flatten() for number in range(len(part))])
        seen = {*labels.unique().tolist()} - {255}
        assert seen
        assert max(seen) < outputs
