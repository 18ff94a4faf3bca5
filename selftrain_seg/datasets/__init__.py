"""Data sets: your own folders, published street scenes and PASCAL VOC, a synthetic benchmark; and their label maps."""

from selftrain_seg.datasets._report import BrokenFilesError, FolderReport
from selftrain_seg.datasets.bdd100k import BDD100K
from selftrain_seg.datasets.cityscapes import Cityscapes
from selftrain_seg.datasets.gta5 import GTA5
from selftrain_seg.datasets.label_map import LabelMap
from selftrain_seg.datasets.segmentation_folder import SegmentationFolder
from selftrain_seg.datasets.streets import SyntheticStreets
from selftrain_seg.datasets.synthia import SYNTHIA
from selftrain_seg.datasets.tiles import Tiles
from selftrain_seg.datasets.voc import VOCSegmentation

__all__ = [
    "BDD100K",
    "GTA5",
    "SYNTHIA",
    "BrokenFilesError",
    "Cityscapes",
    "FolderReport",
    "LabelMap",
    "SegmentationFolder",
    "SyntheticStreets",
    "Tiles",
    "VOCSegmentation",
]
