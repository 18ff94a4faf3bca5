"""Pictures of labels, confidence, selection, crops and mixing, and an HTML report of a run.

``colorize`` and ``overlay`` are plain torch. Functions that draw a figure need matplotlib
(``pip install "selftrain-seg[visualize]"``) and return a ``matplotlib.figure.Figure`` without using pyplot;
``figure.savefig("picture.png", dpi=150)`` writes it. The host reads the values, so do not draw in every step.
``report`` writes one HTML file for a run folder, as does ``python -m selftrain_seg.visualize RUN``.
"""

from selftrain_seg.visualize.about import record_about, record_progress
from selftrain_seg.visualize.bar_charts import class_bars
from selftrain_seg.visualize.colours import colorize, overlay
from selftrain_seg.visualize.line_charts import curves
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
