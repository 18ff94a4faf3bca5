"""What a run was started with: a run resumes only with the same settings and the same data."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from _data.held_out import holds_out

from _common.files import save_json
from _common.numbers import FOLDERS

if TYPE_CHECKING:
    from _common.run import Run

# Settings that may differ when a run is resumed: they do not change training.
_MAY_CHANGE = {"out", "rounds", "device", "workers", "threads", "checkpoint_every", "eval_every", "log_every"}
_MAY_CHANGE |= {"tracker"}
_EVALUATION = {"scales", "flip", "fusion"}  # they change training if scores choose weights or BatchNorm's statistics
_PATHS = FOLDERS | {"root", "source_root"}  # folders may move; ``check_data`` compares their content

# What ``clear_records`` removes.
_RECORDS = ("*.jsonl", "rounds/**/*.json", "pictures/*.png", "seen/*.pt", "source-masks.json", "source-classes.pt")
_RECORDS += ("data.json", "about.json", "scores.json", "best.*", ".best-*", "kept.*", ".kept-*")


def is_resumed(run: Run) -> bool:
    """Return whether the folder of a run holds a checkpoint or pseudo-labels."""
    return any(any(run.out.glob(pattern)) for pattern in ("checkpoints/[!.]*", "pseudo-labels*/round-*"))


def clear_records(run: Run) -> None:
    """Remove the records of an attempt that was killed before its first checkpoint."""
    for pattern in _RECORDS:
        for path in run.out.glob(pattern):
            path.unlink()


def check_settings(run: Run) -> None:
    """Refuse to resume with other settings, or with another number of processes."""
    settings = json.loads(json.dumps({**vars(run.settings), "processes": run.world}, default=str))
    may_change = _MAY_CHANGE if holds_out(run.settings) else _MAY_CHANGE | _EVALUATION
    if getattr(run.settings, "domain", "source") == "source":
        may_change = may_change | {"missing_classes"}  # changes the labels of target images
    asked = {name: value for name, value in settings.items() if name not in may_change}
    changed = _changed(run, "arguments.json", asked, ignored=_PATHS)
    if changed:
        what = "; ".join(f"{name} {value}, now {asked.get(name)}" for name, value in changed.items())
        raise SystemExit(f"{run.out} was begun with {what}: choose another --out, or remove the folder")


def check_data(run: Run, digests: dict[str, str]) -> None:
    """Refuse to resume with other data. The folders may have moved."""
    changed = _changed(run, "data.json", digests)
    if changed:
        raise SystemExit(
            f"{run.out} was begun with other data ({', '.join(changed)}: names or sizes of files differ): give "
            "the same files, choose another --out, or remove the folder"
        )


def _changed(run: Run, file: str, asked: dict[str, Any], ignored: Collection[str] = ()) -> dict[str, Any]:
    """Return the values in a file that differ from those asked for; write the file if none does."""
    path = run.out / file
    found = json.loads(path.read_text(encoding="utf-8")) if run.resumed and path.exists() else asked
    names = [name for name in {**found, **asked} if name not in ignored and found.get(name) != asked.get(name)]
    if run.main and not names:
        save_json(asked, path)
    return {name: found.get(name) for name in names}
