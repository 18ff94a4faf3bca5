"""GTA5, SYNTHIA, Cityscapes and BDD100K, read from small trees in their exact layouts."""

from __future__ import annotations

import hashlib
import io
import pickle
import shutil
import sys
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision import tv_tensors
from torchvision.transforms import v2

from selftrain_seg import datasets
from selftrain_seg.datasets import BDD100K, GTA5, SYNTHIA, BrokenFilesError, Cityscapes, LabelMap, SyntheticStreets
from tests.datasets import trees

KINDS = {
    "gta5": (GTA5, trees.gta5, "images/00002.png", "labels/00002.png", "00002"),
    "synthia": (SYNTHIA, trees.synthia, "RGB/0000001.png", "GT/LABELS/0000001.png", "0000001"),
    "cityscapes": (
        Cityscapes,
        trees.cityscapes,
        "leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png",
        "gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png",
        "ulm/ulm_000000_000019",
    ),
    "bdd100k": (
        BDD100K,
        trees.bdd100k,
        "images/10k/train/00000001-00000000.jpg",
        "labels/sem_seg/masks/train/00000001-00000000.png",
        "00000001-00000000",
    ),
}
PRESETS = {"gta5": "cityscapes", "synthia": "synthia", "cityscapes": "cityscapes", "bdd100k": "bdd100k"}
LABEL_FOLDERS = {"gta5": "labels", "synthia": "GT", "cityscapes": "gtFine", "bdd100k": "labels"}

kinds = pytest.mark.parametrize("kind", KINDS)

# the first names of VOC's shape that draw_labelled(106, seed=0) takes; other draws would break published runs
PINNED = ["2007_000189", "2007_000377", "2007_000396", "2007_000428"]


class Tree:
    """A tree on disk, what is in it, and where the files of the one in the middle lie."""

    def __init__(self, kind, root, **options):
        self.kind, self.root = kind, root
        self.make, write, image, label, self.name = KINDS[kind]
        self.ids = write(root, **options)
        self.image, self.label = root / image, root / label

    def open(self, **options):
        return self.make(self.root, **options)

    def expected(self, name):
        table = dict(getattr(LabelMap, PRESETS[self.kind])().ids)
        return torch.tensor([[table[int(value)] for value in row] for row in self.ids[name]])


@pytest.fixture
def tree(tmp_path, kind):
    return Tree(kind, tmp_path)


def pixels(path):
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)


