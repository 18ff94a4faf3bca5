"""Trackers by name: a run that resumes continues its run at Weights & Biases or MLflow, too."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from _common.files import save_json

if TYPE_CHECKING:
    from accelerate import Accelerator

    from _common.settings import Settings


def start_tracker(accelerator: Accelerator, settings: Settings, resumed: bool) -> None:
    """Start the tracker of ``--tracker``. The id that it gives to the run is kept in ``tracker.json``.

    Weights & Biases and MLflow get the settings as the run's parameters; TensorBoard has no place for them.
    """
    name, path = settings.tracker, settings.out / "tracker.json"
    if accelerator.is_main_process and not resumed:
        path.unlink(missing_ok=True)  # of a run that was here before
    if name not in ("wandb", "mlflow"):
        accelerator.init_trackers("tensorboard")
        return
    kept = json.loads(path.read_text(encoding="utf-8")) if resumed and path.exists() else {}
    known = kept.get("id") if kept.get("tracker") == name else None
    options: dict[str, Any] = {"run_name": settings.out.name, "run_id": known}
    if name == "wandb":
        options = {"name": settings.out.name, "dir": str(settings.out)}
        options |= {} if known is None else {"id": known, "resume": "allow"}
    config = None if known else {field: str(value) for field, value in dataclasses.asdict(settings).items()}
    accelerator.init_trackers("selftrain-seg", config, {name: options})
    if accelerator.is_main_process and known is None:
        run = accelerator.get_tracker(name, unwrap=True)
        save_json({"tracker": name, "id": run.id if name == "wandb" else run.info.run_id}, path)
