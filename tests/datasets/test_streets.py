"""The synthetic streets: same bytes everywhere, every class visible, and exports that real loaders read."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import zlib
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import Cityscapes

from selftrain_seg import IGNORE_INDEX
from selftrain_seg.datasets import SyntheticStreets, _export
from selftrain_seg.datasets._cityscapes_ids import CITYSCAPES_LABELS
from selftrain_seg.datasets._streets_appearance import SOURCE_SHIFT
from selftrain_seg.datasets._streets_scene import render

DOMAINS = ("source", "target")

# crc32 of the uint8 image bytes followed by the uint8 label bytes; train split, seed 0, (64, 128)
GOLDEN = {
    ("source", 0): 1160839710,
    ("source", 1): 2396215605,
    ("source", 999): 2292535176,
    ("target", 0): 3910018585,
    ("target", 1): 1146751280,
    ("target", 499): 2808827131,
}
GOLDEN_ODD = {"source": 294995623, "target": 3627002187}  # val split, seed 7, index 3, (37, 91)

# percent of the labelled pixels of source, as the docstring gives them, and by how much 250 samples may differ
SHARES = {
    "road": (31, 1.5),
    "sidewalk": (9.8, 1),
    "building": (26, 2),
    "fence": (2.2, 0.5),
    "pole": (1.6, 0.2),
    "light": (0.7, 0.15),
    "sign": (0.7, 0.15),
    "vegetation": (8.6, 1),
    "sky": (8.9, 1),
    "person": (1.5, 0.3),
    "rider": (0.5, 0.2),
    "car": (7.2, 1),
    "bicycle": (1.3, 0.3),
}


def checksum(image, labels) -> int:
    """Crc32 of a sample; accepts the dataset's tensors."""
    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    return zlib.crc32(labels.to(torch.uint8).numpy().tobytes(), zlib.crc32(pixels.numpy().tobytes()))


def checksums(dataset) -> list[int]:
    return [checksum(*dataset[i]) for i in range(len(dataset))]


@pytest.fixture(scope="module", params=DOMAINS)
def many(request):
    """250 samples of one domain, as bytes."""
    return request.param, [render(0, request.param, "train", i, (64, 128)) for i in range(250)]


class TestSamples:
    @pytest.mark.parametrize("domain", DOMAINS)
    def test_types(self, domain):
        image, labels = SyntheticStreets(domain)[3]
        assert image.dtype == torch.float32
        assert image.shape == (3, 64, 128)
        assert image.is_contiguous()
        assert 0 <= image.min() < 0.2
        assert 0.6 < image.max() <= 1
        assert labels.dtype == torch.int64
        assert labels.shape == (64, 128)
        assert set(labels.unique().tolist()) <= {*range(13), IGNORE_INDEX}

    def test_pixels_are_exact_255ths(self):
        image, _ = SyntheticStreets("target")[0]
        steps = torch.arange(256, dtype=torch.float32) / 255
        assert torch.isin(image, steps).all()

    def test_samples_own_their_memory(self):
        dataset = SyntheticStreets(length=2)
        image, labels = dataset[0]
        image.zero_()
        labels.zero_()
        assert dataset[0][0].any()
        assert dataset[0][1].any()

    def test_class_tables(self):
        assert len(SyntheticStreets.classes) == len(SyntheticStreets.palette) == 13
        assert SyntheticStreets.num_classes == 13
        assert SyntheticStreets.ignore_index == IGNORE_INDEX
        rare = [SyntheticStreets.classes[c] for c in SyntheticStreets.rare]
        assert rare == ["fence", "pole", "light", "sign", "person", "rider", "bicycle"]

    def test_default_lengths(self):
        lengths = {(d, s): len(SyntheticStreets(d, s)) for d in DOMAINS for s in ("train", "val")}
        assert lengths == {
            ("source", "train"): 1000,
            ("target", "train"): 500,
            ("source", "val"): 200,
            ("target", "val"): 200,
        }

    def test_indices(self):
        dataset = SyntheticStreets(length=3)
        assert checksum(*dataset[-1]) == checksum(*dataset[2])
        assert checksum(*dataset[np.int64(1)]) == checksum(*dataset[torch.tensor(1)]) == checksum(*dataset[1])
        assert len(list(dataset)) == 3  # iteration stops at the IndexError
        for index in (3, -4):
            with pytest.raises(IndexError, match=r"`index`: expected a value in \[-3, 3\), got"):
                dataset[index]
        with pytest.raises(TypeError):
            dataset["0"]

    @pytest.mark.parametrize("size", [(16, 32), (33, 47), (65, 129), (100, 100), (96, 40), (48, 400)])
    @pytest.mark.parametrize("domain", DOMAINS)
    def test_sizes(self, domain, size):
        for index in range(4):
            image, labels = SyntheticStreets(domain, size=size)[index]
            assert image.shape == (3, *size)
            assert labels.shape == size
            shares = torch.bincount(labels.flatten(), minlength=256).double() / labels.numel()
            assert shares[0] > 0.1, "a road"
            assert shares[[2, 7, 3, 8]].sum() > 0.15, "something above the horizon"

    def test_size_changes_the_resolution_not_the_scene(self):
        for index in range(3):
            small = SyntheticStreets("target", size=(64, 128))[index][1]
            large = SyntheticStreets("target", size=(192, 384))[index][1]
            centres = large[1::3, 1::3]
            both = (small != IGNORE_INDEX) & (centres != IGNORE_INDEX)
            assert both.double().mean() > 0.85
            assert (small[both] == centres[both]).double().mean() > 0.999


