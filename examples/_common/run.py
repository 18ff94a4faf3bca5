"""What surrounds a training loop: processes, precision, checkpoints, progress."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import time
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from _common.arguments import check
from _common.data import save_atomically, save_json
from selftrain_seg.distributed import all_reduce_sum
from selftrain_seg.visualize import record_step, report

AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Arguments that may differ when a run goes on: they say where it runs and what it tells, not what training does.
_MAY_CHANGE = ("out", "rounds", "device", "workers", "threads", "checkpoint_every", "log_every", "scales", "flip")
# They may have moved; ``Run.check_data`` looks at what is in them.
_FOLDERS = (
    *("root", "source_root", "source_images", "source_masks", "target_images", "target_masks", "val_images"),
    *("val_masks", "source_names", "target_names", "val_names", "classes"),
)


class Run:
    """One run, of one process or of many under ``torchrun``.

    Everything random in a step is drawn from (seed, stage, step), never from what happened before, so a killed run
    that starts again from its last checkpoint does what it would have done.
    """

    def __init__(self, args: Namespace) -> None:
        check(args)
        self.args, self.out, self.started = args, args.out, time.time()
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        cuda = torch.cuda.is_available()
        self.device = torch.device(args.device if args.device != "auto" else "cuda" if cuda else "cpu")
        if self.device.type == "cuda":
            if self.device.index is None:
                self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(self.device)
        torch.set_num_threads(args.threads)
        if self.world > 1:
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        if args.batch % self.world:
            raise SystemExit(f"--batch {args.batch} cannot be shared by {self.world} processes")
        self.main = self.rank == 0
        self.out.mkdir(parents=True, exist_ok=True)
        self._check_arguments()
        self.board = SummaryWriter(self.out / "tensorboard") if self.main else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=args.amp == "fp16")
        self._passes = self._pictures = 0

    def seed(self, *place: Any) -> int:
        """Return the seed that belongs to a place of this run."""
        digest = hashlib.blake2b(repr((self.args.seed, *place)).encode(), digest_size=7).digest()
        return int.from_bytes(digest, "big")

    def say(self, text: str) -> None:
        """Print on the first rank."""
        if self.main:
            tqdm.write(text)

    def scalars(self, step: int, **values: Tensor | float) -> None:
        """Write numbers, averaged over ranks, for TensorBoard and the report every so often. All ranks must call it."""
        if step % self.args.log_every == 0:
            numbers = torch.stack([torch.as_tensor(value).detach().float().cpu() for value in values.values()])
            means = all_reduce_sum(numbers) / self.world
            if self.board is not None:
                named = dict(zip(values, means.tolist(), strict=True))
                for name, value in named.items():
                    self.board.add_scalar(name, value, step)
                record_step(self.out, step, named)

    def picture(self, name: str, image: Tensor) -> None:
        """Write an image (3, H, W), uint8 or in [0, 1], to TensorBoard, numbered in the order of coming."""
        if self.board is not None:
            self._pictures += 1
            self.board.add_image(name, image, self._pictures)

    def wrap(self, net: nn.Module) -> nn.Module:
        """Make a network ready for training: DistributedDataParallel and torch.compile where asked for."""
        if self.world > 1:
            if self.device.type == "cuda" and not self.args.frozen_bn:
                net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
            # The domains go through the network apart, so BatchNorm's buffers are averaged afterwards, not sent before.
            net = DistributedDataParallel(net, broadcast_buffers=False)
        return torch.compile(net) if self.args.compile else net

    @contextlib.contextmanager
    def forward(self, *nets: nn.Module) -> Iterator[None]:
        """Automatic mixed precision, and no communication before the last of the accumulated passes."""
        last = (self._passes + 1) % self.args.accumulate == 0
        dtype = AMP.get(self.args.amp)
        with contextlib.ExitStack() as stack:
            if not last and self.world > 1:
                for net in nets:
                    stack.enter_context(getattr(net, "_orig_mod", net).no_sync())
            stack.enter_context(torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None))
            try:
                yield
            except ValueError as error:
                raise said(error) from None

    def learn(
        self, loss: Tensor, optimizer: torch.optim.Optimizer, schedule: Any, *more: tuple[torch.optim.Optimizer, Any]
    ) -> bool:
        """Backward; after ``--accumulate`` of them step optimizer and schedule. Returns whether they stepped.

        ``more`` pairs of optimizer and schedule step along: those of a discriminator, say, whose loss is in the sum.
        """
        self.scaler.scale(loss / self.args.accumulate).backward()
        self._passes += 1
        if self._passes % self.args.accumulate:
            return False
        pairs = ((optimizer, schedule), *more)
        for one, _ in pairs:
            self.scaler.step(one)
        self.scaler.update()
        for one, its_schedule in pairs:
            one.zero_grad()
            its_schedule.step()
        return True

    def mean(self, total: Tensor, count: Tensor) -> Tensor:
        """Divide a sum by the count of all ranks, so that averaging gradients over ranks gives that of one process."""
        return total * self.world / all_reduce_sum(count).clamp(min=1)

    def steps(self, stage: str, total: int, **state: Any) -> Iterator[int]:
        """Yield the steps of a stage that are still to do; keep ``state`` every so often and at the end.

        Args:
            stage: its name, unique in this run.
            total: its steps.
            state: what has a ``state_dict``; loaded from the last checkpoint, if there is one.
        """
        state["scaler"] = self.scaler
        start = self._load(stage, state)
        bar = tqdm(range(start, total), stage, total, initial=start, unit="step", leave=False, disable=self._quiet())
        for step in bar:
            self._passes = 0
            seed = self.seed(stage, step, self.rank)
            torch.manual_seed(seed)
            random.seed(seed)
            yield step
            if (step + 1) % self.args.checkpoint_every == 0 or step + 1 == total:
                self._save(stage, step + 1, state)

    def resumed(self) -> bool:
        """Tell whether there is any checkpoint to go on from."""
        return any((self.out / "checkpoints").glob("*.pt"))

    def begun(self, stage: str) -> bool:
        """Tell whether there is a checkpoint of a stage to go on from."""
        return any(self._complete(stage, step) for step, _ in self._checkpoints(stage))

    def average_buffers(self, net: nn.Module) -> None:
        """Give all ranks the same BatchNorm statistics."""
        for buffer in net.buffers():
            if self.world > 1 and buffer.is_floating_point():
                buffer.copy_(all_reduce_sum(buffer) / self.world)

    def finish(self, net: nn.Module, results: dict[str, Any]) -> None:
        """Write the network's weights, ``result.json`` and ``report.html``."""
        memory = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else _peak_resident()
        results = {
            "data": self.args.data,
            "seed": self.args.seed,
            "seconds": time.time() - self.started,
            "peak_memory_mb": memory / 1e6,
            **results,
        }
        if self.main:
            save_atomically({name: tensor.cpu() for name, tensor in net.state_dict().items()}, self.out / "model.pt")
            save_json(results, self.out / "result.json")
            self.board.close()
            self.say(f"report: {report(self.out)}")
        if self.world > 1:
            dist.destroy_process_group()

    def _check_arguments(self) -> None:
        """What is there was made with these very arguments, or there is nothing yet."""
        path = self.out / "arguments.json"
        named = {name: value for name, value in vars(self.args).items() if name not in _MAY_CHANGE}
        folders = {name: str(named.pop(name)) for name in _FOLDERS if named.get(name) is not None}
        asked = {name: value for name, value in named.items() if name not in (*_FOLDERS, "smoke")}
        asked = json.loads(json.dumps({**asked, "processes": self.world}, default=str))
        kept = {**asked, **folders, **({"smoke": True} if self.args.smoke else {})}
        begun = any(self.out.glob("checkpoints/*.pt")) or any(self.out.glob("pseudo-labels*/round-*"))
        self._goes_on, self._begun_with = begun, ""
        if begun and path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            if found.get("smoke", False) != self.args.smoke:
                self._begun_with = f"{'without ' if self.args.smoke else ''}--smoke; "
            changed = [name for name, value in asked.items() if found.get(name) != value]
            if changed:
                what = "; ".join(f"{name} {found.get(name)}, now {asked[name]}" for name in changed)
                raise SystemExit(
                    f"{self.out} was begun with {self._begun_with}{what}: choose another --out, or remove the folder"
                )
            if self.main:
                save_json({**found, **folders}, path)  # where the data is now
        elif self.main:
            # What an attempt that never came to a checkpoint told about itself is not part of this run.
            told = (
                "steps.jsonl",
                "rounds/**/round-*.json",
                "pictures/*.png",
                "source-masks.json",
                "data.json",
                "seen/*.pt",
            )
            for pattern in told:
                for old in self.out.glob(pattern):
                    old.unlink()
            save_json(kept, path)

    def check_data(self, parts: dict[str, str]) -> None:
        """Refuse to go on with other data than the run was begun with.

        Args:
            parts: a digest of each part of the data; it is kept in ``data.json``.
        """
        if not self.main:
            return
        path = self.out / "data.json"
        if self._goes_on and path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            changed = [name for name in {**found, **parts} if found.get(name) != parts.get(name)]
            if changed:
                raise SystemExit(
                    f"{self.out} was begun with {self._begun_with}other data ({', '.join(changed)}: names or sizes of "
                    "files differ): give the same files, choose another --out, or remove the folder"
                )
        save_json(parts, path)

    def _quiet(self) -> bool | None:
        return None if self.main else True  # None: no bar where the output is no terminal

    def _checkpoint(self, stage: str, step: int, rank: int) -> Any:
        return self.out / "checkpoints" / f"{stage}-{step:06d}-rank{rank}of{self.world}.pt"

    def _complete(self, stage: str, step: int) -> bool:
        return all(self._checkpoint(stage, step, rank).exists() for rank in range(self.world))

    def _save(self, stage: str, step: int, state: dict[str, Any]) -> None:
        """Each rank writes its own file; what came before goes when all have."""
        content = {name: thing.state_dict() for name, thing in state.items()}
        save_atomically(content, self._checkpoint(stage, step, self.rank))
        if self.world > 1:
            dist.barrier()
        for path in self._checkpoints(stage):
            if path[0] < step and f"rank{self.rank}of" in path[1].name:
                path[1].unlink()

    def _checkpoints(self, stage: str) -> list[tuple[int, Any]]:
        folder, start = self.out / "checkpoints", f"{stage}-"
        found = [path for path in folder.iterdir() if path.name.startswith(start)] if folder.exists() else []
        return sorted((int(path.name[len(start) :].split("-")[0]), path) for path in found if path.suffix == ".pt")

    def _load(self, stage: str, state: dict[str, Any]) -> int:
        if self.world > 1:
            dist.barrier()
        for half in (self.out / "checkpoints").glob(f"{stage}-*-rank{self.rank}of{self.world}.pt.*.tmp"):
            half.unlink()  # of a process that was killed while it wrote
        for step in sorted({step for step, _ in self._checkpoints(stage)}, reverse=True):
            if self._complete(stage, step):
                path = self._checkpoint(stage, step, self.rank)
                saved = torch.load(path, map_location=self.device, weights_only=True)
                for name, thing in state.items():
                    thing.load_state_dict(saved[name])
                self.say(f"{stage}: goes on after step {step} (from {path})")
                return step
        return 0


def said(error: Exception) -> Exception:
    """Say what to do about BatchNorm that gets one value a channel; other errors are returned as they are."""
    if "more than 1 value per channel" not in str(error):
        return error
    return SystemExit(
        f"BatchNorm of pooled features cannot learn from one image at a time ({error}): a larger --batch, --resize "
        "where images have sizes of their own, --frozen-bn or --reestimate-bn 0"
    )


def _peak_resident() -> float:
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
