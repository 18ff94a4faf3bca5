"""Draw docs/_static/mining.png: ``python docs/make_mining_picture.py`` (needs matplotlib, takes seconds)."""

from io import BytesIO
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import torch
from matplotlib import pyplot as plt
from PIL import Image

from selftrain_seg.datasets import SyntheticStreets
from selftrain_seg.mining import class_mix, crop, mine_crops, paste_classes, rare_classes
from selftrain_seg.visualize import colorize

COLUMNS, SIZE, CROP = 4, (256, 512), (128, 256)
WANTED = ("bicycle", "person", "sign", "light", "pole")


def show(axes, pictures, title, outlines=None):
    for column, axis in enumerate(axes):
        axis.imshow(pictures[column], interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        if outlines is not None and outlines[column].any():
            axis.contour(outlines[column].float(), levels=[0.5], colors="red", linewidths=1.0)
    axes[0].set_ylabel(title, fontsize=10)


def main():
    streets = SyntheticStreets("source", "train", size=SIZE, length=COLUMNS)
    target = SyntheticStreets("target", "train", size=SIZE, length=COLUMNS)
    images, labels = (torch.stack(part) for part in zip(*(streets[i] for i in range(COLUMNS)), strict=True))
    below, below_labels = (torch.stack(part) for part in zip(*(target[i] for i in range(COLUMNS)), strict=True))
    counts = torch.bincount(labels[labels != streets.ignore_index], minlength=streets.num_classes)
    rare = rare_classes(counts, k=3)
    generator = torch.Generator().manual_seed(3)

    corners = mine_crops(labels, rare, CROP, chance=1.0, generator=generator)
    class_mixed = class_mix(below, below_labels, source=(images, labels), generator=generator)
    class_weight = torch.tensor([float(name in WANTED) for name in streets.classes])
    rider, bicycle = (streets.classes.index(name) for name in ("rider", "bicycle"))
    pasted = paste_classes(
        below,
        below_labels,
        class_weight,
        source=(images, labels),
        companions={bicycle: [rider]},
        min_class_pixels=150,
        min_pixels=100,
        generator=generator,
    )

    figure, axes = plt.subplots(7, COLUMNS, figsize=(14, 13.2), layout="constrained")
    names = ", ".join(streets.classes[c] for c in rare)
    show(axes[0], images.permute(0, 2, 3, 1), "images and\nmined crops")
    for axis, (top, left) in zip(axes[0], corners.tolist(), strict=True):
        axis.add_patch(plt.Rectangle((left, top), CROP[1], CROP[0], fill=False, edgecolor="red", linewidth=2))
    shown = torch.isin(labels, rare)
    show(axes[1], crop(images, corners, CROP).permute(0, 2, 3, 1), "the crops", crop(shown, corners, CROP))
    axes[1][0].set_xlabel(f"outlined: the three rarest classes ({names})", fontsize=9, loc="left")
    show(axes[2], below.permute(0, 2, 3, 1), "images to\npaste onto")
    for row, mixed, title in ((3, class_mixed, "class_mix"), (5, pasted, "paste_classes")):
        show(axes[row], mixed.images.permute(0, 2, 3, 1), title, mixed.pasted)
        painted = colorize(mixed.labels, streets.palette, ignore_color=(255, 255, 255))
        show(axes[row + 1], painted.permute(0, 2, 3, 1), "its labels")
    axes[4][0].set_xlabel("outlined: what comes from the images in the first row", fontsize=9, loc="left")
    drawn = BytesIO()
    figure.savefig(drawn, dpi=80)
    small = Image.open(drawn).convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE)  # a third of the bytes
    small.save(Path(__file__).parent / "_static" / "mining.png", optimize=True)


if __name__ == "__main__":
    main()