class TestDeterminism:
    @pytest.mark.parametrize(("domain", "index"), list(GOLDEN))
    def test_golden(self, domain, index):
        """The published benchmark: if this changes, every number measured on it must be measured again."""
        assert checksum(*SyntheticStreets(domain)[index]) == GOLDEN[domain, index]

    @pytest.mark.parametrize("domain", DOMAINS)
    def test_golden_odd_size(self, domain):
        assert checksum(*SyntheticStreets(domain, "val", size=(37, 91), seed=7)[3]) == GOLDEN_ODD[domain]

    def test_any_order(self):
        dataset = SyntheticStreets("target", length=4)
        backwards = [checksum(*dataset[i]) for i in (3, 2, 1, 0)]
        assert backwards[::-1] == checksums(dataset)

    def test_longer_datasets_only_add(self):
        assert checksums(SyntheticStreets(length=4))[:2] == checksums(SyntheticStreets(length=2))

    def test_global_generators_are_neither_read_nor_moved(self):
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        before = checksum(*SyntheticStreets()[0])
        moved = torch.initial_seed(), torch.rand(1), np.random.rand()  # noqa: NPY002
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        assert moved == (torch.initial_seed(), torch.rand(1), np.random.rand())  # noqa: NPY002
        assert checksum(*SyntheticStreets()[0]) == before

    def test_every_part_of_the_key_matters(self):
        sums = [
            value
            for domain in DOMAINS
            for split in ("train", "val")
            for seed in (0, 1)
            for value in checksums(SyntheticStreets(domain, split, seed=seed, length=3))
        ]
        assert len(set(sums)) == len(sums) == 24

    def test_domains_share_no_scene(self):
        """Target and source labels of one index differ by far more than the domain's lower horizon."""
        for index in range(5):
            source, target = (SyntheticStreets(d)[index][1] for d in DOMAINS)
            assert (source != target).double().mean() > 0.15

    @pytest.mark.parametrize("context", ["fork", "spawn"])
    def test_workers(self, context):
        dataset = SyntheticStreets("target", length=6, size=(32, 64))
        alone = list(DataLoader(dataset, batch_size=2))
        shared = list(DataLoader(dataset, batch_size=2, num_workers=2, multiprocessing_context=get_context(context)))
        for (image, labels), (image2, labels2) in zip(alone, shared, strict=True):
            assert torch.equal(image, image2)
            assert torch.equal(labels, labels2)

    def test_another_process(self):
        code = (
            "import json, zlib; from selftrain_seg.datasets._streets_scene import render\n"
            "s = [render(5, d, 'val', 2, (64, 128)) for d in ('source', 'target')]\n"
            "print(json.dumps([zlib.crc32(x.labels.tobytes(), zlib.crc32(x.image.tobytes())) for x in s]))"
        )
        there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        here = [checksum(*SyntheticStreets(d, "val", seed=5)[2]) for d in DOMAINS]
        assert json.loads(there.stdout) == here

    def test_pickling(self):
        dataset = SyntheticStreets("target", "val", size=(32, 64), length=5, seed=3)
        again = pickle.loads(pickle.dumps(dataset))  # noqa: S301
        assert repr(again) == repr(dataset)
        assert checksums(again) == checksums(dataset)


