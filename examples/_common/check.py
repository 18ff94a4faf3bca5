"""Which weights to keep, by the mIoU on restyled source images: no target label is seen.

What was measured lies in ``check.json``, so a run that was killed comes to the same verdict.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from torch import nn

from _common.files import pending, save_json, settle
from selftrain_seg.stopping import RoundCheck
from selftrain_seg.visualize import record_step

if TYPE_CHECKING:
    from _common.run import Run

SCORE = "mIoU on restyled source"
_FILE, _WEIGHTS = "check.json", "kept.pt"


def keep_if_better(
    net: nn.Module, score: float, true_score: float | None, where: str, run: Run, *, before: bool
) -> None:
    """Note a score, and keep the weights in ``kept.pt`` if none before are as good.

    A place that an earlier attempt has noted stays as it is: the weights kept may be that attempt's, and where training
    is not repeated bit by bit, as on a GPU, those of this attempt are others.

    Args:
        net: as it was scored.
        score: mIoU on restyled source images.
        true_score: mIoU on validation images, if there are any; it decides nothing.
        where: "round 2", say.
        run: what was scored in an earlier attempt lies in its folder.
        before: whether the network has not been trained yet.
    """
    if math.isnan(score):
        raise SystemExit("--check: no pixel of the held-out source images has a class: more --check-images")
    if not run.main:
        return
    entries, weights, tolerance = _entries(run), run.out / _WEIGHTS, run.settings.check_tolerance
    settle(weights, place_of(_judged(entries, tolerance)[1]) if entries else None)
    new = {"at": where, "step": run.steps_done, "before": before, SCORE: score, "mIoU": true_score}
    for entry in entries:
        if place_of(entry) == place_of(new):
            run.say(f"{where}: {SCORE} {entry[SCORE]:.1f} in an earlier attempt, which counts")
            return
    entries.append(new)
    entries.sort(key=lambda entry: entry["step"])
    start, kept, _ = _judged(entries, tolerance)
    run.say(f"{where}: {SCORE} {score:.1f}" + (f", {score - start[SCORE]:+.1f} over {start['at']}" * (not before)))
    record_step(run.out, run.steps_done, {SCORE: score})
    if kept is new:
        run.save_weights(net, pending(weights, place_of(new)).name)
    save_json(entries, run.out / _FILE)
    settle(weights, place_of(kept))


def verdict(run: Run) -> dict[str, Any]:
    """Say which weights were kept and why; returns it for ``result.json``. Empty without ``--check``."""
    entries = _entries(run)
    if not entries:
        return {}
    tolerance = run.settings.check_tolerance
    start, kept, others = _judged(entries, tolerance)
    settle(run.out / _WEIGHTS, place_of(kept))
    if kept is not start:
        text = f"kept: {kept['at']}, {SCORE} {kept[SCORE]:.1f}, {kept[SCORE] - start[SCORE]:+.1f} over {start['at']}"
    elif others:
        best = max(others, key=lambda entry: entry[SCORE])
        noise, loss = f"a gain of {tolerance:g} or less is noise", f"it may fall by less than {-tolerance:g}"
        rule = noise if tolerance >= 0 else loss
        text = (
            f"adaptation is not helping here: keep the network before training ({start['at']}); {SCORE} "
            f"{start[SCORE]:.1f}, at best {best[SCORE]:.1f} since ({best['at']}), and {rule}"
        )
    else:
        text = f"kept: {start['at']}, {SCORE} {start[SCORE]:.1f}"
    run.say(f"{text}; weights in {run.out / _WEIGHTS}")
    return {"kept": kept["at"], "verdict": text, "kept mIoU": kept["mIoU"]}


def _entries(run: Run) -> list[dict[str, Any]]:
    path = run.out / _FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def place_of(entry: dict[str, Any]) -> str:
    """Name of what was scored: two rounds of one name differ in their steps."""
    return f"{entry['at']} {entry.get('step')}"


def _judged(entries: list[dict[str, Any]], tolerance: float) -> tuple[dict[str, Any], dict[str, Any], list[Any]]:
    """Return the better of the networks before training, the one to keep, and all those after training has begun."""
    start = max((entry for entry in entries if entry["before"]), key=lambda entry: entry[SCORE])
    others = [entry for entry in entries if not entry["before"]]
    if not others:
        return start, start, others
    check = RoundCheck(SCORE)
    for number, entry in enumerate(others):
        check.record(number, {SCORE: entry[SCORE]})
    best = others[check.verdict().best]
    # Adaptation as a whole must gain more than the tolerance, or may lose less; of what came after, the best is kept.
    return start, best if best[SCORE] > start[SCORE] + tolerance else start, others
