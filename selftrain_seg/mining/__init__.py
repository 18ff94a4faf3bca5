"""Small classes: which ones they are, and crops that contain them."""

from selftrain_seg.mining.classes import classes_below, rare_classes
from selftrain_seg.mining.crops import crop, mine_crops

__all__ = ["classes_below", "crop", "mine_crops", "rare_classes"]