class TestRead:
    @kinds
    def test_samples(self, tree):
        dataset = tree.open()
        assert list(dataset.names) == sorted(tree.ids)
        assert len(dataset) == len(tree.ids)
        for index, name in enumerate(dataset.names):
            image, labels = dataset[index]
            assert type(image) is tv_tensors.Image
            assert type(labels) is tv_tensors.Mask
            assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, *trees.SIZE))
            assert (labels.dtype, tuple(labels.shape)) == (torch.int64, trees.SIZE)
            assert torch.equal(labels, tree.expected(name))
        place = dataset.names.index(tree.name)
        assert torch.equal(dataset[place][0], pixels(tree.image))
        assert torch.equal(dataset[place - len(dataset)][1], dataset[place][1])
        dataset.verify()

    @kinds
    def test_facts_come_from_the_label_map(self, tree):
        dataset = tree.open()
        label_map = getattr(LabelMap, PRESETS[tree.kind])()
        assert dataset.label_map == label_map
        assert (dataset.num_classes, dataset.ignore_index) == (19, 255)
        assert dataset.classes == label_map.classes
        assert dataset.palette == label_map.palette
        assert repr(dataset) == f"{type(dataset).__name__}({str(tree.root)!r}, {len(dataset)} samples)"
        one = LabelMap(dict.fromkeys(range(-1, 256), 0), ["all"], [(0, 0, 0)], ignore_index=-1)
        other = tree.open(label_map=one)
        assert (other.num_classes, other.ignore_index) == (1, -1)
        assert set(other[0][1].unique().tolist()) == {0}

    @kinds
    def test_without_labels(self, tree):
        shutil.rmtree(tree.root / LABEL_FOLDERS[tree.kind])
        dataset = tree.open(labels=False)
        assert list(dataset.names) == sorted(tree.ids)
        for index, name in enumerate(dataset.names):
            image, found = dataset[index]
            assert type(image) is tv_tensors.Image
            assert found == name
        dataset.verify()
        with pytest.raises(ValueError, match="`labels`: expected a data set with labels, got one with labels=False"):
            dataset.masks()

    @kinds
    def test_labels_of_a_function(self, tree):
        """Pseudo-labels by name, in place of the files; they are training classes already."""
        shutil.rmtree(tree.root / LABEL_FOLDERS[tree.kind])
        kept = {name: torch.randint(0, 19, trees.SIZE, dtype=torch.uint8) for name in tree.ids}
        dataset = tree.open(labels=kept.__getitem__, transforms=v2.RandomHorizontalFlip(1.0))
        for index, name in enumerate(dataset.names):
            _, labels = dataset[index]
            assert type(labels) is tv_tensors.Mask
            assert labels.dtype == torch.int64
            assert torch.equal(labels, kept[name].long().flip(1))
            assert torch.equal(dataset.masks()[index], kept[name].long())
        dataset.verify()

    @kinds
    def test_function_gives_something_else(self, tree):
        for wrong, error, message in (
            (torch.zeros(trees.SIZE), TypeError, "expected an integer dtype, got torch.float32"),
            (torch.zeros(1, *trees.SIZE, dtype=torch.int64), ValueError, r"expected \(H, W\), got \(1, 6, 10\)"),
            (torch.zeros(6, 9, dtype=torch.int64), ValueError, r"expected \(H, W\) = \(6, 10\) as in .*, got \(6, 9\)"),
        ):
            dataset = tree.open(labels=lambda name, wrong=wrong: wrong)
            with pytest.raises(error, match=message):
                dataset[0]
            with pytest.raises(BrokenFilesError, match=message):
                dataset.verify()
        with pytest.raises(BrokenFilesError, match=rf"`labels\('{dataset.names[0]}'\)`: KeyError"):
            tree.open(labels={}.__getitem__).verify()

    @kinds
    def test_masks(self, tree):
        dataset = tree.open(transforms=v2.RandomCrop(2))
        tree.image.unlink()  # nobody looks at the images
        masks = dataset.masks()
        assert len(masks) == len(dataset)
        for index, name in enumerate(dataset.names):
            assert type(masks[index]) is torch.Tensor
            assert torch.equal(masks[index], tree.expected(name))
        batches = DataLoader(masks, batch_size=None, num_workers=2, multiprocessing_context=get_context("fork"))
        assert all(torch.equal(a, masks[i]) for i, a in enumerate(batches))
        with pytest.raises(IndexError):
            masks[len(dataset)]

    @kinds
    def test_index(self, tree):
        dataset = tree.open()
        for index in (len(dataset), -len(dataset) - 1):
            with pytest.raises(IndexError, match="`index`: expected a value in"):
                dataset[index]

    @kinds
    def test_odd_paths_and_files_that_are_none(self, tmp_path, kind):
        root = tmp_path / "[a] *?{b} ß 日本\n"
        tree = Tree(kind, root)
        for path in (tree.image, tree.label):  # what Mac OS and editors leave behind
            (path.parent / f"._{path.name}").write_bytes(b"x")
            (path.parent / "notes.txt").write_text("x")
            (path.parent / f"{path.name}.bak").write_text("x")
        dataset = tree.open()
        assert list(dataset.names) == sorted(tree.ids)
        dataset.verify()

    @kinds
    def test_root_may_be_text(self, tree):
        assert tree.make(str(tree.root)).names == tree.open().names

    @kinds
    def test_order_does_not_depend_on_the_folder(self, tree, monkeypatch):
        names = tree.open().names
        scandir = datasets._files.os.scandir

        class Reversed(list):
            def __enter__(self):
                return self

            def __exit__(self, *error):
                return None

        monkeypatch.setattr(datasets._files.os, "scandir", lambda path: Reversed([*scandir(path)][::-1]))
        assert tree.open().names == names


