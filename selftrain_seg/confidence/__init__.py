"""Label and confidence of each pixel from logits, computed without saturation."""

from selftrain_seg.confidence.fusion import fuse_views
from selftrain_seg.confidence.prior import SpatialPrior, add_prior
from selftrain_seg.confidence.top import TopConfidence, log_odds, top_confidence

__all__ = ["SpatialPrior", "TopConfidence", "add_prior", "fuse_views", "log_odds", "top_confidence"]
