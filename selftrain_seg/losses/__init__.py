"""Losses that learn from pseudo-labels."""

from selftrain_seg.losses.regularized import MRKLDLoss, mrkld_loss

__all__ = ["MRKLDLoss", "mrkld_loss"]
