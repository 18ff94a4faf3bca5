"""The scores of a run, in ``scores.json``, and the weights that scored best, in ``best.pt`` and ``kept.pt``.

``best.pt`` has the highest mIoU on validation images; ``--check`` chooses ``kept.pt`` without target labels. Both
follow from the list of scores, so a run that is killed and resumed comes to the same weights.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from _common.files import save_json, save_weights
from selftrain_seg.stopping import RoundCheck
from selftrain_seg.visualize import record_step

if TYPE_CHECKING:
    from _common.run import Run

SCORE = "mIoU on restyled source"
_FILE, _BEST, _KEPT = "scores.json", "best.pt", "kept.pt"

Entry = dict[str, Any]


def record_score(
    net: nn.Module, name: str, run: Run, *, before: bool, miou: float | None, restyled: float | None
) -> None:
    """Add a score to ``scores.json``, and save the weights if they are the best so far.

    A score that an earlier attempt has recorded at the same step stays. Its weights may be saved already, and on a GPU
    the network of this attempt may differ from them.

    Args:
        net: the network that was scored.
        name: of the evaluation, such as "round 2".
        run: its folder holds the earlier scores.
        before: whether the network is not trained yet.
        miou: mIoU on validation images; None without any.
        restyled: mIoU on restyled source images; None without ``--check``.
    """
    if not run.main or (miou is None and restyled is None):
        return
    entries = _read(run)
    if restyled is not None and not before and not any(entry["before"] for entry in entries):
        raise SystemExit(f"{run.out / _FILE}: no score before training: choose another --out, or remove the folder")
    _settle(entries, run)
    miou = None if miou is None or math.isnan(miou) else miou
    new = {"at": name, "step": run.steps_done, "before": before, "mIoU": miou, SCORE: restyled}
    earlier = next((entry for entry in entries if _place(entry) == _place(new)), None)
    if earlier is not None:
        if restyled is not None:
            run.say(f"{name}: {SCORE} {earlier[SCORE]:.1f}, as recorded before")
        return
    entries = sorted([*entries, new], key=lambda entry: entry["step"])
    if restyled is not None:
        start, _, _ = _judge(entries, run)
        run.say(
            f"{name}: {SCORE} {restyled:.1f}" + f", {restyled - start[SCORE]:+.1f} over {start['at']}" * (not before)
        )
        record_step(run.out, run.steps_done, {SCORE: restyled})
    for file, entry in _chosen(entries, run).items():
        if entry is new:
            save_weights(net, _pending(run.out / file, new))
    save_json(entries, run.out / _FILE)
    _settle(entries, run)


def best_round(start: float, scores: Sequence[float], tolerance: float) -> int | None:
    """Return the index of the best score, or None if it is not above ``start`` by more than the tolerance.

    The tolerance is for training as a whole. Among the trained networks, the best is kept.
    """
    if not scores:
        return None
    check = RoundCheck(SCORE)
    for number, score in enumerate(scores):
        check.record(number, {SCORE: score})
    best = check.verdict().best
    return best if scores[best] > start + tolerance else None


def best_scores(run: Run) -> dict[str, Any]:
    """Print which weights scored best and which ``--check`` keeps; returns the entries of ``result.json``."""
    entries = _read(run)
    _settle(entries, run)
    chosen, results = _chosen(entries, run), {}
    if best := chosen.get(_BEST):
        run.say(f"best: {best['at']}, mIoU {best['mIoU']:.1f}; weights in {run.out / _BEST}")
        results |= {"best mIoU": best["mIoU"], "best at": best["at"]}
    if kept := chosen.get(_KEPT):
        text = _verdict(entries, run)
        run.say(f"{text}; weights in {run.out / _KEPT}")
        results |= {"kept": kept["at"], "verdict": text, "kept mIoU": kept["mIoU"]}
    return results


def _verdict(entries: list[Entry], run: Run) -> str:
    start, kept, trained = _judge(entries, run)
    if kept is not start:
        return f"kept: {kept['at']}, {SCORE} {kept[SCORE]:.1f}, {kept[SCORE] - start[SCORE]:+.1f} over {start['at']}"
    if not trained:
        return f"kept: {start['at']}, {SCORE} {start[SCORE]:.1f}"
    best, tolerance = max(trained, key=lambda entry: entry[SCORE]), run.settings.check_tolerance
    noise, loss = f"a gain of {tolerance:g} or less is noise", f"it may fall by less than {-tolerance:g}"
    return (
        f"adaptation is not helping here: keep the network before training ({start['at']}); {SCORE} "
        f"{start[SCORE]:.1f}, at best {best[SCORE]:.1f} since ({best['at']}), and {noise if tolerance >= 0 else loss}"
    )


def _judge(entries: list[Entry], run: Run) -> tuple[Entry, Entry, list[Entry]]:
    """Return the best network before training, the network to keep, and all trained ones."""
    start = max((entry for entry in entries if entry["before"]), key=lambda entry: entry[SCORE])
    trained = [entry for entry in entries if not entry["before"]]
    best = best_round(start[SCORE], [entry[SCORE] for entry in trained], run.settings.check_tolerance)
    return start, start if best is None else trained[best], trained


def _chosen(entries: list[Entry], run: Run) -> dict[str, Entry]:
    """Map each file of weights to its score."""
    chosen = {}
    measured = [entry for entry in entries if entry["mIoU"] is not None]
    if measured:
        chosen[_BEST] = max(measured, key=lambda entry: entry["mIoU"])
    if entries and entries[0][SCORE] is not None:
        chosen[_KEPT] = _judge(entries, run)[1]
    return chosen


def _read(run: Run) -> list[Entry]:
    path = run.out / _FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def _place(entry: Entry) -> str:
    """Return the name and step of an evaluation: two rounds of one name differ in their steps."""
    return f"{entry['at']} {entry['step']}"


def _pending(weights: Path, entry: Entry) -> Path:
    """Return the name that weights have until their score is recorded: ``.kept-round-2-240.pt`` for ``kept.pt``."""
    return weights.with_name(f".{weights.stem}-{re.sub(r'[^a-z0-9]+', '-', _place(entry).lower())}{weights.suffix}")


def _settle(entries: list[Entry], run: Run) -> None:
    """Rename the pending weights that the recorded scores choose, and remove all others.

    Weights are written under a pending name, then the scores, and then this function renames the weights. A run that
    was killed in between calls it before it writes anything, so weights and scores always belong together.
    """
    chosen = _chosen(entries, run)
    for file in (_BEST, _KEPT):
        weights = run.out / file
        for pending in run.out.glob(f".{weights.stem}-*"):
            if file in chosen and pending == _pending(weights, chosen[file]):
                pending.replace(weights)
            else:
                pending.unlink()