def joint(size=(4, 6)):
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.5, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
        ]
    )


class TestLoaders:
    @kinds
    def test_transforms_are_joint(self, tree):
        dataset, plain = tree.open(transforms=v2.RandomHorizontalFlip(1.0)), tree.open()
        for (image, labels), (image_0, labels_0) in zip(dataset, plain, strict=True):
            assert torch.equal(image, image_0.flip(2))
            assert torch.equal(labels, labels_0.flip(1))

    @kinds
    @pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
    def test_workers(self, tree, method):
        if method == "spawn" and tree.kind != "gta5":
            pytest.skip("one is enough: starting an interpreter takes seconds")
        dataset = tree.open(transforms=joint())
        loader = DataLoader(dataset, batch_size=2, num_workers=2, multiprocessing_context=get_context(method))
        seen = 0
        for images, labels in loader:
            assert images.dtype == torch.float32
            assert labels.dtype == torch.int64
            assert tuple(images.shape[1:]) == (3, 4, 6)
            assert tuple(labels.shape[1:]) == (4, 6)
            assert ((labels < 19) | (labels == 255)).all()
            seen += len(images)
        assert seen == len(dataset)

    @kinds
    def test_names_in_batches(self, tree):
        dataset = tree.open(labels=False, transforms=joint())
        context = get_context("fork")
        names = []
        for images, found in DataLoader(dataset, batch_size=2, num_workers=2, multiprocessing_context=context):
            assert tuple(images.shape[1:]) == (3, 4, 6)
            names.extend(found)
        assert tuple(names) == dataset.names

    @kinds
    def test_pickle(self, tree):
        dataset = pickle.loads(pickle.dumps(tree.open()))  # noqa: S301
        assert torch.equal(dataset[1][1], tree.open()[1][1])

    def test_workers_name_the_file(self, tmp_path):
        tree = Tree("cityscapes", tmp_path)
        dataset = tree.open()
        trees.truncate(tree.label)
        loader = DataLoader(dataset, batch_size=4, num_workers=1, multiprocessing_context=get_context("fork"))
        batches = iter(loader)
        with pytest.raises(ValueError, match=tree.label.name):
            next(batches)
        assert next(batches, None) is None  # ends the worker


def one_channel(tree, value, bits=8):
    ids = np.full(trees.SIZE, 3)
    ids[2, 3:5] = value
    trees.save(tree.label, trees.png16(ids) if bits == 16 else ids.astype(np.uint8))


