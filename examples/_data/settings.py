"""Settings of the data sets: which images and masks to read, and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(kw_only=True)
class DataSettings:
    """The source and the target data set."""

    data: Literal["streets", "gta5", "synthia", "bdd100k", "voc", "folders"] = "streets"
    """pair of data sets; streets is the synthetic benchmark, folders are your own images"""
    source_root: Path | None = None  # folder of GTA5 or SYNTHIA; for bdd100k, of GTA5 or Cityscapes
    root: Path | None = None  # folder of Cityscapes, BDD100K or VOC; for streets, where the benchmark is written
    images: tuple[int, int, int] = (1000, 500, 200)  # streets: number of source, target and validation images
    missing_classes: Literal["counted", "ignored"] = "counted"
    """synthia: evaluation counts pixels of classes that SYNTHIA lacks (terrain, truck, train) as errors, or ignores
    them; papers do either"""
    outputs: Literal[16, 19] = 19  # synthia: classes of the network; 16 leaves out terrain, truck and train
    labelled: int = 106  # voc: one image in this many is labelled

    source_images: Path | None = None  # folders: source images
    source_masks: Path | None = None  # folders: masks of the source images
    source_names: str | None = None  # folders: source images to use, as a pattern or a file of names; default: all
    target_images: Path | None = None  # folders: target images
    target_masks: Path | None = None  # folders: optional masks of the target images, for the precision of pseudo-labels
    target_names: str | None = None  # folders: target images to use
    val_images: Path | None = None  # folders: target images for evaluation
    val_masks: Path | None = None  # folders: masks of the validation images
    val_names: str | None = None  # folders: validation images to use
    classes: Path | None = None  # folders: classes of the masks, a .json or .csv file; see LabelMap.load
    mask_suffix: str = ""  # folders: what the name of a mask adds to the name of its image, such as _mask
    read_masks: Literal["auto", "first"] = "auto"
    """folders: first reads the first channel of masks with several channels"""
    leave_out_unpaired: bool = False  # folders: leave out images without a mask
    check_meaning: bool = True  # stop if nearly all mask pixels are ignored, or if masks seem to hold other ids
    channels: int = 3  # channels of the images; 3 repeats grey images and drops transparency
    white: int | None = None  # value of white in 16-bit images; default: 65535

    resize: tuple[int, int] | None = None  # height and width to which all images are resized first
    tile: tuple[int, int] | None = None  # height and width of the tiles in which large images are predicted
    overlap: float = 0.25  # overlap of neighbouring tiles, as a share of their size
