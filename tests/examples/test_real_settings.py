"""Each trainer with its settings for real data, on two processes, from small folders in the layouts of the data sets.

What the published settings ask of a machine is overridden, see ``OVERRIDDEN``; each run is compared with the table of
settings in everything else.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from selftrain_seg import IGNORE_INDEX
from selftrain_seg.datasets import GTA5, Cityscapes, LabelMap, VOCSegmentation
from selftrain_seg.store import PseudoLabelStore
from tests.datasets import trees
from tests.examples.test_settings import TABLE, defaults
from tests.examples.tiny_network import TinyDeepLab
from tests.examples.trainers import EXAMPLES, result, run, run_as_people_do

NETWORK = "deeplabv2_resnet101"  # the settings are those of this one
TINY = "tests.examples.tiny_network:deeplab"
MISSING = {"terrain", "truck", "train"}  # in SYNTHIA

# All that differs from the settings for real data, and why. A trainer gets what it has a setting for.
OVERRIDDEN = {
    "network": TINY,  # a step of DeepLabV2-ResNet101 takes minutes on a core; built below
    "steps": 1,  # of up to 104,880; of each round where there are rounds
    "warmup_steps": 1,
    "rounds": 2,  # of 3 to 6, each with pictures and an evaluation
    "checkpoint_every": 1,
    "log_every": 1,
    "refresh": 1,  # DT-ST's snapshots, or there would be one only
    "decay_steps": 4,
    "resize": (32, 64),  # of 512 x 1024; crops are as large as these or the images, see `largest_crop`
    "train_resize": (24, 48),  # of 768 x 1536
    "ignored_rows": (1, 8),  # 15 and 120 are more than there are
    "labelled": 3,  # of 106: there are few images
    "batch": 2,  # or as published where that is more: one image in a step cannot be shared by two processes
}

# Trainer, what it is called with, the data that it has settings for.
CASES = [
    ("source_only", [], ("gta5", "synthia", "voc", "cityscapes")),
    ("cbst", [], ("gta5", "synthia")),
    ("crst", ["--regularizer", "mrkld"], ("gta5", "synthia")),
    ("crst", ["--regularizer", "mrent"], ("gta5",)),
    ("crst", ["--regularizer", "mrl2"], ("gta5",)),
    ("crst", ["--regularizer", "lrent"], ("gta5",)),
    ("iast", [], ("gta5", "synthia")),
    ("dtst", [], ("gta5", "synthia")),
    ("dst_cbc", [], ("voc", "cityscapes")),
    ("dst_cbc", ["--mutual"], ("voc", "cityscapes")),
    ("online", [], ("voc",)),
    ("mean_teacher", ["--teacher", "mean"], ("gta5", "voc")),
    ("mean_teacher", ["--teacher", "dual"], ("gta5", "voc")),
    ("mean_teacher", ["--teacher", "dynamic"], ("gta5",)),
    ("sac", [], ("gta5", "synthia")),
    ("unimatch", [], ("voc", "cityscapes")),
    ("mic", [], ("gta5", "synthia")),
    ("mic", ["--mask-weight", 0], ("gta5",)),
    ("recommended", [], ("gta5",)),
]
COLUMNS = ("gta5", "synthia", "voc", "cityscapes")


def chosen(trainer: str, data: str) -> dict[str, object]:
    """Settings that a run is made with: those of the table, and what is overridden."""
    settings = defaults(trainer, data, NETWORK)
    if data == "cityscapes":  # the lists of names say which images are labelled
        settings.pop("labelled", None)
    always = {"network", "log_every"} | ({"labelled"} if data == "voc" else set())
    given = {name: value for name, value in OVERRIDDEN.items() if name in settings or name in always}
    if "batch" in given:
        given["batch"] = max(2, settings["batch"])
    if trainer == "dtst":
        given["steps"] = 2  # a snapshot before each
    return settings | {"checkpoint_every": 1} | given


def test_every_trainer_is_run_with_all_data_that_it_has_settings_for():
    offered = {(name, column) for name, settings in TABLE.items() for cells in settings.values() for column in cells}
    expected = {(name, column) for name, column in offered if column in COLUMNS}
    assert {(name, column) for name, _, columns in CASES for column in columns} >= expected
    assert {column for _, column in expected} == set(COLUMNS)


# The data sets, small


def scenes(label_map: LabelMap, size: tuple[int, int], seed: int, light: float = 1.0, classes=range(19)):
    """Draw blocks of classes on road and sky, each class in a colour of its own: picture and ids by number."""
    ids = {number: value for value, number in sorted(label_map.ids.items(), reverse=True) if value >= 0}

    def draw(number: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((seed, number))
        height, width = (side + int(rng.integers(0, 6)) for side in size) if seed == 4 else size
        labels = np.zeros((height, width), np.int64) + classes[0]
        labels[: height // 2] = classes[len(classes) // 2]
        for _ in range(12):
            side, top, left = rng.integers(6, 14), rng.integers(0, height - 6), rng.integers(0, width - 6)
            labels[top : top + side, left : left + side] = rng.choice(classes)
        labels[-2:] = IGNORE_INDEX
        colours = np.random.default_rng(0).integers(30, 226, (256, 3))
        pixels = colours[labels] * light + rng.normal(0, 6, (height, width, 3))
        table = np.array([ids.get(number, 0) for number in range(256)])
        return pixels.clip(0, 255).astype(np.uint8), table[labels].astype(np.uint8)

    return draw


@pytest.fixture(scope="session")
def worlds(tmp_path_factory) -> Path:
    """GTA5, SYNTHIA, Cityscapes and VOC, a few images each."""
    root = tmp_path_factory.mktemp("worlds")
    with_all = [number for number, name in enumerate(LabelMap.cityscapes().classes) if name not in MISSING]
    trees.gta5(root / "gta5", 6, scenes(LabelMap.cityscapes(), (36, 66), 1))
    trees.synthia(root / "synthia", 6, scenes(LabelMap.synthia(), (38, 64), 2, classes=with_all))
    draw = scenes(LabelMap.cityscapes(), (32, 64), 3, light=0.85)
    trees.cityscapes(root / "cityscapes", "train", cities=("aachen", "ulm"), count=3, draw=draw)
    trees.cityscapes(root / "cityscapes", "val", cities=("frankfurt",), count=3, draw=lambda number: draw(number + 99))
    as_folders(root / "cityscapes")
    trees.voc(root / "VOCdevkit" / "VOC2012", 5, 3, 4, draw=scenes(LabelMap.voc(), (36, 48), 4, classes=range(21)))
    return root


def as_folders(root: Path) -> None:
    """Give Cityscapes the names with which ``--data folders`` reads it, as docs/settings.md does."""
    for mask in root.glob("gtFine/*/*/*_gtFine_labelIds.png"):
        name = mask.name.replace("_gtFine_labelIds", "_leftImg8bit")
        link = root / "masks" / mask.parent.relative_to(root / "gtFine") / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(mask)
    LabelMap.cityscapes().save(root / "cityscapes.json")
    names = [f"{name}_leftImg8bit" for name in Cityscapes(root, "train", labels=False).names]
    (root / "labeled.txt").write_text("\n".join(names[::3]))
    (root / "unlabeled.txt").write_text("\n".join(name for name in names if name not in names[::3]))


def folders(data: str, worlds: Path) -> list[object]:
    """The options that name the folders."""
    root = worlds / "cityscapes"
    if data == "voc":
        return ["--data", "voc", "--root", worlds / "VOCdevkit"]
    if data != "cityscapes":
        return ["--data", data, "--source-root", worlds / data, "--root", root]
    images, masks = root / "leftImg8bit", root / "masks"
    source = ["--source-images", images / "train", "--source-masks", masks / "train"]
    target = ["--target-images", images / "train", "--target-names", root / "unlabeled.txt"]
    val = ["--val-images", images / "val", "--val-masks", masks / "val", "--classes", root / "cityscapes.json"]
    return ["--data", "folders", *source, "--source-names", root / "labeled.txt", *target, *val]


@pytest.fixture(scope="session")
def starts(worlds, tmp_path_factory) -> Path:
    """A folder of networks to start from, ``19.pt`` and ``21.pt``, and of their backbones."""
    out = tmp_path_factory.mktemp("starts")
    for dataset in (GTA5(worlds / "gta5"), VOCSegmentation(worlds / "VOCdevkit")):
        torch.manual_seed(0)
        net = TinyDeepLab(dataset.num_classes)
        optimizer = torch.optim.Adam(net.parameters(), 0.02)
        for step in range(120):
            image, labels = dataset[step % len(dataset)]
            logits = F.interpolate(net(image[None] / 255), size=labels.shape, mode="bilinear")
            F.cross_entropy(logits, labels[None].as_subclass(torch.Tensor), ignore_index=IGNORE_INDEX).backward()
            optimizer.step()
            optimizer.zero_grad()
        torch.save(
            {f"net.{name}": tensor for name, tensor in net.state_dict().items()}, out / f"{dataset.num_classes}.pt"
        )
        torch.save(net.backbone.state_dict(), out / f"backbone-{dataset.num_classes}.pt")
    return out


# The runs


def words(trainer: str, data: str, worlds: Path, starts: Path) -> list[object]:
    """The command line of a trainer, without what this case is about."""
    settings, given = defaults(trainer, "folders" if data == "cityscapes" else data, NETWORK), []
    for name, value in chosen(trainer, data).items():
        option = name.replace("_", "-")
        if settings.get(name) != value:
            if isinstance(value, bool):
                given += [f"--{option}" if value else f"--no-{option}"]
            else:
                given += [f"--{option}", *(value if isinstance(value, tuple) else [value])]
    classes = 21 if data == "voc" else 19
    weights = ["--init", starts / f"{classes}.pt"]
    if trainer == "source_only":  # as one begins: with a pre-trained backbone
        weights = ["--backbone-weights", starts / f"backbone-{classes}.pt"]
    return [*folders(data, worlds), *given, *weights]


def check(out: Path, trainer: str, data: str, options: list[object], worlds: Path) -> None:
    """A run with the settings of the table, that has ended in a result and in labels of every target image."""
    found = json.loads((out / "arguments.json").read_text(encoding="utf-8"))
    expected = {
        name: list(value) if isinstance(value, tuple) else value for name, value in chosen(trainer, data).items()
    }
    given = {str(word)[2:].replace("-", "_") for word in options if str(word).startswith("--")}
    differing = {
        name: (found[name], value)
        for name, value in expected.items()
        if name in found and name not in given and found[name] != value
    }
    assert not differing
    assert found["processes"] == 2

    classes = LabelMap.voc().classes if data == "voc" else LabelMap.cityscapes().classes
    names = result(out)
    assert list(names["iou"]) == list(classes)
    absent = {name for name, value in names["iou"].items() if value is None}
    if data == "synthia":
        assert absent >= MISSING
        assert 0 < names["mIoU-16"] <= 100
        assert 0 < names["mIoU-13"] <= 100
        assert "mIoU" not in names
    else:
        assert 0 < names["mIoU"] <= 100
    assert (out / "model.pt").exists()
    assert (out / "report.html").exists()

    images = targets(data, worlds)
    stores = [PseudoLabelStore(folder, len(classes)) for folder in out.glob("pseudo-labels*")]
    labelling = {"cbst": 1, "crst": 1, "iast": 1, "dtst": 1, "dst_cbc": 1 + ("--mutual" in options), "sac": 1}
    assert len(stores) == labelling.get(trainer, 0)
    rounds = {"dtst": 2, "sac": 1}.get(trainer, OVERRIDDEN["rounds"])
    for store in stores:
        assert store.rounds() == list(range(rounds))
        for number in store.rounds():
            stored = store.round(number)
            assert not store.verify(number)
            assert set(stored.names) == set(images)
            for name, size in images.items():
                assert tuple(stored.labels(name).shape) == tuple(chosen(trainer, data).get("resize", size))
            assert stored.selected_share > 0


def targets(data: str, worlds: Path) -> dict[str, tuple[int, ...]]:
    """Name and size of each image without labels."""
    if data == "voc":
        dataset = VOCSegmentation(worlds / "VOCdevkit", "train_aug", labels=False)
        places = dataset.draw_labelled(OVERRIDDEN["labelled"], seed=0)[1]
        return {dataset.names[place]: tuple(dataset[place][0].shape[-2:]) for place in places}
    names = list(Cityscapes(worlds / "cityscapes", "train", labels=False).names)
    if data == "cityscapes":
        names = (worlds / "cityscapes" / "unlabeled.txt").read_text().split()
    return dict.fromkeys(names, (32, 64))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "options", "data"),
    [
        pytest.param(trainer, options, data, id=" ".join([trainer, *map(str, options[-1:]), data]))
        for trainer, options, columns in CASES
        for data in columns
    ],
)
def test_real_settings_on_two_processes(trainer, options, data, worlds, starts, tmp_path):
    output = run(f"{trainer}.py", tmp_path, *words(trainer, data, worlds, starts), *options, processes=2)
    assert "before training: mIoU" in output
    assert "Warning" not in output
    check(tmp_path, trainer, data, options, worlds)


@pytest.mark.slow
def test_the_network_of_the_papers_is_what_the_settings_build(monkeypatch):
    """One forward pass at a small size; its learning rates and its BatchNorm are those of the table."""
    monkeypatch.syspath_prepend(EXAMPLES)
    from _common.settings import parse
    from _networks.build import build, parameter_groups

    found = {}
    for trainer, _, columns in CASES:
        kinds = [kind for name, kind in vars(importlib.import_module(trainer)).items() if name.endswith("Settings")]
        (kind,) = (kind for kind in kinds if kind.__module__ == trainer)
        for data in set(columns) - {"cityscapes"}:
            settings = parse(kind, None, ["--data", data, "--backbone-weights", "resnet101.pth"])
            assert settings.network == NETWORK
            for name, value in defaults(trainer, data, NETWORK).items():
                if hasattr(settings, name):
                    assert getattr(settings, name) == value, (trainer, data, name)
            found[21 if data == "voc" else 19, settings.frozen_bn] = settings
    assert {frozen for _, frozen in found} == {True, False}
    images = torch.rand(1, 3, 33, 65)
    for (classes, frozen), settings in found.items():
        settings.backbone_weights, settings.from_scratch = None, True  # there are no weights here
        net = build(settings, classes).eval()
        with torch.no_grad():
            assert net(images).shape == (1, classes, 33, 65)
        assert any(isinstance(module, torch.nn.BatchNorm2d) for module in net.modules()) is not frozen
        backbone, head = parameter_groups(net, settings.lr, settings.head_factor)
        assert head["lr"] == pytest.approx(settings.head_factor * settings.lr)
        assert sum(part.numel() for part in head["params"]) == 4 * (2048 * 9 + 1) * classes
        assert len(backbone["params"]) > 100


@pytest.mark.slow
def test_as_people_start_it(worlds, starts, tmp_path):
    """With torchrun; on CPUs `accelerate launch` starts several processes by MPI only."""
    options = [*words("cbst", "gta5", worlds, starts), "--rounds", 1]
    output = run_as_people_do("cbst.py", tmp_path, *options, processes=2)
    assert "before training: mIoU" in output
    assert json.loads((tmp_path / "arguments.json").read_text(encoding="utf-8"))["processes"] == 2
    assert result(tmp_path)["mIoU"] > 0
