"""Checkpoints: folders that are complete or absent, of which only the last one stays."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from _common.run import Run

_PROGRESS = "progress.json"


def save_checkpoint(run: Run) -> None:
    """Save a checkpoint: networks, optimizers and the gradient scaler once, other state for each process.

    The state of a process is BatchNorm's statistics and the registered objects.
    """
    folder = run.out / "checkpoints"
    complete, temporary = folder / f"{run.stage}-{run.step:06d}", folder / ".tmp"
    if run.main:
        for old in (complete, temporary):
            shutil.rmtree(old, ignore_errors=True)
        temporary.mkdir(parents=True)
    run.accelerator.wait_for_everyone()
    run.accelerator.save_state(str(temporary), safe_serialization=False)
    state: dict[str, Any] = {name: member.state_dict() for name, member in run.registered.items()}
    state["buffers"] = [dict(net.named_buffers()) for net in run.networks]
    torch.save(state, temporary / _file_of(run))
    run.accelerator.wait_for_everyone()
    if run.main:
        progress = {"stage": run.stage, "step": run.step, "finished": run.finished, "seconds": run.seconds}
        (temporary / _PROGRESS).write_text(json.dumps(progress))
        for path in temporary.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        temporary.rename(complete)
        for path in folder.iterdir():
            if path.is_dir() and path != complete:  # a file is not ours, such as .DS_Store
                shutil.rmtree(path)


def load_checkpoint(run: Run) -> Path | None:
    """Load the last checkpoint into a run; returns its folder, or None if there is none."""
    found = {path.parent: json.loads(path.read_text()) for path in run.out.glob(f"checkpoints/[!.]*/{_PROGRESS}")}
    if not found:
        return None
    last = max(found, key=lambda folder: sum(found[folder]["finished"].values()) + found[folder]["step"])
    run.accelerator.load_state(str(last))
    state = torch.load(last / _file_of(run), map_location=run.device, weights_only=True)
    for net, buffers in zip(run.networks, state["buffers"], strict=True):
        net.load_state_dict(buffers, strict=False)
    for name, member in run.registered.items():
        member.load_state_dict(state[name])
    run.stage, run.step, run.finished = (found[last][name] for name in ("stage", "step", "finished"))
    run.seconds_before = found[last].get("seconds", 0.0)
    return last


def _file_of(run: Run) -> str:
    return f"rank{run.rank}of{run.world}.pt"
