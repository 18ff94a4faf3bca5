"""What a network's output says about each pixel: its label and how sure it is, without saturation."""

from selftrain_seg.confidence.top import TopConfidence, log_odds, top_confidence

__all__ = ["TopConfidence", "log_odds", "top_confidence"]
