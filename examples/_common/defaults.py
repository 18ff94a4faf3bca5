"""Defaults of the trainers, from ``examples/settings.json``.

The table says of each setting what is published, in which file or section, what we take, and why where the two differ.
Its columns are data sets, and networks that need settings other than the papers'. ``docs/make_settings.py`` makes the
page "Settings" from it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parents[1] / "settings.json"

_FALLBACKS = ("gta5", "voc")  # for data that a trainer is not published for; dst_cbc has no gta5
_CITYSCAPES = ("gta5", "synthia", "cityscapes")  # what is measured on Cityscapes
_SIZES = ("resize", "train_resize", "scales", "label_scales")  # of gta5 they fit the images of Cityscapes


def defaults(trainer: str, data: str, network: str) -> dict[str, Any]:
    """Our settings of a trainer, as far as it offers them.

    Args:
        trainer: name of its script without ``.py``; a script that the table does not have has no settings.
        data: ``--data``. Where data has no column, such as ``bdd100k``, or ``folders`` in most trainers, it has the
            settings of ``gta5``, or else of ``voc``; without image sizes, unless it is measured on Cityscapes.
        network: ``small-unet`` has settings of its own on any data, chosen on the embedded benchmark, which with other
            networks has those of ``gta5``. A network that is a column of the table has the settings of that column
            before those of the data.

    Returns:
        Setting -> value, lists as tuples.
    """
    columns = ("streets",) if network == "small-unet" else (network, *(data, *_FALLBACKS)[data == "streets" :])
    chosen = {}
    for setting, cells in json.loads(TABLE.read_text(encoding="utf-8")).get(trainer, {}).items():
        column = next((column for column in columns if column in cells), None)
        if column is None or cells[column]["ours"] is None:
            continue
        if setting in _SIZES and column not in ("streets", data) and data not in _CITYSCAPES:
            continue
        value = cells[column]["ours"]
        chosen[setting] = tuple(value) if isinstance(value, list) else value
    return chosen
