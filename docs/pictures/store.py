"""What a round keeps of one image on disk."""

from __future__ import annotations

import tempfile
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from pictures.scene import Scene, logits_of
from pictures.style import WIDTH, show
from selftrain_seg.datasets import SyntheticStreets
from selftrain_seg.selectors import select_soft
from selftrain_seg.store import PseudoLabelStore
from selftrain_seg.thresholds import ClassBalancedThreshold

IMAGE = 30


def draw(scene: Scene) -> Figure:
    """Write a round of one image and show its files."""
    images = scene.val.tensors[0][IMAGE : IMAGE + 1]
    kc = ClassBalancedThreshold(SyntheticStreets.num_classes, 0.4)
    kc.update(logits_of(scene.net, scene.target.tensors[0]))
    thresholds = kc.compute()
    with tempfile.TemporaryDirectory() as root:
        store = PseudoLabelStore(root, SyntheticStreets.num_classes, palette=SyntheticStreets.palette)
        with store.write(0, ["street"], thresholds=thresholds) as writer:
            writer.add(["street"], select_soft(logits_of(scene.net, images), thresholds))
            writer.finish()
        figure, axes = plt.subplots(2, 2, figsize=(WIDTH, 4.2), layout="constrained")
        show(axes[0, 0], images[0], "image")
        files = [Path(root) / "round-0000" / kind / "street.png" for kind in ("labels", "confidence", "soft")]
        for axis, file in zip(axes.flat[1:], files, strict=True):
            picture = Image.open(file).convert("RGB")
            if file.parent.name == "soft":  # the classes' planes above those of the probabilities: the first of these
                picture = picture.crop((0, picture.height // 2, picture.width, picture.height // 2 + images.shape[-2]))
            axis.imshow(picture)
            axis.set_axis_off()
            axis.set_title(f"{file.parent.name}/: {file.stat().st_size / 1024:.1f} KiB")
    return figure
