"""Order statistics of scores counted in bins."""

from __future__ import annotations

import torch
from torch import Tensor

from selftrain_seg.ops._library import operator
from selftrain_seg.ops._thresholds import there

# A bin with more than this share of its row is not interpolated: so many values within 0.007 of log-odds are ties
# (saturated values, coarse steps of bf16), which no threshold can split.
TIE_SHARE = 1 / 256
# Tolerance for the rounding of decimal shares: 0.29 of 100 pixels is 29, but 0.29 * 100 is 28.999999999999996.
ROUNDING = 1.0 + 2.0**-50
RULES = ("last_in", "first_out", "from_below")


def ranked(counts: Tensor, share: Tensor, *, rule: str, low: float, bin_width: float) -> Tensor:
    """(2, R) float64: a score of each row of counts (R, K) int64, and ``n = floor(size · share)``, size the row's sum.

    The score is the n-th largest (``"last_in"``), the one after it (``"first_out"``), or the one with n scores below it
    (``"from_below"``); NaN for an empty row. ``share`` is (R,), or () on the host.

    Within a bin the score is interpolated, so that the requested number of scores lies at or above it. If a bin
    contains more than 1/256 of its row, its values are treated as ties: the score is the edge of the bin for which the
    number of scores is closest to the requested one, but not zero.
    """
    found: Tensor = _ranked(counts, share, rule, low, bin_width)
    return found


def _plain(counts: Tensor, share: Tensor, rule: str, low: float, bin_width: float) -> Tensor:
    bins = counts.shape[1]
    from_top = counts.flip(1).cumsum(1)  # scores at or above each bin, highest bin first
    size = from_top[:, -1:]
    taken = (size.double() * there(share, counts).unsqueeze(1) * ROUNDING).floor()
    k = {"last_in": taken, "first_out": taken + 1, "from_below": size - taken}[rule]
    k = k.long().clamp(min=1).minimum(size)
    place = torch.searchsorted(from_top, k).clamp(max=bins - 1)
    above = torch.where(place > 0, from_top.gather(1, (place - 1).clamp(min=0)), 0)
    inside = from_top.gather(1, place) - above
    part = (k - above).double() / inside.clamp(min=1)  # share of the bin, from its upper edge
    tied = inside.double() > size * TIE_SHARE
    nearest_edge = ((part >= 0.5) | (above == 0)).double()
    from_high = place.double() + torch.where(tied, nearest_edge, part)
    score = low + (bins - from_high) * bin_width
    return torch.stack([torch.where(size > 0, score, torch.nan).squeeze(1), taken.squeeze(1)])


_ranked = operator(
    "ranked(Tensor counts, Tensor share, str rule, float low, float bin_width) -> Tensor",
    _plain,
    lambda counts, *_: counts.new_empty((2, counts.shape[0]), dtype=torch.float64),
    kernel="launch_state",
    reads_host=True,
)
