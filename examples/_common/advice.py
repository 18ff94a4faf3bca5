"""Errors of the library in terms of options: its advice about Python arguments is translated."""

from __future__ import annotations

import re
from collections.abc import Mapping

from _common.loading import Unreadable

# Patterns in the errors of selftrain_seg.datasets, and what the users of trainers read instead.
ADVICE = {
    r"`mask_suffix` or `pair` if": "--mask-suffix if",
    r"`unpaired=.* to do without masks": "or --leave-out-unpaired to skip images without a mask",
    r"`names`": "--source-names, --target-names or --val-names",
    r"got (\d+)(.*); `channels=None` keeps all, .* picks three": r"got \1\2; --channels \1 keeps all",
    r"`one_in`": "--labelled",
    r"`mask_suffix`": "--mask-suffix",
    r"`(channels|white|seed)=?`": r"--\1",
    r"`read_masks=\"first\"`|SegmentationFolder\(\.\.\., read_masks=\"ids\"\)": "--read-masks first",
    r"give it some \(LabelMap\.from_colours\)": "give it some (columns r, g, b in a .csv file for --classes)",
    r"verify\(check_meaning=False\)": "--no-check-meaning",
    r"LabelMap\.bdd100k\(\)": "a file for --classes with the ids 0 to 18 (--data folders)",
    r"use the label map of these files": "list them in the file for --classes (--data folders)",
    r"if you trust the file, set PIL\.Image\.MAX_IMAGE_PIXELS .* or cut": "cut",
    r"`(root|images|masks|labels|path|split|label_map)`: ": "",  # the text names the folder or file
    r"`(\w+)`: ": r"\1: ",  # an entry of a file of classes
}


def in_options(error: Exception | str, advice: Mapping[str, str] | None = None) -> str:
    """Translate an error of the library: name options instead of Python arguments.

    Args:
        error: the error, or its text.
        advice: further patterns and their translations, which come before :data:`ADVICE`.
    """
    text = str(error)
    if isinstance(error, Unreadable):  # in a worker, the text contains the whole traceback
        text = text.rstrip().rpartition("\n")[2].rpartition("Unreadable: ")[2]
    for pattern, option in [*(advice or {}).items(), *ADVICE.items()]:
        text = re.sub(pattern, option, text)
    return text


def of_names(domain: str) -> dict[str, str]:
    """Return the advice that names the option of one domain: ``source``, ``target`` or ``val``."""
    return {"`names`": f"--{domain}-names"}
