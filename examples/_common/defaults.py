"""Defaults of the trainers, from ``examples/settings.json``.

For each setting, the table has the published value with its file or section, our value, and the reason if they differ.
Its columns are data sets, and networks that need other settings than the papers'. ``docs/make_settings.py`` makes the
page "Settings" from it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parents[1] / "settings.json"

_FALLBACKS = ("gta5", "voc")  # used for other data; dst_cbc and unimatch have no settings for gta5
_CITYSCAPES = ("gta5", "synthia", "cityscapes")  # data sets whose results are measured on Cityscapes
# Settings of gta5 that fit images of Cityscapes only.
_SIZES = ("resize", "train_resize", "scales", "label_scales", "ignored_rows", "prior_sigma")


def defaults(trainer: str, data: str, network: str) -> dict[str, Any]:
    """Return our settings of a trainer.

    Args:
        trainer: name of its script without ``.py``; a script that is not in the table gets no settings.
        data: ``--data``. A setting without a column for it, such as any of ``bdd100k``, is that of ``gta5``, or else of
            ``voc``; image sizes only if the data is measured on Cityscapes.
        network: ``small-unet`` has its own settings on any data, chosen on the synthetic benchmark. With other
            networks, the synthetic benchmark has the settings of ``gta5``. If the table has a column for a network, it
            is used before that of the data, but after that of ``folders``, which holds for any network.

    Returns:
        Setting -> value, lists as tuples.
    """
    if network == "small-unet":
        columns = ["streets"]
    elif data == "folders":
        columns = ["folders", network, *_FALLBACKS]
    else:
        columns = [network, data, *_FALLBACKS]
        if data == "streets":
            columns.remove(data)
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
