"""Weak and strong views of images, and functions that map labels and outputs to a view and back."""

from selftrain_seg.views.averaging import average_views
from selftrain_seg.views.geometry import ViewParameters, replay, replay_inverse
from selftrain_seg.views.masking import mask_patches
from selftrain_seg.views.strong import StrongSettings
from selftrain_seg.views.weak_strong import Views, WeakStrongViews

__all__ = [
    "StrongSettings",
    "ViewParameters",
    "Views",
    "WeakStrongViews",
    "average_views",
    "mask_patches",
    "replay",
    "replay_inverse",
]
