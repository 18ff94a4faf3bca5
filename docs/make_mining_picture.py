"""Draw docs/_static/mining.png: ``python docs/make_mining_picture.py`` (needs matplotlib, takes seconds)."""

from pathlib import Path

import torch
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle
from pictures.style import WIDTH, save

from selftrain_seg.datasets import SyntheticStreets
from selftrain_seg.mining import class_mix, crop, mine_crops, paste_classes, rare_classes

SIZE, CROP = (256, 512), (128, 256)
WANTED = ("bicycle", "person", "sign", "light", "pole")
OUTLINE = "#ff2a2a"


def show(axis, picture, title, outline=None):
    axis.imshow(picture.permute(1, 2, 0), interpolation="nearest")
    axis.set_title(title, loc="left")
    axis.set_axis_off()
    if outline is not None and outline.any():
        axis.contour(outline.float(), levels=[0.5], colors=OUTLINE, linewidths=1.4)


def main():
    streets = SyntheticStreets("source", "train", size=SIZE, length=2)
    target = SyntheticStreets("target", "train", size=SIZE, length=2)
    images, labels = (torch.stack(part) for part in zip(*(streets[i] for i in range(2)), strict=True))
    below, below_labels = (torch.stack(part) for part in zip(*(target[i] for i in range(2)), strict=True))
    counts = torch.bincount(labels[labels != streets.ignore_index], minlength=streets.num_classes)
    rare = rare_classes(counts, k=3)
    generator = torch.Generator().manual_seed(3)

    corners = mine_crops(labels, rare, CROP, chance=1.0, generator=generator)
    class_mixed = class_mix(below, below_labels, source=(images, labels), generator=generator)
    rider, bicycle = streets.classes.index("rider"), streets.classes.index("bicycle")
    pasted = paste_classes(
        below,
        below_labels,
        torch.tensor([float(name in WANTED) for name in streets.classes]),
        source=(images, labels),
        companions={bicycle: [rider]},
        min_class_pixels=150,
        min_pixels=100,
        generator=generator,
    )

    figure, axes = plt.subplots(3, 2, figsize=(WIDTH * 1.25, 7.0), layout="constrained")
    show(axes[0, 0], images[0], "image, and the crop that was mined")
    top, left = corners[0].tolist()
    axes[0, 0].add_patch(Rectangle((left, top), CROP[1], CROP[0], fill=False, edgecolor=OUTLINE, linewidth=3))
    inside = crop(torch.isin(labels, rare), corners, CROP)[0]
    show(axes[0, 1], crop(images, corners, CROP)[0], "mine_crops: the rarest classes", inside)
    show(axes[1, 0], below[0], "image to paste onto")
    show(axes[1, 1], class_mixed.images[0], "class_mix: half of the classes", class_mixed.pasted[0])
    show(axes[2, 0], below[1], "image to paste onto")
    show(axes[2, 1], pasted.images[1], "paste_classes: chosen objects", pasted.pasted[1])
    save(figure, Path(__file__).parent / "_static" / "mining.png")


if __name__ == "__main__":
    main()
