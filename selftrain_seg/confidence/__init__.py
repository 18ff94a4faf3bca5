"""What a network's output says about each pixel: its label and how sure it is, without saturation."""

from selftrain_seg.confidence.fusion import fuse_views
from selftrain_seg.confidence.prior import SpatialPrior
from selftrain_seg.confidence.top import TopConfidence, log_odds, top_confidence

__all__ = ["SpatialPrior", "TopConfidence", "fuse_views", "log_odds", "top_confidence"]
