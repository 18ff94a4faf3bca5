"""Something of every family, where nothing but the wheel is installed: ``python -I .ci/smoke.py``."""

from __future__ import annotations

import sys
import sysconfig
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

import selftrain_seg
from selftrain_seg import PseudoLabels, visualize
from selftrain_seg.confidence import fuse_views, top_confidence
from selftrain_seg.datasets import Cityscapes, SyntheticStreets
from selftrain_seg.distributed import all_reduce_sum
from selftrain_seg.losses import cross_entropy, mrkld_loss
from selftrain_seg.mining import ClassIndex, RareClassSampler, class_mix, crop, mine_crops, rare_classes
from selftrain_seg.selectors import InstanceAdaptiveSelector, select_hard, select_reweighted
from selftrain_seg.store import PseudoLabelStore
from selftrain_seg.teachers import MeanTeacher
from selftrain_seg.thresholds import ClassBalancedThreshold, linear_portion
from selftrain_seg.views import WeakStrongViews, replay


def check(holds: object, what: str) -> None:
    """Like ``assert``, which ``python -O`` would leave out."""
    if not holds:
        raise SystemExit(f"smoke test: {what}")


def installed() -> None:
    """Check that this is the wheel, whole, and not the repository."""
    site = Path(sysconfig.get_path("purelib")).resolve()
    check(site in Path(selftrain_seg.__file__).resolve().parents, f"{selftrain_seg.__file__} is not in {site}")
    check(selftrain_seg.__version__ == version("selftrain-seg"), "the version differs from the metadata's")
    check(Path(selftrain_seg.__file__).with_name("py.typed").is_file(), "no py.typed")
    for name in selftrain_seg.__all__:
        getattr(selftrain_seg, name)


def one_round(folder: Path) -> None:
    """Images from files, thresholds, pseudo-labels kept and read, a crop, a loss, a step, a teacher."""
    torch.manual_seed(0)
    streets = SyntheticStreets("target", size=(64, 128), length=2)
    streets.export(folder / "streets", "cityscapes")
    frames = Cityscapes(folder / "streets", "train", labels=False)
    frames.verify()
    names = frames.names
    images = torch.stack([frames[number][0] for number in range(len(frames))]) / 255
    network = torch.nn.Conv2d(3, 13, 3, padding=1)
    torch.nn.init.normal_(network.weight)

    kc = ClassBalancedThreshold(13, linear_portion(0), exact=True)
    with torch.no_grad():
        logits = network(images)
        kc.update(logits)
    thresholds = kc.compute()
    predicted = top_confidence(logits).labels
    pseudo = select_reweighted(logits, thresholds)
    counts = torch.bincount(predicted.flatten(), minlength=13)
    check(torch.equal(kc.class_counts(), counts), "the counts of classes differ from the predictions'")
    hard = select_hard(logits, thresholds).labels
    kept = torch.bincount(hard[hard != 255], minlength=13)
    check(((kept - 0.2 * counts).abs() <= 1).all(), f"20 % of {counts.tolist()} are not {kept.tolist()}")
    adaptive = InstanceAdaptiveSelector(13)(logits)
    check(adaptive.labels.shape == (2, 64, 128), "the adaptive labels have another size")

    store = PseudoLabelStore(folder / "store", 13)
    with store.write(0, names, thresholds=thresholds) as writer:
        writer.add(names, pseudo)
        stored = writer.finish()
    check(torch.equal(stored.read(names[1]).labels, pseudo.labels[1]), "other labels are read than were written")
    index = ClassIndex(stored.counts, stored.pixels)
    check(set(RareClassSampler(index, num_samples=8)) <= {0, 1}, "the sampler draws images that do not exist")

    corners = mine_crops(pseudo.labels, rare_classes(kc.class_counts()), (32, 64))
    small, labels = crop(images, corners, (32, 64)), crop(pseudo.labels, corners, (32, 64))
    mixed = class_mix(small, labels)
    prediction = network(mixed.images)
    loss = mrkld_loss(prediction, mixed.labels) + cross_entropy(prediction, mixed.labels, normalize="all")
    loss.backward()
    check(loss.isfinite() and network.weight.grad.abs().sum() > 0, "the loss has no gradient")

    teacher = MeanTeacher(network)
    teacher.update(network)
    check(torch.allclose(teacher(images), logits, atol=1e-5), "the teacher differs from the student it was made of")
    check(
        torch.allclose(fuse_views(network, images, flip=False), logits.softmax(1), atol=1e-5), "one view is not fused"
    )
    views = WeakStrongViews((32, 64))(images)
    check(replay(pseudo.labels, views.parameters).shape == (2, 32, 64), "the replayed labels have another size")
    check(all_reduce_sum(counts) is counts, "a sum over one process is not the value")
    visualize.overlay(images, PseudoLabels(*pseudo).labels, streets.palette)


def errors() -> None:
    """What a user does wrong first, and what is not installed, is said in plain words."""
    try:
        mrkld_loss(torch.zeros(2, 19), torch.zeros(2, 1, 1, dtype=torch.int64))
    except ValueError as error:
        check("`logits`: expected (B, C, H, W), got (2, 19)" in str(error), f"unclear: {error}")
    else:
        check(False, "logits of two dimensions are accepted")
    try:
        visualize.image_sheet({"image": torch.zeros(1, 3, 4, 4)})
    except ImportError as error:
        check("matplotlib" in str(error) and "pip install" in str(error), f"unclear: {error}")
    else:
        check(False, "matplotlib is installed: this is no empty environment")


if __name__ == "__main__":
    installed()
    with tempfile.TemporaryDirectory() as folder:
        one_round(Path(folder))
    errors()
    python = ".".join(map(str, sys.version_info[:3]))
    sys.stdout.write(
        f"selftrain_seg {selftrain_seg.__version__} works with Python {python}, torch {torch.__version__}\n"
    )
