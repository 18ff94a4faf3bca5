"""Check the numbers of a command line, for trainers, ``predict.py`` and ``evaluate.py``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The options of --data folders.
FOLDERS = {f"{part}_{what}" for part in ("source", "target", "val") for what in ("images", "masks", "names")}
FOLDERS |= {"classes"}

_AMOUNTS = "seed|steps|warmup_steps|rounds|workers|eval_every|predict_batch|pastes|ignored_rows|weight_decay"
_AMOUNTS += r"|\w+_weight|head_factor|(source_)?alpha|gamma(_\w+)?|focal|negative|prior_sigma|rare_temperature"
_COUNTS = "batch|accumulate|threads|checkpoint_every|log_every|channels|refresh|turn|stride|views|teacher_every|patch"
_COUNTS += "|labelled_batch|check_images|images|labelled|white|judge_width|paste_pixels"
_SHARES = r"(running_)?momentum|threshold|upper|\w+_(chance|share)|mask_ratio|uniform|drop|rare_from_source"
_RANGES = "scale_range|view_scale|zoom|blur_sigma"
# Pattern of setting names, condition on the numbers, and its description.
_RULES: tuple[tuple[str, Callable[..., bool], str], ...] = (
    (_AMOUNTS, lambda *values: all(0 <= value < math.inf for value in values), "at least 0"),
    (_COUNTS, lambda *values: min(values) >= 1, "at least 1"),
    (_SHARES, lambda value: 0 <= value <= 1, "a share from 0 to 1"),
    (_RANGES, lambda low, high: 0 < low <= high <= 100, "two numbers above 0, up to 100, the smaller one first"),
    ("box_area|part", lambda low, high: 0 <= low <= high <= 1, "two shares from 0 to 1, the smaller one first"),
    ("(largest_)?crop|tile|(train_)?resize", lambda *sides: min(sides) >= 1, "a height and a width of at least 1"),
    (r"(\w+_)?lr|lr_decay|decay_over|temperature", lambda value: 0 < value < math.inf, "a number above 0"),
    (
        "(label_)?scales|lr_factors|dynamic_update",
        lambda *values: values and all(0 < value < math.inf for value in values),
        "numbers above 0",
    ),
    ("check_tolerance", math.isfinite, "a finite number"),
    ("reestimate_bn", lambda value: value == "auto" or 0 <= value <= 1, "a share from 0 to 1, or auto"),
    ("lr_warmup", lambda value: 0 <= value <= 1, "a share of --steps from 0 to 1"),
    (
        "(colour_)?jitter",
        # A single number is for all four; trainers limit the hue to 0.5, which reaches all hues.
        lambda *values: (
            all(0 <= value < math.inf for value in values)
            and (len(values) == 1 or (max(values) <= 1 and values[-1] <= 0.5))
        ),
        "at least 0; of four numbers each at most 1, and the last, for the hue, at most 0.5",
    ),
    ("overlap", lambda value: 0 <= value < 1, "a share from 0 to less than 1"),
    (
        "(source_)?portion",
        lambda start, step, stop: 0 < start <= stop <= 1 and 0 <= step <= 1,
        "start, step and stop as shares of 1 with start at most stop, such as 0.2 0.05 0.5",
    ),
)


def check(settings: Any) -> None:
    """Exit with an error if a number is out of range, before any file is read."""
    for name, value in vars(settings).items():
        if value is None:
            continue
        option, values = f"--{name.replace('_', '-')}", value if isinstance(value, (list, tuple)) else (value,)
        for names, sound, expected in () if isinstance(value, Path) else _RULES:  # --images of predict.py
            if re.fullmatch(names, name) and not sound(*values):
                raise SystemExit(f"{option} {' '.join(f'{part:g}' for part in values)}: expected {expected}")
        if name in FOLDERS and getattr(settings, "data", "folders") != "folders":
            raise SystemExit(f"{option} needs --data folders")