class TestBroken:
    @kinds
    @pytest.mark.parametrize("which", ["image", "label"])
    def test_truncated(self, tree, which):
        dataset, path = tree.open(), getattr(tree, which)
        trees.truncate(path)
        with pytest.raises(ValueError, match=f"{path.name}: broken"):
            dataset[dataset.names.index(tree.name)]

    @kinds
    @pytest.mark.parametrize("which", ["image", "label"])
    @pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"something else" * 9])
    def test_no_image(self, tree, which, content):
        dataset, path = tree.open(), getattr(tree, which)
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path.name}: (empty|broken|expected a PNG file)"):
            dataset[dataset.names.index(tree.name)]

    @kinds
    @pytest.mark.parametrize("which", ["image", "label"])
    def test_every_truncation(self, tree, which):
        dataset, path = tree.open(), getattr(tree, which)
        data = path.read_bytes()
        for length in range(0, len(data) - 2, 3):
            path.write_bytes(data[:length])
            with pytest.raises(ValueError, match=f"{path.name}: (empty|broken|expected a PNG)"):
                dataset[dataset.names.index(tree.name)]

    @kinds
    @pytest.mark.parametrize("which", ["image", "label"])
    def test_every_flipped_bit(self, tree, which):
        """An error that names the file, or (PNG) no difference; torchvision's decoder crashes on some of these."""
        dataset, path = tree.open(), getattr(tree, which)
        place, data = dataset.names.index(tree.name), path.read_bytes()
        expected = dataset[place]
        failures = 0
        for where in range(0, len(data), 3):
            damaged = bytearray(data)
            damaged[where] ^= 1 << where % 8
            path.write_bytes(damaged)
            try:
                found = dataset[place]
            except ValueError as error:
                assert path.name in str(error)  # noqa: PT017
                failures += 1
            else:
                if path.suffix == ".png":
                    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert failures > 0

    @kinds
    @pytest.mark.parametrize("which", ["image", "label"])
    def test_vanished(self, tree, which):
        dataset, path = tree.open(), getattr(tree, which)
        path.unlink()
        with pytest.raises(FileNotFoundError, match=path.name):
            dataset[dataset.names.index(tree.name)]

    @kinds
    def test_missing_partner(self, tree):
        tree.label.unlink()
        with pytest.raises(FileNotFoundError, match=rf"`root`: 1 of \d files are missing: .*{tree.label.name}"):
            tree.open()
        assert len(tree.open(labels=False)) == len(tree.ids)

    @kinds
    def test_labels_without_an_image_are_left_alone(self, tree):
        tree.image.unlink()
        dataset = tree.open()
        assert list(dataset.names) == sorted(set(tree.ids) - {tree.name})
        dataset.verify()

    @kinds
    def test_unknown_id(self, tree):
        wrong = 200
        one_channel(tree, wrong)
        dataset = tree.open()
        with pytest.raises(
            ValueError,
            match=rf"{tree.label.name}: `labels`: expected ids of .*, got {wrong} \(2 pixels, the first at \(2, 3",
        ):
            dataset[dataset.names.index(tree.name)]
        lenient = getattr(LabelMap, PRESETS[tree.kind])(unknown="ignore")
        labels = tree.open(label_map=lenient)[dataset.names.index(tree.name)][1]
        assert labels[2, 3:5].tolist() == [255, 255]

    @kinds
    def test_sizes(self, tree):
        one_channel(tree, 4)
        with Image.open(tree.label) as image:
            image.crop((0, 0, 10, 5)).save(tree.label)
        dataset = tree.open()
        message = rf"{tree.label.name}: expected \(H, W\) = \(6, 10\) as in .*{tree.image.name}, got \(5, 10\)"
        with pytest.raises(ValueError, match=message):
            dataset[dataset.names.index(tree.name)]

    @kinds
    def test_labels_that_are_no_png(self, tree):
        data = io.BytesIO()
        Image.fromarray(np.zeros(trees.SIZE, np.uint8)).save(data, "JPEG")
        tree.label.write_bytes(data.getvalue())
        dataset = tree.open()
        with pytest.raises(ValueError, match=f"{tree.label.name}: expected a PNG file"):
            dataset[dataset.names.index(tree.name)]

    @kinds
    def test_folders(self, tree):
        shutil.rmtree(tree.root / LABEL_FOLDERS[tree.kind])
        with pytest.raises(FileNotFoundError, match=r"`root`: expected a folder .*, found none"):
            tree.open()
        for path in [p for p in tree.root.rglob("*") if p.is_file()]:
            path.unlink()
        with pytest.raises(FileNotFoundError, match=r"`root`: expected images, .* in .*, found none"):
            tree.open(labels=False)
        with pytest.raises(FileNotFoundError, match=r"`root`: expected a folder .*nowhere.*, found none"):
            tree.make(tree.root / "nowhere")
        (tree.root / "file").write_text("")
        with pytest.raises(FileNotFoundError, match=r"`root`: expected a folder .*, found none"):
            tree.make(tree.root / "file")

    @kinds
    def test_arguments(self, tree):
        with pytest.raises(TypeError, match="`labels`: expected a bool or a function of the name, got NoneType"):
            tree.open(labels=None)
        with pytest.raises(TypeError, match="`label_map`: expected a LabelMap, got dict"):
            tree.open(label_map={})


