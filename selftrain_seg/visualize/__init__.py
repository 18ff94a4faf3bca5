"""Pictures of what self-training does: labels over images, confidence, selection, crops and mixing, and a run's report.

``colorize`` and ``overlay`` are plain torch. All that draws a figure needs matplotlib
(``pip install "selftrain-seg[visualize]"``) and returns a ``matplotlib.figure.Figure`` of its own, without pyplot:
``figure.savefig("picture.png", dpi=150)`` writes it. Values are read by the host, so draw every so often, not in every
step. ``report`` makes one HTML file of a run folder; so does ``python -m selftrain_seg.visualize RUN``.
"""

from selftrain_seg.visualize.about import record_about, record_progress
from selftrain_seg.visualize.charts import class_bars, curves
from selftrain_seg.visualize.colours import colorize, overlay
from selftrain_seg.visualize.maps import confidence_map, selection_map
from selftrain_seg.visualize.records import record_picture, record_round, record_step
from selftrain_seg.visualize.report import report
from selftrain_seg.visualize.sheets import crop_sheet, image_sheet, mixing_sheet

__all__ = [
    "class_bars",
    "colorize",
    "confidence_map",
    "crop_sheet",
    "curves",
    "image_sheet",
    "mixing_sheet",
    "overlay",
    "record_about",
    "record_picture",
    "record_progress",
    "record_round",
    "record_step",
    "report",
    "selection_map",
]
