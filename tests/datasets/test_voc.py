"""VOC 2012 with and without the labels of SBD."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import Subset
from torchvision import tv_tensors

from selftrain_seg.datasets import BrokenFilesError, LabelMap, VOCSegmentation
from tests.datasets import trees


def names(*numbers):
    return tuple(f"2007_{number:06d}" for number in numbers)


def write_sbd(root, ids):
    io = pytest.importorskip("scipy.io")
    (root / "cls").mkdir(parents=True)
    for name, labels in ids.items():
        boundaries = np.empty((20, 1), object)
        boundaries[:] = [[np.zeros((1, 1), np.uint8)]] * 20
        content = {"Segmentation": labels, "Boundaries": boundaries, "CategoriesPresent": np.array([[1]])}
        io.savemat(root / "cls" / f"{name}.mat", {"GTcls": content}, do_compression=True)


@pytest.fixture
def ids(tmp_path):
    return trees.voc(tmp_path / "VOCdevkit" / "VOC2012")


@pytest.fixture
def root(tmp_path, ids):
    return tmp_path / "VOCdevkit" / "VOC2012"


def check(dataset, ids):
    for name, (image, labels) in zip(dataset.names, dataset, strict=True):
        assert type(image) is tv_tensors.Image
        assert type(labels) is tv_tensors.Mask
        assert (image.dtype, labels.dtype) == (torch.uint8, torch.int64)
        assert labels.tolist() == ids[name].tolist()
        assert image.shape[1:] == labels.shape


class TestSplits:
    @pytest.mark.parametrize(
        ("split", "expected"),
        [
            ("train", names(0, 1, 2)),
            ("val", names(3, 4)),
            ("trainval", names(0, 1, 2, 3, 4)),
            ("train_aug", names(0, 1, 2, 5, 6, 7, 8)),
        ],
    )
    @pytest.mark.parametrize("place", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
    def test_own(self, tmp_path, ids, split, expected, place):
        dataset = VOCSegmentation(tmp_path / place, split)
        assert dataset.names == expected
        assert dataset.root == tmp_path / "VOCdevkit" / "VOC2012"
        assert dataset.label_map == LabelMap.voc()
        assert (dataset.num_classes, len(dataset)) == (21, len(expected))
        check(dataset, ids)
        dataset.verify()

    @pytest.mark.parametrize("file", ["train_aug", "trainaug"])
    def test_list_of_train_aug(self, root, ids, file):
        (root / "ImageSets" / "Segmentation" / f"{file}.txt").write_text("2007_000008\n2007_000005\n")
        assert VOCSegmentation(root, "train_aug").names == names(5, 8)

    @pytest.mark.parametrize(
        "text",
        [
            "2007_000006\n2007_000001\n",
            "/JPEGImages/2007_000006.jpg /SegmentationClassAug/2007_000006.png\r\n\n/JPEGImages/2007_000001.jpg x\n",
            "JPEGImages/2007_000001.jpg\tSegmentationClass/2007_000001.png\n  2007_000006",
        ],
    )
    def test_split_files(self, root, ids, tmp_path, text):
        path = tmp_path / "1 [8] ß.txt"
        path.write_text(text)
        for split in (path, str(path)):
            dataset = VOCSegmentation(root, split)
            assert dataset.names == names(1, 6)
            check(dataset, ids)

    def test_draw(self, root):
        everything = VOCSegmentation(root, "train_aug")
        labelled, others = everything.draw_labelled(3, seed=1)
        assert (len(labelled), len(others)) == (2, 5)
        unlabelled = VOCSegmentation(root, "train_aug", labels=False)
        found = {name for _, name in Subset(unlabelled, others)}
        assert found == set(everything.names) - {everything.names[index] for index in labelled}

    def test_without_labels(self, root):
        folder = root / "ImageSets" / "Segmentation"
        (folder / "train_aug.txt").write_text("2007_000007\n")
        shutil.rmtree(root / "SegmentationClass")
        shutil.rmtree(root / "SegmentationClassAug")
        for split, expected in (("train_aug", names(7)), ("val", names(3, 4)), (folder / "val.txt", names(3, 4))):
            dataset = VOCSegmentation(root, split, labels=False)
            assert tuple(name for _, name in dataset) == expected
            dataset.verify()

    def test_labels_of_a_function(self, root, ids):
        shutil.rmtree(root / "SegmentationClass")
        dataset = VOCSegmentation(root, "val", labels=lambda name: torch.full(ids[name].shape, 20))
        assert all((labels == 20).all() for _, labels in dataset)


class TestSources:
    def test_own_labels_first_or_last(self, root, ids):
        """VOC's splits take VOC's labels, the others the augmented ones; either fills in for the other."""
        for name in names(0, 3):
            trees.save(root / "SegmentationClassAug" / f"{name}.png", np.zeros_like(ids[name]))
        assert VOCSegmentation(root, "train")[0][1].tolist() == ids["2007_000000"].tolist()
        assert (VOCSegmentation(root, "train_aug")[0][1] == 0).all()
        shutil.rmtree(root / "SegmentationClass")
        assert (VOCSegmentation(root, "train")[0][1] == 0).all()

    def test_sbd(self, tmp_path):
        root, sbd = tmp_path / "VOC2012", tmp_path / "SBD [1]" / "dataset"
        ids = trees.voc(root, augmented=False)
        extra = {name: labels % 21 for name, labels in ids.items() if name in names(5, 6, 7, 8)}
        write_sbd(sbd, {**extra, "2007_000000": np.zeros_like(ids["2007_000000"]), "2007_000003": ids["2007_000003"]})
        dataset = VOCSegmentation(tmp_path, "train_aug", sbd=sbd)
        assert dataset.names == names(0, 1, 2, 5, 6, 7, 8)
        check(dataset, {**ids, **extra})  # VOC's own labels of 0, not SBD's
        assert [labels.dtype for labels in dataset.masks()] == [torch.int64] * 7
        dataset.verify()

    def test_sbd_broken(self, tmp_path, monkeypatch):
        root, sbd = tmp_path / "VOC2012", tmp_path / "dataset"
        ids = trees.voc(root, augmented=False)
        write_sbd(sbd, {"2007_000005": ids["2007_000005"] % 21, "2007_000006": ids["2007_000006"].astype(np.int16)})
        (sbd / "cls" / "2007_000007.mat").write_bytes(b"nothing of the kind" * 20)
        (sbd / "cls" / "2007_000008.mat").write_bytes(b"")
        dataset = VOCSegmentation(root, "train_aug", sbd=sbd)
        with pytest.raises(BrokenFilesError) as caught:
            dataset.verify()
        sixth, seventh, eighth = caught.value.problems
        assert "2007_000006.mat: expected (H, W) uint8, got" in sixth
        assert "2007_000007.mat: broken, or not a segmentation of SBD" in seventh
        assert "2007_000008.mat: empty" in eighth
        monkeypatch.setitem(sys.modules, "scipy.io", None)
        with pytest.raises(ModuleNotFoundError, match=r"2007_000005.mat: reading .mat files needs scipy"):
            dataset[3]
        with pytest.raises(FileNotFoundError, match=r"`root`: expected a folder .*nowhere.*cls, found none"):
            VOCSegmentation(root, "train_aug", sbd=tmp_path / "nowhere")


class TestErrors:
    def test_no_root(self, tmp_path):
        message = "`root`: expected a folder JPEGImages in one of .*, .*VOC2012, .*VOCdevkit/VOC2012, found none"
        with pytest.raises(FileNotFoundError, match=message):
            VOCSegmentation(tmp_path)

    def test_splits(self, root, tmp_path):
        known = "'train', 'val', 'trainval', 'train_aug'"
        for split in ("trainaug", tmp_path / "mine.txt", tmp_path):
            message = (
                f"`split`: expected one of {known} or the path of a split file, got '.*{getattr(split, 'name', split)}'"
            )
            with pytest.raises(FileNotFoundError, match=message):
                VOCSegmentation(root, split)
        (root / "ImageSets/Segmentation/val.txt").unlink()
        for split in ("val", "train_aug"):
            with pytest.raises(FileNotFoundError, match=r"`split`: expected a file .*val.txt, found none"):
                VOCSegmentation(root, split)

    def test_split_file_contents(self, root, tmp_path):
        path = tmp_path / "mine.txt"
        path.write_text("\n \n")
        with pytest.raises(ValueError, match=r"`split`: expected names in .*mine.txt, found none"):
            VOCSegmentation(root, path)
        path.write_text("2007_000001\n2007_000002\n2007_000001\n")
        message = "`split`: expected every name once in .*mine.txt; '2007_000001' occurs twice"
        with pytest.raises(ValueError, match=message):
            VOCSegmentation(root, path)
        path.write_bytes("Süd\n".encode("latin-1"))
        with pytest.raises(ValueError, match=r"`split`: expected text in UTF-8 in .*mine.txt"):
            VOCSegmentation(root, path)
        path.write_text("2007_000001\n", encoding="utf-8-sig")  # as Windows' editors write it
        assert VOCSegmentation(root, path, labels=False).names == ("2007_000001",)

    def test_missing_files(self, root):
        (root / "SegmentationClassAug/2007_000006.png").unlink()
        (root / "ImageSets/Segmentation/train_aug.txt").write_text("2007_000005\n2007_000006\n")
        with pytest.raises(FileNotFoundError, match=r"`root`: 1 of 2 files are missing: .*Aug/2007_000006.png"):
            VOCSegmentation(root, "train_aug")
        (root / "JPEGImages/2007_000003.jpg").unlink()
        with pytest.raises(FileNotFoundError, match=r"`root`: 1 of 2 files are missing: .*JPEGImages/2007_000003.jpg"):
            VOCSegmentation(root, "val", labels=False)

    def test_no_labels_at_all(self, root):
        shutil.rmtree(root / "SegmentationClass")
        shutil.rmtree(root / "SegmentationClassAug")
        with pytest.raises(FileNotFoundError, match=r"`root`: expected labels in .*SegmentationClass, found none"):
            VOCSegmentation(root, "val")
        with pytest.raises(
            FileNotFoundError, match=r"`root`: expected train_aug.txt or trainaug.txt, or labels beyond"
        ):
            VOCSegmentation(root, "train_aug")

    def test_samples(self, root):
        dataset = VOCSegmentation(root, "val")
        trees.truncate(root / "JPEGImages/2007_000003.jpg")
        trees.save(root / "SegmentationClass/2007_000004.png", np.full((9, 9), 21, np.uint8))
        with pytest.raises(ValueError, match=r"2007_000003.jpg: broken"):
            dataset[0]
        with pytest.raises(ValueError, match=r"2007_000004.png: `labels`: expected ids of .*, got 21 \(81 pixels"):
            dataset[1]
        trees.save(root / "SegmentationClass/2007_000004.png", np.zeros((8, 9), np.uint8))
        with pytest.raises(ValueError, match=r"2007_000004.png: expected \(H, W\) = \(9, 9\) as in .*, got \(8, 9\)"):
            dataset[1]
        with pytest.raises(IndexError):
            dataset[2]

    def test_arguments(self, root):
        with pytest.raises(TypeError, match="`labels`: expected a bool or a function of the name, got str"):
            VOCSegmentation(root, labels="yes")
        with pytest.raises(TypeError, match="`label_map`: expected a LabelMap, got str"):
            VOCSegmentation(root, label_map="voc")