class TestVerify:
    @kinds
    def test_all_at_once(self, tree):
        dataset = tree.open()
        first, *_, last = dataset.names
        trees.truncate(tree.image)
        trees.truncate(tree.label)
        label = dataset._label_path(last)
        trees.save(label, np.full((3, 10), 222, np.uint8))
        dataset._image_path(first).unlink()
        with pytest.raises(BrokenFilesError) as caught:
            dataset.verify()
        error = caught.value
        places = sorted({0, dataset.names.index(tree.name), len(dataset) - 1})
        assert error.indices == tuple(places)
        expected = [dataset._image_path(first).name, tree.image.name, tree.label.name, label.name]
        assert all(any(name in problem for problem in error.problems) for name in expected)
        assert len(error.problems) == 4
        assert str(error).splitlines()[0] == f"4 problems in {len(places)} samples:"
        assert all(name in str(error) for name in expected)
        rest = [index for index in range(len(dataset)) if index not in error.indices]
        assert all(len(sample) == 2 for sample in Subset(dataset, rest))

    def test_sizes_only(self, tmp_path):
        tree = Tree("gta5", tmp_path)
        trees.save(tree.label, np.full((3, 10), 7, np.uint8))
        with pytest.raises(BrokenFilesError, match=r"1 problem in 1 sample:\n.*00002.png: expected \(H, W\)"):
            tree.open().verify()

    def test_long_lists_are_cut(self):
        error = BrokenFilesError([(index % 7, f"file {index}") for index in range(50)])
        lines = str(error).splitlines()
        assert lines[0] == "50 problems in 7 samples:"
        assert lines[1:21] == [f"file {index}" for index in range(20)]
        assert lines[21:] == ["... and 30 more"]
        assert len(error.problems) == 50
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301
        assert (str(copy), copy.indices, copy.problems) == (str(error), error.indices, error.problems)
        assert isinstance(error, ValueError)

    @pytest.mark.parametrize("installed", [True, False])
    def test_progress(self, tmp_path, monkeypatch, capsys, installed):
        if installed:
            pytest.importorskip("tqdm")
        else:
            monkeypatch.setitem(sys.modules, "tqdm", None)
        Tree("gta5", tmp_path).open().verify(progress=True)
        assert ("3/3" in capsys.readouterr().err) == installed


class TestDraw:
    @pytest.fixture
    def dataset(self, tmp_path):
        trees.gta5(tmp_path, 1)
        dataset = GTA5(tmp_path)
        dataset.names = tuple(f"2007_{number:06d}" for number in range(10582))
        return dataset

    @pytest.mark.parametrize(("one_in", "count"), [(106, 100), (50, 212), (20, 529), (8, 1323), (1, 10582)])
    def test_counts_of_the_literature(self, dataset, one_in, count):
        labelled, others = dataset.draw_labelled(one_in)
        assert len(labelled) == count
        assert labelled == sorted(labelled)
        assert others == sorted(others)
        assert sorted(labelled + others) == list(range(10582))

    def test_oracle(self, dataset):
        for seed in (0, 3):
            ranked = sorted(dataset.names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).hexdigest())
            labelled, _ = dataset.draw_labelled(50, seed=seed)
            assert {dataset.names[index] for index in labelled} == set(ranked[:212])

    def test_the_draw_is_pinned(self, dataset):
        assert [dataset.names[i] for i in dataset.draw_labelled(106)[0][:4]] == PINNED

    def test_nested_and_seeded(self, dataset):
        small, middle, large = (set(dataset.draw_labelled(n, seed=1)[0]) for n in (106, 20, 8))
        assert small < middle < large
        assert set(dataset.draw_labelled(8, seed=2)[0]) != large
        dataset.names = dataset.names[::-1]  # depends on the names, not on their order
        assert {10581 - index for index in dataset.draw_labelled(8, seed=1)[0]} == large

    def test_half_is_rounded_up(self, dataset):
        dataset.names = dataset.names[:5]
        assert [len(dataset.draw_labelled(n)[0]) for n in (1, 2, 3, 4, 5)] == [5, 3, 2, 1, 1]

    def test_errors(self, dataset):
        for arguments, error, message in (
            ((0, 0), ValueError, "`one_in`: expected at least 1, got 0"),
            ((2.0, 0), TypeError, "`one_in`: expected an int, got float"),
            ((8, -1), ValueError, "`seed`: expected at least 0, got -1"),
            ((8, None), TypeError, "`seed`: expected an int, got NoneType"),
            ((10583, 0), ValueError, "`one_in`: expected at most 10582 samples, got 10583"),
        ):
            with pytest.raises(error, match=message):
                dataset.draw_labelled(arguments[0], seed=arguments[1])