class TestStatistics:
    def test_shares(self, many):
        domain, samples = many
        labels = np.concatenate([sample.labels.ravel() for sample in samples])
        counts = np.bincount(labels, minlength=256)
        shares = dict(zip(SyntheticStreets.classes, 100 * counts[:13] / counts[:13].sum(), strict=True))
        ignored = 100 * counts[255] / counts.sum()
        assert counts[13:255].sum() == 0
        assert 2 < ignored < 6
        for name, (share, tolerance) in SHARES.items():
            # the target has more sky and people and less road, but the label shift stays small
            slack = tolerance if domain == "source" else 0.2 * share + 2 * tolerance
            assert abs(shares[name] - share) <= slack, (name, shares[name])

    def test_every_class_is_frequent_enough_to_learn(self, many):
        _, samples = many
        present = np.zeros(13)
        for sample in samples:
            present += np.bincount(sample.labels.ravel(), minlength=256)[:13] > 0
        assert (present / len(samples) > 0.3).all()

    def test_objects_are_large_enough(self, many):
        """Seen whole, a light has about 3x6 pixels, a person 10 rows, a pole 2 columns."""
        _, samples = many
        heights, widths = {c: [] for c in range(13)}, {c: [] for c in range(13)}
        for sample in samples:
            for number in np.unique(sample.instances)[1:]:
                for label in np.unique(sample.labels[sample.instances == number]):
                    if label == IGNORE_INDEX:
                        continue
                    rows, columns = np.nonzero((sample.instances == number) & (sample.labels == label))
                    heights[label].append(rows.max() - rows.min() + 1)
                    widths[label].append(columns.max() - columns.min() + 1)
        typical = {
            name: (np.median(heights[c]), np.median(widths[c]))
            for c, name in enumerate(SyntheticStreets.classes)
            if heights[c]
        }
        for name, (rows, columns) in {
            "pole": (12, 2),
            "light": (6, 3),
            "sign": (5, 5),
            "person": (10, 4),
            "rider": (8, 5),
            "bicycle": (6, 12),
            "car": (8, 10),
        }.items():
            assert typical[name][0] >= rows, (name, typical[name])
            assert typical[name][1] >= columns, (name, typical[name])

    def test_instances(self, many):
        """Objects have one class, riders and their bicycle two; the backdrop has no instance."""
        _, samples = many
        backdrop = {0, 1, 2, 3, 7, 8, IGNORE_INDEX}
        for sample in samples[:40]:
            assert set(np.unique(sample.labels[sample.instances == 0])) <= backdrop
            for number in np.unique(sample.instances)[1:]:
                inside = set(np.unique(sample.labels[sample.instances == number]).tolist()) - {IGNORE_INDEX}
                pairs = ({10, 12}, {4, 5}, {4, 6})
                assert len(inside) <= 1 or inside in [*pairs], inside

    def test_target_is_paler_and_flatter(self):
        def colourfulness(domain):
            images = torch.stack([SyntheticStreets(domain)[i][0] for i in range(40)])
            return float((images.amax(1) - images.amin(1)).mean()), float(images.std(dim=(1, 2, 3)).mean())

        source, target = colourfulness("source"), colourfulness("target")
        assert target[0] < 0.6 * source[0]
        assert target[1] < 0.8 * source[1]

    def test_source_has_no_shift(self):
        off = (
            "desaturation",
            "palette",
            "haze",
            "contrast",
            "gamma",
            "cast",
            "noise",
            "blur",
            "shadow",
            "vignette",
        )
        assert all(getattr(SOURCE_SHIFT, name) == 0 for name in off)
        assert SOURCE_SHIFT.severity == (0, 0)


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"domain": "game"}, ValueError, "`domain`: expected one of 'source', 'target', got 'game'"),
            ({"split": "test"}, ValueError, "`split`: expected one of 'train', 'val', got 'test'"),
            ({"domain": None}, ValueError, "`domain`: expected one of 'source', 'target', got None"),
            ({"size": 64}, ValueError, r"`size`: expected \(height, width\), got 64"),
            ({"size": (64, 128, 3)}, ValueError, r"`size`: expected \(height, width\), got \(64, 128, 3\)"),
            ({"size": (15, 32)}, ValueError, r"`size\[0\]`: expected at least 16, got 15"),
            ({"size": (16, 31)}, ValueError, r"`size\[1\]`: expected at least 32, got 31"),
            ({"size": (64.0, 128)}, TypeError, r"`size\[0\]`: expected an int, got float"),
            ({"length": 0}, ValueError, "`length`: expected at least 1, got 0"),
            ({"length": 2.5}, TypeError, "`length`: expected an int, got float"),
            ({"seed": -1}, ValueError, "`seed`: expected at least 0, got -1"),
            ({"seed": True}, TypeError, "`seed`: expected an int, got bool"),
        ],
    )
    def test_arguments(self, arguments, error, message):
        with pytest.raises(error, match=message):
            SyntheticStreets(**arguments)

    def test_layout(self, tmp_path):
        with pytest.raises(ValueError, match="`layout`: expected one of 'cityscapes', 'gta5', got 'voc'"):
            SyntheticStreets(length=1).export(tmp_path / "out", "voc")
        assert not (tmp_path / "out").exists()


