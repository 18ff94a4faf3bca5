"""Draw the synthetic benchmark into a folder, once for all runs that use the folder."""

from __future__ import annotations

import contextlib
import errno
import glob
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from _common.files import digest_of

import selftrain_seg
from selftrain_seg.datasets import SyntheticStreets

if TYPE_CHECKING:
    from _common.run import Run
    from _common.settings import Settings

_DAY = 24 * 60 * 60  # seconds; no run draws for so long
_INCOMPLETE = {"incomplete", "source", "target"}  # what an older version leaves if it is killed while drawing


def draw_streets(settings: Settings, run: Run) -> Path:
    """Draw the benchmark in the layouts of GTA5 and Cityscapes; returns its folder.

    Exits if the folder holds other files, or a benchmark with another seed, other numbers of images or of other code.
    """
    source, target, val = settings.images
    code = digest_of(sorted((Path(selftrain_seg.__file__).parent / "datasets").glob("*streets*.py")))
    root = settings.root or Path("runs") / "streets" / f"seed{settings.seed}-{source}-{target}-{val}-{code}"
    asked = f"--seed {settings.seed} --images {source} {target} {val}, code {code}"
    if run.main and _must_draw(root):
        run.say(f"drawing the synthetic benchmark into {root}")
        seed = {"seed": settings.seed}
        with _whole_folder(root) as folder:
            SyntheticStreets("source", "train", length=source, **seed).export(folder / "source", "gta5", progress=True)
            SyntheticStreets("target", "train", length=target, **seed).export(folder / "target", progress=True)
            SyntheticStreets("target", "val", length=val, **seed).export(folder / "target", progress=True)
            (folder / "complete").write_text(asked, encoding="utf-8")
    if run.world > 1:
        torch.distributed.barrier()
    drawn = (root / "complete").read_text(encoding="utf-8")
    if settings.root is not None and drawn != asked:  # the name of the default folder tells them apart
        raise SystemExit(
            f"--root {root}: holds the benchmark of {drawn}; expected {asked}: choose another folder, or remove it"
        )
    return root


def draw_held_out(root: Path, settings: Settings, run: Run) -> Path:
    """Draw new source images of the benchmark in ``root`` to hold out; returns their folder."""
    folder = root / f"held-out-{settings.check_images}"
    if run.main and not folder.exists():
        with _whole_folder(folder) as drawn:
            SyntheticStreets("source", "val", length=settings.check_images, seed=settings.seed).export(drawn, "gta5")
    if run.world > 1:
        torch.distributed.barrier()
    return folder


def _must_draw(root: Path) -> bool:
    """Return whether a folder is empty or absent; remove an incomplete benchmark; exit if there are other files."""
    try:
        found = {path.name for path in root.iterdir()}
    except FileNotFoundError:
        return True
    if "complete" in found:
        return False
    if found and not {"incomplete"} <= found <= _INCOMPLETE:
        raise SystemExit(f"--root {root}: has files that are not of the synthetic benchmark; for real data set --data")
    if found:
        folder = root.resolve()
        removed = _unfinished(folder)
        with contextlib.suppress(FileNotFoundError):  # another run has removed it
            folder.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)
    return True


@contextlib.contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder that is renamed to ``folder`` at the end; it is removed if another run has come first."""
    folder = folder.resolve()  # behind a link
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.*.unfinished"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _DAY:  # of a killed run
                shutil.rmtree(left)
    unfinished = _unfinished(folder)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        with contextlib.suppress(OSError):
            folder.rmdir()  # if it is empty; Windows does not replace folders
        try:
            unfinished.rename(folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _unfinished(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.unfinished")