class TestGTA5:
    def test_colours(self, tmp_path):
        """RGB labels: every colour means its trained class; of black, the ignored 0."""
        tree = Tree("gta5", tmp_path)
        entries = list(datasets._cityscapes_ids.CITYSCAPES_LABELS)
        colours = [e.colour for e in entries] + [(20, 20, 20)]
        expected = [{e.colour: e.train_id for e in entries if e.train_id < 255}.get(c, 255) for c in colours]
        row = np.array(colours, np.uint8)[None].repeat(2, 0)
        for pixels_ in (row, np.concatenate((row, np.full((*row.shape[:2], 1), 255, np.uint8)), 2)):
            trees.save(tree.image, np.zeros(row.shape, np.uint8))
            trees.save(tree.label, pixels_)
            assert tree.open()[1][1].tolist() == [expected] * 2

    def test_unknown_colour(self, tmp_path):
        tree = Tree("gta5", tmp_path)
        wrong = np.zeros((*trees.SIZE, 3), np.uint8)
        wrong[1, 1:4] = (1, 2, 3)
        trees.save(tree.label, wrong)
        message = r"00002.png: expected colours of the label map, got \(1, 2, 3\) in 3 pixels, the first at row 1, col"
        with pytest.raises(ValueError, match=message):
            tree.open()[1]

    @pytest.mark.parametrize("bits", [1, 2, 4])
    def test_short_palettes(self, tmp_path, bits):
        """Optimised files keep few colours in few bits."""
        tree = Tree("gta5", tmp_path)
        ids = trees.rng(bits).integers(0, 2**bits, trees.SIZE, dtype=np.uint8)
        trees.save(tree.label, ids, np.zeros((2**bits, 3)), bits=bits)
        assert tree.label.read_bytes()[24] == bits
        tree.ids["00002"] = ids
        assert torch.equal(tree.open()[1][1], tree.expected("00002"))

    def test_one_bit_grey(self, tmp_path):
        tree = Tree("gta5", tmp_path)
        ids = trees.rng().integers(0, 2, trees.SIZE).astype(bool)
        trees.save(tree.label, ids)
        assert (tree.open()[1][1] == 255).all()

    def test_16_bit_colours_are_refused(self, tmp_path):
        tree = Tree("gta5", tmp_path)
        trees.save(tree.label, trees.png16(np.full((*trees.SIZE, 3), (0, 0, 1))))
        with pytest.raises(
            ValueError, match=r"00002.png: expected one channel of class ids, got 3 channels of torch.u"
        ):
            tree.open()[1]


class TestSYNTHIA:
    def test_16_bits_are_read_whole(self, tmp_path):
        """Ids beyond 8 bits must not be taken modulo 256 or by their high byte."""
        tree = Tree("synthia", tmp_path)
        objects = trees.rng().integers(0, 65536, trees.SIZE)
        ids = np.full(trees.SIZE, 3)
        ids[0, 0] = 3 + 256
        trees.save(tree.label, trees.png16(np.stack((ids, objects, objects), 2)))
        with pytest.raises(ValueError, match="got 259"):
            tree.open()[1]

    @pytest.mark.parametrize("form", ["rgb16", "rgba16", "grey16", "grey8", "rgb8", "palette"])
    def test_forms_in_circulation(self, tmp_path, form):
        tree = Tree("synthia", tmp_path)
        ids = tree.ids[tree.name]
        other = trees.rng(4).integers(0, 255, trees.SIZE)
        content = {
            "rgb16": lambda: trees.png16(np.stack((ids, other, other), 2)),
            "rgba16": lambda: trees.png16(np.stack((ids, other, other, other), 2)),
            "grey16": lambda: trees.png16(ids),
            "grey8": lambda: ids.astype(np.uint8),
            "rgb8": lambda: np.stack((ids, other, other), 2).astype(np.uint8),
            "palette": lambda: ids.astype(np.uint8),
        }[form]()
        trees.save(tree.label, content, np.zeros((256, 3)) if form == "palette" else None)
        assert torch.equal(tree.open()[1][1], tree.expected(tree.name))

    def test_dense_classes(self, tmp_path):
        tree = Tree("synthia", tmp_path)
        wide, dense = tree.open(), tree.open(label_map=LabelMap.synthia(16))
        for (_, a), (_, b) in zip(wide, dense, strict=True):
            names = [wide.classes[c] if c < 255 else None for c in a.flatten().tolist()]
            assert names == [dense.classes[c] if c < 255 else None for c in b.flatten().tolist()]


