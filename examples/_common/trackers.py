"""Start experiment trackers. A resumed run continues its run at Weights & Biases or MLflow."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import TYPE_CHECKING, Any

from _common.files import save_json

if TYPE_CHECKING:
    from accelerate import Accelerator

    from _common.settings import Settings

_STORE = "MLFLOW_TRACKING_URI"


def start_tracker(accelerator: Accelerator, settings: Settings, resumed: bool) -> None:
    """Start the tracker of ``--tracker``, and save the id of its run in ``tracker.json``.

    Weights & Biases and MLflow also get the settings. MLflow's default store is in the working folder, so its address
    is saved too: a run may be resumed from another folder.
    """
    name, path = settings.tracker, settings.out / "tracker.json"
    if accelerator.is_main_process and not resumed:
        path.unlink(missing_ok=True)  # of an earlier run in this folder
    if name not in ("wandb", "mlflow"):
        accelerator.init_trackers("tensorboard")
        return
    kept = json.loads(path.read_text(encoding="utf-8")) if resumed and path.exists() else {}
    known = kept.get("id") if kept.get("tracker") == name else None
    options: dict[str, Any] = {"run_name": settings.out.name, "run_id": known}
    if name == "wandb":
        options = {"name": settings.out.name, "dir": str(settings.out)}
        options |= {} if known is None else {"id": known, "resume": "allow"}
    if name == "mlflow" and known and "store" in kept:
        os.environ.setdefault(_STORE, kept["store"])
    config = None if known else {field: str(value) for field, value in dataclasses.asdict(settings).items()}
    try:
        accelerator.init_trackers("selftrain-seg", config, {name: options})
    except Exception as error:  # each package has its own types
        advice = f"; delete {path} to start a new run there" if known else ""
        raise SystemExit(f"--tracker {name}: {error}{advice}") from error
    if accelerator.is_main_process and known is None:
        run = accelerator.get_tracker(name, unwrap=True)
        made = {"tracker": name, "id": run.id if name == "wandb" else run.info.run_id}
        if name == "mlflow" and _STORE not in os.environ:
            from mlflow import get_tracking_uri

            made["store"] = get_tracking_uri()
        save_json(made, path)