def as_ids(labels):
    """Oracle: Cityscapes ids by name, from torchvision's own table."""
    names = {"light": "traffic light", "sign": "traffic sign"}
    table = {entry.name: entry.id for entry in Cityscapes.classes}
    out = torch.zeros_like(labels)
    for c, name in enumerate(SyntheticStreets.classes):
        out[labels == c] = table[names.get(name, name)]
    return out


def decode(image) -> torch.Tensor:
    return torch.from_numpy(np.array(image).astype(np.int64))


class TestExport:
    def test_tables_agree_with_torchvision(self):
        ours = [tuple(label) for label in CITYSCAPES_LABELS[:34]]
        theirs = [(c.name, c.id, c.train_id, c.has_instances, c.color) for c in Cityscapes.classes[:34]]
        assert ours == theirs
        colours = {label.label_id: label.colour for label in CITYSCAPES_LABELS}
        assert SyntheticStreets.palette == tuple(colours[i] for i in _export.STREETS_TO_ID)

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_cityscapes(self, tmp_path, split):
        dataset = SyntheticStreets("target", split, size=(33, 66), length=3)
        root = dataset.export(str(tmp_path / "deep" / "root"))
        assert root == tmp_path / "deep" / "root"
        names = ["semantic", "instance", "color"]
        real = Cityscapes(root, split=split, target_type=names)
        assert len(real) == 3
        order = np.argsort(real.images)
        for index, place in enumerate(order):
            expected, labels = dataset[index]
            image, (semantic, instance, colour) = real[int(place)]
            assert torch.equal(decode(image).permute(2, 0, 1), (expected * 255).round().long())
            ids = as_ids(labels)
            assert semantic.mode == "L"
            assert torch.equal(decode(semantic), ids)
            objects = decode(instance)
            assert instance.mode.startswith("I")
            things = torch.isin(ids, torch.tensor([24, 25, 26, 33]))
            assert torch.equal(torch.where(things, objects // 1000, objects), ids)
            assert (objects[~things] < 34).all()
            assert colour.mode == "RGBA"
            table = torch.zeros(256, 3, dtype=torch.int64)
            table[:13] = torch.tensor(SyntheticStreets.palette)
            assert torch.equal(decode(colour)[..., :3], table[labels])

    def test_cityscapes_file_names(self, tmp_path):
        for domain in DOMAINS:
            for split in ("train", "val"):
                SyntheticStreets(domain, split, size=(16, 32), length=2).export(tmp_path)
        files = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
        expected = []
        for domain in DOMAINS:
            for split in ("train", "val"):
                for index in range(2):
                    stem = f"{split}/{domain}/{domain}_00000{index}_000000"
                    expected.append(f"leftImg8bit/{stem}_leftImg8bit.png")
                    for kind in ("color", "instanceIds", "labelIds", "labelTrainIds"):
                        expected.append(f"gtFine/{stem}_gtFine_{kind}.png")
        assert files == sorted(expected)
        assert not list(tmp_path.glob(".partial-*"))

    def test_train_ids(self, tmp_path):
        dataset = SyntheticStreets(size=(64, 128), length=2)
        dataset.export(tmp_path)
        table = {entry.id: entry.train_id for entry in Cityscapes.classes}
        for index in range(2):
            path = tmp_path / f"gtFine/train/source/source_00000{index}_000000_gtFine_labelTrainIds.png"
            ids = as_ids(dataset[index][1])
            expected = ids.clone().apply_(table.__getitem__)
            assert torch.equal(decode(Image.open(path)), expected)

    def test_instances_are_counted_from_zero_in_each_class(self):
        ids = np.array([[26, 26, 7, 24], [26, 33, 25, 24]], np.uint8)
        objects = np.array([[2, 5, 0, 3], [5, 7, 7, 9]], np.uint8)
        expected = [[26000, 26001, 7, 24000], [26001, 33000, 25000, 24001]]
        assert _export.instance_ids(ids, objects).tolist() == expected

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_gta5(self, tmp_path, split):
        dataset = SyntheticStreets("source", split, size=(40, 80), length=3)
        dataset.export(tmp_path, "gta5")
        files = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
        assert files == [f"{folder}/0000{i}.png" for folder in ("images", "labels") for i in (1, 2, 3)]
        for index in range(3):
            expected, labels = dataset[index]
            image = Image.open(tmp_path / f"images/{index + 1:05d}.png")
            assert image.mode == "RGB"
            assert torch.equal(decode(image).permute(2, 0, 1), (expected * 255).round().long())
            label = Image.open(tmp_path / f"labels/{index + 1:05d}.png")
            assert label.mode == "P"
            assert torch.equal(decode(label), as_ids(labels))
            colours = decode(label.convert("RGB"))
            for c, colour in enumerate(SyntheticStreets.palette):
                assert (colours[labels == c] == torch.tensor(colour)).all()
            assert (colours[labels == IGNORE_INDEX] == 0).all()

    def test_overwrites(self, tmp_path):
        SyntheticStreets(size=(16, 32), length=3, seed=1).export(tmp_path, "gta5")
        third = (tmp_path / "labels/00003.png").read_bytes()
        SyntheticStreets(size=(16, 32), length=2, seed=0).export(tmp_path, "gta5")
        expected = as_ids(SyntheticStreets(size=(16, 32))[1][1])
        assert torch.equal(decode(Image.open(tmp_path / "labels/00002.png")), expected)
        assert (tmp_path / "labels/00003.png").read_bytes() == third

    @pytest.mark.parametrize("layout", ["cityscapes", "gta5"])
    def test_interrupted(self, tmp_path, monkeypatch, layout):
        """Killed halfway through writing a file: whole files only, and no image without its labels."""
        save, calls = Image.Image.save, []

        def interrupted(self, target, *args, **kwargs):
            calls.append(target)
            save(self, target, *args, **kwargs)
            if len(calls) == 4:
                target.truncate(20)
                raise KeyboardInterrupt

        monkeypatch.setattr(Image.Image, "save", interrupted)
        dataset = SyntheticStreets(size=(16, 32), length=3)
        with pytest.raises(KeyboardInterrupt):
            dataset.export(tmp_path, layout)
        monkeypatch.undo()
        files = [p for p in tmp_path.rglob("*") if p.is_file()]
        assert len(files) == 3
        for path in files:
            Image.open(path).load()
        assert not list(tmp_path.glob(".partial-*"))
        images = [p for p in files if "images" in p.parts or "leftImg8bit" in p.parts]
        assert len(images) == (1 if layout == "gta5" else 0)
        dataset.export(tmp_path, layout)  # and it can simply be run again
        assert len(list(tmp_path.rglob("*.png"))) == (6 if layout == "gta5" else 15)

    @pytest.mark.parametrize("installed", [True, False])
    def test_progress(self, tmp_path, monkeypatch, capsys, installed):
        if installed:
            pytest.importorskip("tqdm")
        else:
            monkeypatch.setitem(sys.modules, "tqdm", None)
        SyntheticStreets(size=(16, 32), length=2).export(tmp_path, "gta5", progress=True)
        assert ("2/2" in capsys.readouterr().err) == installed
        assert len(list(tmp_path.rglob("*.png"))) == 4

    def test_light_import(self):
        """Importing the dataset pulls in neither torchvision nor kornia nor PIL."""
        code = (
            "import sys; from selftrain_seg.datasets import SyntheticStreets; SyntheticStreets()[0]\n"
            "print([m for m in ('torchvision', 'kornia', 'PIL') if m in sys.modules])"
        )
        there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert there.stdout.strip() == "[]"