class TestCityscapes:
    def test_splits_and_modes(self, tmp_path):
        for split, mode in (("train", "gtFine"), ("val", "gtFine"), ("test", "gtFine"), ("train_extra", "gtCoarse")):
            trees.cityscapes(tmp_path, split, mode, cities=(f"{split}stadt",), count=1)
        trees.cityscapes(tmp_path, "train", "gtCoarse", cities=("trainstadt",), count=1)
        for split in ("train", "val", "test"):
            dataset = Cityscapes(tmp_path, split)
            assert dataset.names == (f"{split}stadt/{split}stadt_000000_000019",)
            dataset.verify()
        for split in ("train", "train_extra"):
            dataset = Cityscapes(tmp_path, split, mode="coarse")
            assert "gtCoarse" in str(dataset._label_path(dataset.names[0]))
            dataset.verify()
        assert (
            Cityscapes(tmp_path, "train_extra", labels=False)[0][1] == "train_extrastadt/train_extrastadt_000000_000019"
        )

    def test_cities_are_sorted(self, tmp_path):
        trees.cityscapes(tmp_path)
        (tmp_path / "leftImg8bit/train/.hidden").mkdir()
        assert [name.split("/")[0] for name in Cityscapes(tmp_path).names] == ["aachen"] * 2 + ["ulm"] * 2
        trees.cityscapes(tmp_path, cities=("ulm-2",))
        names = Cityscapes(tmp_path).names
        assert list(names) == sorted(names)  # as text: "ulm-2/" before "ulm/"

    def test_arguments(self, tmp_path):
        trees.cityscapes(tmp_path, "test")
        for arguments, message in (
            ({"split": "trainval"}, "`split`: expected one of 'train', 'val', 'test', 'train_extra', got 'trainval'"),
            ({"mode": "gtFine"}, "`mode`: expected one of 'fine', 'coarse', got 'gtFine'"),
            ({"split": "train_extra"}, "`mode`: expected a mode with labels for the split 'train_extra', got 'fine'"),
            (
                {"split": "test", "mode": "coarse"},
                "`mode`: expected a mode with labels for the split 'test', got 'coarse'",
            ),
        ):
            with pytest.raises(ValueError, match=message):
                Cityscapes(tmp_path, **arguments)
        assert len(Cityscapes(tmp_path, "test", mode="coarse", labels=False)) == 4

    def test_several_channels(self, tmp_path):
        tree = Tree("cityscapes", tmp_path)
        trees.save(tree.label, np.full((*trees.SIZE, 4), (7, 8, 9, 255), np.uint8))
        message = r"labelIds.png: expected colours of the label map, got \(7, 8, 9\) in 60 pixels"
        with pytest.raises(ValueError, match=message):
            tree.open()[2]


class TestBDD100K:
    def test_splits(self, tmp_path):
        trees.bdd100k(tmp_path, "val", 2)
        trees.bdd100k(tmp_path, "test", 1, masks=False)
        assert len(BDD100K(tmp_path, "val")) == 2
        assert len(BDD100K(tmp_path, "test", labels=False)) == 1
        assert len(BDD100K(tmp_path, "test", labels=lambda name: torch.zeros(trees.SIZE, dtype=torch.int64))) == 1
        with pytest.raises(ValueError, match="`labels`: expected False or a function for the split 'test'"):
            BDD100K(tmp_path, "test")
        with pytest.raises(ValueError, match="`split`: expected one of 'train', 'val', 'test', got 'extra'"):
            BDD100K(tmp_path, "extra")


