"""What is written is what is read, in real files."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, StackDataset

from selftrain_seg import PseudoLabels
from selftrain_seg.datasets import SyntheticStreets
from selftrain_seg.mining import ClassBalancedSampler, ClassIndex, mine_crops, rare_classes
from selftrain_seg.selectors import select_hard, select_reweighted, select_soft
from selftrain_seg.store import PseudoLabelStore, expand_soft
from selftrain_seg.store.soft import pack_soft
from selftrain_seg.thresholds import ClassBalancedThreshold
from tests.helpers import random_logits
from tests.store.cases import CLASSES, NAMES, THRESHOLDS, joined, open_store, pseudo, tree, write_all

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.mark.parametrize("threads", [0, 3])
def test_every_field(tmp_path, threads):
    keep = ("confidence", "soft", "pixel_weight", "predicted")
    stored = write_all(tmp_path, keep=keep, threads=threads)
    assert stored.fields == ("labels", *keep)
    assert len(stored) == len(NAMES)
    assert stored.names == tuple(NAMES)
    for place, name in enumerate(NAMES):
        given, found = pseudo(name), stored.read(name)
        assert found.labels.dtype == found.predicted.dtype == torch.int64
        assert torch.equal(found.labels, given.labels[0])
        assert torch.equal(found.predicted, given.predicted[0])
        for field in ("confidence", "pixel_weight"):
            value = getattr(found, field)
            assert value.dtype == torch.float32
            assert float((value - getattr(given, field)[0]).abs().max()) <= 1 / 510 + 1e-7
        assert found.soft.dtype == torch.float32
        assert torch.equal(found.soft, expand_soft(pack_soft(given.soft, 3).planes, CLASSES)[0])
        assert torch.equal(stored.labels(place), found.labels)
        assert all(torch.equal(a, b) for a, b in zip(stored.read(place - len(NAMES)), found, strict=True))


def test_worst_error_of_confidence_and_weight_is_reached_and_not_passed(tmp_path):
    values = torch.linspace(0, 1, 4097).view(1, 17, 241)
    with open_store(tmp_path).write(0, ["a"]) as writer:
        writer.add(["a"], PseudoLabels(torch.zeros(1, 17, 241, dtype=torch.long), values, pixel_weight=values))
        found = writer.finish().read("a")
    for value in (found.confidence, found.pixel_weight):
        error = float((value - values[0]).abs().max())
        assert 0.95 / 510 < error <= 1 / 510 + 1e-7
        assert value.flatten()[0] == 0
        assert value.flatten()[-1] == 1


def test_hard_labels_only(tmp_path):
    logits = random_logits(2, CLASSES, 6, 7)
    given = select_hard(logits, torch.full((CLASSES,), 0.6))
    with open_store(tmp_path, keep=()).write(3, ["a", "b"]) as writer:
        writer.add(["a", "b"], given)
        stored = writer.finish()
    assert sorted(path for path in tree(tmp_path) if "/" in path) == [
        f"round-0003/{name}"
        for name in ("images.jsonl", "labels/a.png", "labels/b.png", "manifest.json", "settings.json")
    ]
    found = stored.read("b")
    assert torch.equal(found.labels, given.labels[1])
    assert bool(found.confidence.isnan().all())
    assert (found.soft, found.pixel_weight, found.predicted) == (None, None, None)
    assert torch.equal(stored.counts[1].long(), torch.bincount(given.labels[1].flatten(), minlength=256)[:CLASSES])
    assert torch.equal(stored.predicted[1].long(), torch.bincount(given.predicted[1].flatten(), minlength=CLASSES))
    assert (stored.thresholds, stored.settings.portion, stored.soft_dropped) == (None, None, None)


def test_files_are_what_any_viewer_expects(tmp_path):
    streets = SyntheticStreets("target", "val", length=1)
    labels = streets[0][1][None]
    store = PseudoLabelStore(tmp_path, 13, classes=streets.classes, palette=streets.palette)
    with store.write(0, ["bonn/0"]) as writer:
        writer.add(["bonn/0"], PseudoLabels(labels, torch.rand(labels.shape)))
        stored = writer.finish()
    with Image.open(tmp_path / "round-0000/labels/bonn/0.png") as image:
        assert image.mode == "P"
        assert np.array_equal(np.array(image), labels[0].numpy())
        colours = np.array(image.convert("RGB"))
    expected = np.zeros((256, 3), np.uint8)
    expected[:13] = streets.palette
    assert np.array_equal(colours, expected[labels[0].numpy()])
    with Image.open(tmp_path / "round-0000/confidence/bonn/0.png") as image:
        assert image.mode == "L"
    assert stored.settings.classes == streets.classes
    assert stored.settings.palette == streets.palette


def test_default_palette_tells_classes_apart():
    for classes in (1, 19, 255):
        palette = PseudoLabelStore("unused", classes).palette
        assert len({*palette, (0, 0, 0)}) == classes + 1  # black is for ignored pixels
    assert PseudoLabelStore("unused", 3).palette == ((128, 0, 0), (0, 128, 0), (128, 128, 0))  # PASCAL VOC's


@pytest.mark.parametrize(("classes", "ignore_index"), [(255, 255), (19, 19), (7, 200)])
def test_all_values_and_other_ignore_labels(tmp_path, classes, ignore_index):
    labels = torch.arange(classes).repeat(2).view(1, 2, classes)
    labels[0, 1, 0] = ignore_index
    store = PseudoLabelStore(tmp_path, classes, ignore_index=ignore_index)
    with store.write(0, ["a"]) as writer:
        writer.add(["a"], PseudoLabels(labels.to(torch.int32), torch.ones(1, 2, classes)))
        stored = writer.finish()
    assert torch.equal(stored.read(0).labels, labels[0])
    counts = [2] * classes
    counts[0] = 1
    assert stored.counts[0].tolist() == counts
    with Image.open(tmp_path / "round-0000/labels/a.png") as image:
        assert image.convert("RGB").getpixel((0, 1)) == (0, 0, 0)  # ignored


def test_sizes_may_differ_and_one_pixel_is_enough(tmp_path):
    sizes = {"a": (1, 1), "b": (7, 5), "c": (2, 300)}
    with open_store(tmp_path).write(0, list(sizes)) as writer:
        for name, size in sizes.items():
            writer.add([name], pseudo(name, *size))
        stored = writer.finish()
    assert stored.sizes.tolist() == [list(size) for size in sizes.values()]
    assert stored.pixels.tolist() == [1, 35, 600]
    for name, size in sizes.items():
        assert stored.read(name).soft.shape == (CLASSES, *size)


def test_more_pixels_than_pillow_opens_without_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    stored = write_all(tmp_path, names=["a"])
    assert torch.equal(stored.read("a").labels, pseudo("a").labels[0])


def test_half_precision_strides_and_gradients(tmp_path):
    given = pseudo("a", 8, 10)
    rough = PseudoLabels(
        given.labels.transpose(1, 2).contiguous().transpose(1, 2),
        given.confidence.bfloat16(),
        given.soft.half().requires_grad_(),
        given.pixel_weight.double()[:, :, ::1],
        given.predicted.to(torch.uint8),
    )
    before = [value.clone() for value in rough]
    with open_store(tmp_path, keep=("confidence", "soft", "pixel_weight", "predicted")).write(0, ["a"]) as writer:
        writer.add(["a"], rough)
        found = writer.finish().read("a")
    assert all(torch.equal(a, b) for a, b in zip(before, rough, strict=True))  # not changed
    assert torch.equal(found.labels, given.labels[0])
    assert torch.equal(found.predicted, given.predicted[0])
    assert float((found.confidence - rough.confidence[0].float()).abs().max()) <= 1 / 510 + 1e-7
    assert float((found.pixel_weight - given.pixel_weight[0]).abs().max()) <= 1 / 510 + 1e-7


def test_confidence_above_one_is_stored_as_one(tmp_path):
    with open_store(tmp_path).write(0, ["a"]) as writer:
        writer.add(["a"], PseudoLabels(torch.zeros(1, 1, 2, dtype=torch.long), torch.tensor([[[3.7, 0.2]]])))
        assert writer.finish().read("a").confidence.tolist() == [[1.0, pytest.approx(0.2)]]


def test_empty_batches_and_repeated_names(tmp_path):
    empty = PseudoLabels(*(value[:0] for value in pseudo("a")))
    with open_store(tmp_path).write(0, ["a", "b"]) as writer:
        writer.add([], empty)
        assert writer.missing() == ["a", "b"]
        writer.add(["a"], pseudo("a"))
        writer.add(["a", "b"], joined(["b", "b"]))  # "a" is there already and stays as it is
        writer.add(["b", "b"], joined(["a", "a"]))
        assert writer.missing() == []
        stored = writer.finish()
    assert torch.equal(stored.read("a").labels, pseudo("a").labels[0])
    assert torch.equal(stored.read("b").labels, pseudo("b").labels[0])
    with open_store(tmp_path).write(1, ["a"]) as writer:
        writer.add(["a", "a"], joined(["a", "b"]))  # the first of two in one batch
        assert torch.equal(writer.finish().read("a").labels, pseudo("a").labels[0])


def test_manifest(tmp_path):
    meta = {"commit": "abc", "seeds": [1, 2], "nested": {"x": None}}
    store = open_store(tmp_path, classes=list("abcde"))
    with store.write(7, NAMES, thresholds=THRESHOLDS, portion=0.1 + 0.2, meta=meta) as writer:
        writer.add(NAMES, joined(NAMES))
        stored = writer.finish()
    folder = tmp_path / "round-0007"
    manifest = json.loads((folder / "manifest.json").read_text())
    labels = torch.stack([pseudo(name).labels[0] for name in NAMES])
    predicted = torch.stack([pseudo(name).predicted[0] for name in NAMES])
    assert manifest["complete"] is True
    assert manifest["images"] == 12
    assert manifest["pixels"] == labels.numel()
    assert manifest["selected"] == [int((labels == c).sum()) for c in range(CLASSES)]
    assert manifest["predicted"] == [int((predicted == c).sum()) for c in range(CLASSES)]
    assert manifest["selected_share"] == int((labels != 255).sum()) / labels.numel() == stored.selected_share
    assert manifest["class_shares"] == [count / labels.numel() for count in manifest["selected"]]
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["versions"].keys() == {"selftrain_seg", "torch", "pillow"}
    assert manifest["meta"] == meta == stored.settings.meta
    assert manifest["classes"] == list("abcde")
    assert stored.class_counts.tolist() == manifest["selected"]
    # Thresholds and portion bit for bit: 1 and the float before it stay two numbers.
    for settings in (stored.settings, store.settings(7), store.latest().settings):
        assert settings.thresholds.dtype == torch.float64
        assert torch.equal(settings.thresholds.view(torch.int64), THRESHOLDS.view(torch.int64))
        assert settings.portion == 0.1 + 0.2
        assert settings.names == tuple(NAMES)
    mean, largest = stored.soft_dropped
    soft = torch.cat([pseudo(name).soft for name in NAMES])
    dropped = soft.sum(1) - soft.topk(3, 1).values.sum(1)
    assert mean == pytest.approx(float(dropped.sum() / (labels != 255).sum()), rel=1e-3)
    assert largest == pytest.approx(float(dropped.max()), abs=2e-6)


def test_portion_of_each_class(tmp_path):
    portion = torch.rand(CLASSES, generator=torch.Generator().manual_seed(0))
    open_store(tmp_path).write(0, ["a"], portion=portion)
    assert torch.equal(open_store(tmp_path).settings(0).portion, portion.double())
    open_store(tmp_path).write(1, ["a"], portion=torch.tensor(0.25))
    assert open_store(tmp_path).settings(1).portion == 0.25


def test_disk_report_is_the_truth(tmp_path):
    stored = write_all(tmp_path, 2)
    files = [path for path in (tmp_path / "round-0002").rglob("*") if path.is_file()]
    assert open_store(tmp_path).disk_bytes(2) == sum(len(path.read_bytes()) for path in files)
    for kind, size in stored.manifest["bytes"].items():
        assert size == sum(len(path.read_bytes()) for path in files if path.parts[-3] == kind)
    assert sum(stored.manifest["bytes"].values()) == 12 * stored.bytes_per_image
    assert f"{stored.bytes_per_image / 1024:.1f} KiB an image" in repr(stored)
    assert {path.parts[-3] for path in files if path.suffix == ".png"} == set(stored.fields)


def test_no_dense_maps_and_few_bytes(tmp_path):
    """Smooth labels as a network gives them: far below a byte a pixel and class."""
    streets = SyntheticStreets("target", size=(128, 256), length=2)
    logits = torch.stack([torch.nn.functional.one_hot(streets[i][1].clamp(max=12), 13) for i in range(2)])
    logits = torch.nn.functional.avg_pool2d(logits.permute(0, 3, 1, 2) * 9.0, 9, 1, 4)
    with PseudoLabelStore(tmp_path, 13).write(0, ["a", "b"]) as writer:
        writer.add(["a", "b"], select_soft(logits, torch.full((13,), 0.8)))
        stored = writer.finish()
    assert stored.bytes_per_image < 128 * 256  # dense float32 probabilities: 52 bytes a pixel


def test_same_input_gives_the_same_bytes(tmp_path):
    write_all(tmp_path / "a", batch=4, threads=0)
    write_all(tmp_path / "b", batch=5, threads=3)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert not any(".partial" in path or "journal" in path for path in tree(tmp_path / "a"))


def test_every_setting_changes_something(tmp_path):
    base = write_all(tmp_path / "base")
    names = ["soft", "confidence"]
    assert write_all(tmp_path / "keep", keep=names).fields == ("labels", "confidence", "soft")
    assert write_all(tmp_path / "k", top_k=1).dataset("soft")[0].shape[0] == 2
    assert base.dataset("soft")[0].shape[0] == 6
    assert write_all(tmp_path / "big", top_k=9).dataset("soft")[0].shape[0] == 2 * CLASSES
    write_all(tmp_path / "palette", palette=[(9, 9, c) for c in range(CLASSES)])
    a, b = tree(tmp_path / "base"), tree(tmp_path / "palette")
    assert {path for path in a if a[path] != b[path]} > {path for path in a if "/labels/" in path}


def test_list_of_rounds(tmp_path):
    store = open_store(tmp_path / "new")
    assert (store.rounds(), store.interrupted(), store.latest()) == ([], [], None)
    for number in (0, 2, 10001):
        write_all(tmp_path / "new", number, names=["a"])
    store.write(3, ["a"])
    (tmp_path / "new" / "notes").mkdir()
    (tmp_path / "new" / "round-7").mkdir()
    (tmp_path / "new" / "round-0007").mkdir()  # empty: nothing was begun
    assert (store.rounds(), store.interrupted()) == ([0, 2, 10001], [3])
    assert store.latest().round == 10001
    assert store.round(2).round == 2
    assert "num_classes" not in repr(store)
    assert repr(store) == f"PseudoLabelStore({str(tmp_path / 'new')!r}, {CLASSES})"


# --- as a data set


def test_data_set(tmp_path):
    stored = write_all(tmp_path)
    dataset = stored.dataset()
    assert len(dataset) == 12
    assert torch.equal(dataset[3], pseudo(NAMES[3]).labels[0])
    assert torch.equal(dataset[NAMES[3]], dataset[3 - 12])
    labels, soft = stored.dataset(["labels", "soft"])[0]
    assert soft.dtype == torch.uint8
    assert torch.equal(expand_soft(soft[None], CLASSES)[0], stored.read(0).soft)
    assert torch.equal(labels, dataset[0])
    images = [torch.full((3, 9, 13), float(i)) for i in range(12)]
    image, pseudo_labels = StackDataset(images, dataset)[5]
    assert image[0, 0, 0] == 5
    assert torch.equal(pseudo_labels, dataset[5])


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_data_loader_workers(tmp_path, context):
    stored = write_all(tmp_path)
    dataset = stored.dataset(["labels", "confidence", "soft"])
    loader = DataLoader(dataset, batch_size=5, num_workers=2, multiprocessing_context=context)
    batches = [torch.cat(parts) for parts in zip(*loader, strict=True)]
    alone = [torch.stack(parts) for parts in zip(*(dataset[i] for i in range(12)), strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(batches, alone, strict=True))


def test_pickles(tmp_path):
    stored = write_all(tmp_path)
    again = pickle.loads(pickle.dumps(stored))  # noqa: S301
    assert torch.equal(again.read(4).soft, stored.read(4).soft)
    assert torch.equal(again.labels(NAMES[2]), stored.labels(2))
    store = pickle.loads(pickle.dumps(open_store(tmp_path)))  # noqa: S301
    assert store.verify(0) == []


def test_counts_serve_samplers_and_crops(tmp_path):
    stored = write_all(tmp_path)
    labels = torch.stack([stored.labels(name) for name in NAMES])
    index = ClassIndex(stored.counts, stored.pixels)
    expected = ClassIndex.from_masks(labels, CLASSES)
    assert torch.equal(index.counts, expected.counts)
    assert torch.equal(index.pixels, expected.pixels)
    assert len(list(ClassBalancedSampler(index))) == 12
    rare = rare_classes(stored.class_counts, k=2)
    corners = [
        mine_crops(labels, rare, (4, 4), image_counts=counts, generator=torch.Generator().manual_seed(0))
        for counts in (stored.counts, None)
    ]
    assert torch.equal(*corners)


def test_a_whole_round_of_the_library(tmp_path):
    logits = random_logits(6, CLASSES, 16, 16)
    estimator = ClassBalancedThreshold(CLASSES, 0.4)
    estimator.update(logits)
    thresholds = estimator.compute()
    names = [f"{i:03d}" for i in range(6)]
    store = open_store(tmp_path)
    with store.write(0, names, thresholds=thresholds, portion=0.4) as writer:
        for start in (0, 2, 4):
            writer.add(names[start : start + 2], select_reweighted(logits[start : start + 2], thresholds))
        stored = writer.finish()
    # The thresholds that were read select the very same pixels.
    again = select_reweighted(logits, store.latest().thresholds)
    assert torch.equal(torch.stack([stored.labels(name) for name in names]), again.labels)
    assert torch.equal(stored.predicted.sum(0).long(), estimator.class_counts())
    assert re.fullmatch(r"StoredRound\(0, 6 images, \d+\.\d % selected, \d+\.\d KiB an image\)", repr(stored))


@pytest.mark.gpu
def test_from_a_gpu(tmp_path):
    with open_store(tmp_path / "gpu").write(0, NAMES, thresholds=THRESHOLDS.cuda(), portion=0.2) as writer:
        writer.add(NAMES, PseudoLabels(*(value.cuda() for value in joined(NAMES))))
        writer.finish()
    write_all(tmp_path / "cpu")
    assert tree(tmp_path / "gpu") == tree(tmp_path / "cpu")


def test_paths_are_relative(tmp_path):
    """A store can be moved: nothing in it tells where it was."""
    write_all(tmp_path / "a")
    for path in (tmp_path / "a").rglob("*.json*"):
        assert str(tmp_path) not in path.read_text()
    Path(tmp_path / "a").rename(tmp_path / "b")
    assert open_store(tmp_path / "b").verify(0) == []
