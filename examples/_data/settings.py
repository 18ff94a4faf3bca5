"""Settings that say which images and masks are read, and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(kw_only=True)
class DataSettings:
    """What to adapt from and to."""

    data: Literal["streets", "gta5", "synthia", "bdd100k", "voc", "folders"] = "streets"  # what to adapt from and to
    source_root: Path | None = None  # folder of GTA5 or SYNTHIA; for bdd100k of GTA5 or Cityscapes
    root: Path | None = None  # folder of Cityscapes, BDD100K or VOC; for streets, where the benchmark is drawn to
    images: tuple[int, int, int] = (1000, 500, 200)  # streets: source, target and validation images
    missing_classes: Literal["counted", "ignored"] = "counted"
    """synthia: pixels of classes that SYNTHIA does not have (terrain, truck, train) are wrong whatever they are
    predicted as, or are left out of the truth; both are in use"""
    outputs: Literal[16, 19] = 19
    """synthia: classes of the network; with 16, terrain, truck and train are left out everywhere"""
    labelled: int = 106  # voc: one image in so many is labelled

    source_images: Path | None = None  # folders: the images to learn from
    source_masks: Path | None = None  # folders: their masks
    source_names: str | None = None  # folders: which of them, a pattern or a file of names; by default all
    target_images: Path | None = None  # folders: the images to adapt to
    target_masks: Path | None = None  # folders: their masks, if there are any, to measure the precision of labels
    target_names: str | None = None  # folders: which of them
    val_images: Path | None = None  # folders: target images to measure on
    val_masks: Path | None = None  # folders: their masks
    val_names: str | None = None  # folders: which of them
    classes: Path | None = None  # folders: what the masks hold, .json or .csv, see LabelMap.load
    mask_suffix: str = ""  # folders: what a mask's name has more than its image's, such as _mask
    read_masks: Literal["auto", "first"] = "auto"  # folders: first takes the first channel of masks that have several
    leave_out_unpaired: bool = False  # folders: images without a mask are left out
    check_meaning: bool = True  # stop if masks are nearly all ignored, or look like other ids
    channels: int = 3  # of the images; 3 repeats grey and leaves opacity out
    white: int | None = None  # value of white in images of 16 bits; by default 65535

    resize: tuple[int, int] | None = None  # height and width that all images get first
    tile: tuple[int, int] | None = None  # height and width of the parts in which large images are predicted
    overlap: float = 0.25  # of the parts, as a share of their size