class TestStreetsRoundTrip:
    @pytest.mark.parametrize("split", ["train", "val"])
    @pytest.mark.parametrize("layout", ["cityscapes", "gta5"])
    def test_to_the_bit(self, tmp_path, split, layout):
        streets = SyntheticStreets("target", split, size=(32, 64), length=12, seed=2)
        streets.export(tmp_path, layout)
        if layout == "gta5":
            back = GTA5(tmp_path, label_map=LabelMap.streets())
        else:
            back = Cityscapes(tmp_path, split, label_map=LabelMap.streets())
            assert back.names == streets.names
        assert (back.classes, back.palette, back.ignore_index) == (streets.classes, streets.palette, 255)
        seen = set()
        for (image, labels), (image_0, labels_0) in zip(back, streets, strict=True):
            assert torch.equal(image, (image_0 * 255).round().to(torch.uint8))
            assert torch.equal(labels, labels_0)
            seen.update(labels.unique().tolist())
        assert seen == {*range(13), 255}
        back.verify()

    def test_as_19_classes(self, tmp_path):
        streets = SyntheticStreets("target", size=(32, 64), length=3)
        streets.export(tmp_path)
        names = {"light": "traffic light", "sign": "traffic sign"}
        back = Cityscapes(tmp_path)
        table = [back.classes.index(names.get(name, name)) for name in streets.classes]
        for (_, labels), (_, labels_0) in zip(back, streets, strict=True):
            expected = labels_0.clone().apply_(lambda c: 255 if c == 255 else table[c])
            assert torch.equal(labels, expected)

    def test_colours(self, tmp_path):
        """What export draws in gtFine_color, read as GTA5's RGB labels, is the same again."""
        streets = SyntheticStreets(size=(32, 64), length=1)
        streets.export(tmp_path)
        (tmp_path / "images").mkdir()
        (tmp_path / "labels").mkdir()
        (colours,) = tmp_path.rglob("*_gtFine_color.png")
        (image,) = tmp_path.rglob("*_leftImg8bit.png")
        shutil.copy(colours, tmp_path / "labels/1.png")
        shutil.copy(image, tmp_path / "images/1.png")
        assert torch.equal(GTA5(tmp_path, label_map=LabelMap.streets())[0][1], streets[0][1])


def test_pseudo_labels_of_a_store(tmp_path):
    """The round of a store serves as the labels of the next one."""
    store = pytest.importorskip("selftrain_seg.store")
    from selftrain_seg import PseudoLabels

    trees.cityscapes(tmp_path)
    target = Cityscapes(tmp_path, labels=False)
    labels = {name: torch.randint(0, 19, (1, *trees.SIZE)) for name in target.names}
    with store.PseudoLabelStore(tmp_path / "store", 19).write(0, target.names) as writer:
        for images, names in DataLoader(target):
            writer.add(names, PseudoLabels(labels[names[0]], torch.ones(1, *images.shape[-2:])))
        stored = writer.finish()
    dataset = Cityscapes(tmp_path, labels=stored.labels)
    for index, name in enumerate(dataset.names):
        assert torch.equal(dataset[index][1], labels[name][0])
    dataset.verify()


def test_class_index_reads_masks(tmp_path):
    from selftrain_seg.mining import ClassIndex

    tree = Tree("gta5", tmp_path)
    dataset = tree.open()
    cache = tmp_path / "index"
    index = ClassIndex.from_masks(DataLoader(dataset.masks(), batch_size=None), dataset.num_classes, cache=cache)
    for row, name in zip(index.counts, dataset.names, strict=True):
        expected = tree.expected(name)
        assert row.tolist() == [int((expected == c).sum()) for c in range(19)]
    assert len(ClassIndex.from_masks(dataset.masks(), 19, cache=cache)) == 3
