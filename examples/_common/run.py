"""What surrounds a training loop: processes and precision (by Accelerate), checkpoints, random numbers, progress."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import random
import shutil
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from _data.held_out import holds_out
from _networks.build import parameter_groups
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.tracking import get_available_trackers
from accelerate.utils import ProjectConfiguration, send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from _common.check import place_of, verdict
from _common.files import pending, save_atomically, save_json, settle
from _common.loading import Seeded, StepSampler
from _common.numbers import FOLDERS, check
from _common.progress import peak_resident, progress
from _common.settings import Settings
from _common.trackers import start_tracker
from selftrain_seg.distributed import all_reduce_sum
from selftrain_seg.visualize import record_about, record_step, report

# Settings that may differ when a run is resumed: they say where it runs and what it tells, not what training does.
_MAY_CHANGE = {"out", "rounds", "device", "workers", "threads", "checkpoint_every", "log_every", "tracker"}
_MAY_CHANGE |= {"eval_every", "missing_classes"}
_MEASURED = {"scales", "flip", "fusion"}  # these, too, unless what is measured decides about weights or BatchNorm
# What a run tells about itself.
_TOLD = ("*.jsonl", "rounds/**/*.json", "pictures/*.png", "source-masks.json", "data.json", "about.json", "seen/*.pt")
_TOLD += ("best.*", ".best-*", "check.json", "kept.*", ".kept-*")

# What is left of the learning rate after a share of a schedule.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "poly": lambda share: (1 - share) ** 0.9,
    "linear": lambda share: 1 - share,
    "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
    "constant": lambda share: 1.0,
}

_REPORT_EVERY = 60  # seconds, at least, between reports of a run that is under way

# Newer versions of torch name it otherwise, older ones do not.
warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)


class Run:
    """One run, of one process or of many under ``torchrun`` or ``accelerate launch``.

    Everything random in a step is drawn from (seed, stage, step), never from what happened before, so a run that was
    killed and continues from its last checkpoint does what it would have done.
    """

    def __init__(self, settings: Settings) -> None:
        check(settings)
        self.settings, self.out, self.started = settings, settings.out, time.time()
        if settings.device not in ("auto", "cpu"):
            os.environ["ACCELERATE_TORCH_DEVICE"] = settings.device
        for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
            if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("1", "true"):
                raise SystemExit(f"{name} is not supported: each process trains the whole network (DDP); turn it off")
        tracker = None if settings.tracker == "none" else settings.tracker
        if tracker is not None and tracker not in map(str, get_available_trackers()):
            raise SystemExit(f"--tracker {tracker}: not installed: pip install {tracker}, or --tracker none")
        try:
            self.accelerator = Accelerator(
                # Without an accelerator Accelerate makes no process group unless it is told so.
                cpu=settings.device == "cpu" or (settings.device == "auto" and not torch.accelerator.is_available()),
                mixed_precision=settings.amp,
                gradient_accumulation_steps=settings.accumulate,
                dynamo_backend="inductor" if settings.compile else None,
                log_with=tracker,
                project_config=ProjectConfiguration(str(self.out), logging_dir=str(self.out)),
                # The domains go through the network apart, so BatchNorm's buffers are averaged afterwards.
                kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
            )
        except ValueError as error:
            raise SystemExit(f"--amp {settings.amp}, --device {settings.device}: {error}") from None
        # Gradients are exchanged and optimizers step in the last pass of a step only; losses are scaled for fp16 and by
        # the number of passes; mixed precision for networks that ``prepare`` has not seen, such as teachers.
        self.accumulate, self.backward = self.accelerator.accumulate, self.accelerator.backward
        self.autocast = self.accelerator.autocast
        device = self.accelerator.device
        self.device = torch.device("cpu") if device.type == "cpu" else device  # not cpu:0, which torch.load refuses
        self.rank = self.accelerator.process_index
        self.world, self.main = self.accelerator.num_processes, self.accelerator.is_main_process
        torch.set_num_threads(settings.threads)
        for option, images in (("batch", settings.batch), ("labelled-batch", getattr(settings, "labelled_batch", 0))):
            if images and images % self.world:
                raise SystemExit(f"--{option} {images} cannot be shared by {self.world} processes")
        self.out.mkdir(parents=True, exist_ok=True)
        self._begin()
        if self.main:
            record_about(self.out)
        start_tracker(self.accelerator, settings, self.resumed)
        self.stage, self.step, self.finished = "", 0, {}
        self.evaluation: Callable[[str], None] | None = None  # what --eval-every calls
        self._registered: dict[str, Any] = {}
        self.is_first_pass = True  # of a step
        self._pictures, self._total, self._losses, self._reported = 0, 0, {}, self.started

    # Networks, optimizers, losses

    def prepare(self, net: nn.Module) -> nn.Module:
        """Move a network to the device and wrap it for training: processes, mixed precision, torch.compile."""
        if self.world > 1 and self.device.type == "cuda":
            net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
        return self.accelerator.prepare_model(net.to(self.device))

    def optimizer(self, net: nn.Module) -> Any:
        """Make the optimizer of ``--optimizer``."""
        kind, decay = self.settings.optimizer, self.settings.weight_decay
        groups = list(parameter_groups(net, self.settings.lr, self.settings.head_factor))
        make = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind]
        decay = decay if decay is not None else {"adamw": 1e-2}.get(kind, 5e-4)
        return self.wrap_optimizer(make(groups, weight_decay=decay, **({"momentum": 0.9} if kind == "sgd" else {})))

    def wrap_optimizer(self, optimizer: torch.optim.Optimizer) -> Any:
        """Let checkpoints, accumulation and the learning rate's schedule know an optimizer."""
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return self.accelerator.prepare_optimizer(optimizer)

    def mean(self, total: Tensor, count: Tensor) -> Tensor:
        """Divide a sum by the count of all processes, so that their average gradient is that of one process."""
        return total * self.world / all_reduce_sum(count).clamp(min=1)

    @property
    def is_last_pass(self) -> bool:
        """Whether the optimizer has stepped in this pass."""
        return self.accelerator.sync_gradients

    def average_buffers(self, net: nn.Module) -> None:
        """Give all processes the same BatchNorm statistics."""
        for buffer in filter(torch.is_floating_point, net.buffers()):
            buffer.copy_(all_reduce_sum(buffer) / self.world)

    # Batches and steps

    def seed(self, *place: Any) -> int:
        """Return the seed that belongs to a place of this run."""
        digest = hashlib.blake2b(repr((self.settings.seed, *place)).encode(), digest_size=7).digest()
        return int.from_bytes(digest, "big")

    def loader(
        self, dataset: Dataset[Any], name: str, transform: Callable[..., Any], order: Any = None, batch: Any = None
    ) -> DataLoader[Any]:
        """Random batches of a stage, without end. ``transform`` gets an item's parts, and a seed for each."""
        return DataLoader(
            Seeded(dataset, transform),
            batch_sampler=StepSampler(self, name, len(dataset), order, batch),
            num_workers=self.settings.workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # or else a loader's start would move torch's own, after a resume only
        )

    def steps(
        self,
        stage: str,
        total: int,
        *loaders: DataLoader[Any],
        lr_scale: Any = 1.0,
        decay: tuple[int, float] | None = None,
    ) -> Iterator[tuple[Any, ...]]:
        """Yield (step, batch of each loader) for every step of a stage that is left, ``--accumulate`` times each.

        Args:
            stage: its name, unique in this run.
            total: its steps.
            loaders: of :meth:`loader`.
            lr_scale: factor of all learning rates, or optimizer -> factor.
            decay: (first step, last step) of the schedule that this stage is a part of; by default it has one of its
                own, of ``--decay-over``, and begins with a new optimizer state.
        """
        first, last = decay or (0, self.settings.decay_over * total)
        if stage != self.stage:
            if self.stage:
                self.finished[self.stage] = self.step
            self.stage, self.step = stage, 0
            for optimizer in self.accelerator._optimizers if decay is None else ():
                optimizer.optimizer.state.clear()
        done = self.step
        for loader in loaders:
            loader.batch_sampler.first = done * self.settings.accumulate
        batches = [iter(loader) for loader in loaders]
        with progress(what=stage, total=total, initial=done, unit="step", disable=not self.main) as bar:
            for step in range(done, total):
                self._set_learning_rates(lr_scale, first + step, last)
                for part in range(self.settings.accumulate):
                    self.is_first_pass = part == 0
                    seed = self.seed(stage, step * self.settings.accumulate + part, self.rank)
                    torch.manual_seed(seed)
                    random.seed(seed)
                    yield step, *(send_to_device(next(batch), self.device, non_blocking=True) for batch in batches)
                self.step = step + 1
                bar.set_postfix(self._told(), refresh=False)
                bar.update()
                every = self.settings.eval_every
                if every and self.step % every == 0 and self.step < total and self.evaluation is not None:
                    self.evaluation(f"{stage}, step {self.step}")  # before the checkpoint: a resumed run misses none
                if self.step % self.settings.checkpoint_every == 0 or self.step == total:
                    self._save()

    def expect(self, total: int) -> None:
        """Tell how many steps the whole run has, for the time that is left."""
        self._total, self._here = total, self.steps_done

    def passed(self, stage: str) -> bool:
        """Tell whether a later stage has begun."""
        return stage in self.finished

    def has_begun(self, stage: str) -> bool:
        """Tell whether a stage has a checkpoint, or had one."""
        return stage == self.stage or stage in self.finished

    @property
    def steps_done(self) -> int:
        """Steps of all stages so far."""
        return sum(self.finished.values()) + self.step

    def _set_learning_rates(self, scale: Any, step: int, last: float) -> None:
        decayed = SCHEDULES[self.settings.schedule](min(1.0, step / max(1, last)))
        decayed *= min(1.0, (step + 1) / max(1, self.settings.lr_warmup * self.settings.steps))
        for optimizer in self.accelerator._optimizers:
            factor = decayed * (scale.get(optimizer, 1.0) if isinstance(scale, dict) else scale)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor

    # Checkpoints

    def register(self, **objects: Any) -> None:
        """Keep the ``state_dict`` of objects in checkpoints, each process its own."""
        self._registered |= objects

    def restore(self) -> None:
        """Continue from the last checkpoint, if there is one."""
        found = {path.parent: json.loads(path.read_text()) for path in self.out.glob("checkpoints/[!.]*/progress.json")}
        if not found:
            return
        last = max(found, key=lambda folder: sum(found[folder]["finished"].values()) + found[folder]["step"])
        self.accelerator.load_state(str(last))
        own = torch.load(last / self._own_file, map_location=self.device, weights_only=True)
        for net, buffers in zip(self.accelerator._models, own["buffers"], strict=True):
            net.load_state_dict(buffers, strict=False)
        for name, thing in self._registered.items():
            thing.load_state_dict(own[name])
        self.stage, self.step, self.finished = (found[last][name] for name in ("stage", "step", "finished"))
        self.say(f"{self.stage}: continues after step {self.step} (from {last})")

    @property
    def _own_file(self) -> str:
        return f"rank{self.rank}of{self.world}.pt"

    def _save(self) -> None:
        """The first process saves what all share, each its own; the folder gets its name when it is complete."""
        folder = self.out / "checkpoints"
        made, half = folder / f"{self.stage}-{self.step:06d}", folder / ".tmp"
        if self.main:
            for old in (made, half):
                shutil.rmtree(old, ignore_errors=True)
            half.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(half), safe_serialization=False)
        own = {name: thing.state_dict() for name, thing in self._registered.items()}
        own["buffers"] = [dict(net.named_buffers()) for net in self.accelerator._models]
        torch.save(own, half / self._own_file)
        self.accelerator.wait_for_everyone()
        if self.main:
            told = {"stage": self.stage, "step": self.step, "finished": self.finished}
            (half / "progress.json").write_text(json.dumps(told))
            for path in half.iterdir():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
            half.rename(made)
            for path in folder.iterdir():
                if path != made:
                    shutil.rmtree(path)
            if time.time() - self._reported >= _REPORT_EVERY:
                report(self.out)
                self._reported = time.time()

    # What is told

    def say(self, text: str) -> None:
        """Print on the first process."""
        if self.main:
            tqdm.write(text)

    def log(self, **values: Tensor | float) -> None:
        """Write numbers, averaged over processes, to the tracker and the report every so often. All must call it."""
        if self.steps_done % self.settings.log_every == 0 and self.is_last_pass:
            numbers = torch.stack([torch.as_tensor(value).detach().float().cpu() for value in values.values()])
            means = all_reduce_sum(numbers) / self.world
            self._losses = dict(zip(values, means.tolist(), strict=True))
            self.accelerator.log(self._losses, step=self.steps_done)
            if self.main:
                record_step(self.out, self.steps_done, self._losses)

    def picture(self, name: str, image: Tensor) -> None:
        """Send an image (3, H, W), uint8, to the tracker if it shows images, numbered in the order of coming."""
        self._pictures += 1
        for tracker in self.accelerator.trackers if self.main else ():
            if hasattr(tracker, "log_images"):
                pixels = image.byte().permute(1, 2, 0)[None].cpu().numpy()
                board = tracker.name == "tensorboard"  # Weights & Biases drops what is logged at an earlier step
                settings = {"dataformats": "NHWC"} if board else {}
                tracker.log_images({name: pixels}, step=self._pictures if board else self.steps_done, **settings)

    def _told(self) -> dict[str, str]:
        told = {name: f"{value:.3g}" for name, value in list(self._losses.items())[:3]}
        if self._total:
            done, here = self.steps_done, self.steps_done - self._here
            left = (time.time() - self.started) / max(1, here) * (self._total - done)
            told["run"] = f"{100 * done / self._total:.0f} %, {tqdm.format_interval(int(max(0, left)))} left"
        return told

    def keep_best(self, net: nn.Module, score: float, where: str) -> None:
        """Keep the weights that have had the highest validation mIoU, in ``best.pt``."""
        if not self.main:
            return
        best, new = self._best(), {"mIoU": score, "at": where, "step": self.steps_done}
        # What an earlier attempt has noted stays as it is, as in ``keep_if_better``.
        if score > best.get("mIoU", -math.inf) and not (best and place_of(new) == place_of(best)):
            self.save_weights(net, pending(self.out / "best.pt", place_of(new)).name)
            save_json(new, self.out / "best.json")
            self._best()

    def _best(self) -> dict[str, Any]:
        path = self.out / "best.json"
        best = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        settle(self.out / "best.pt", place_of(best) if best else None)
        return best

    def save_weights(self, net: nn.Module, name: str) -> None:
        """Write a network's weights, on the CPU, into the run's folder."""
        save_atomically({key: tensor.cpu() for key, tensor in net.state_dict().items()}, self.out / name)

    def finish(self, net: nn.Module, results: dict[str, Any]) -> None:
        """Write the network's weights, ``result.json`` and ``report.html``."""
        memory = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else peak_resident()
        about = {"data": self.settings.data, "seed": self.settings.seed, "seconds": time.time() - self.started}
        results = {**about, "peak_memory_mb": memory / 1e6, **results}
        if self.main:
            if best := self._best():
                results |= {"best mIoU": best["mIoU"], "best at": best["at"]}
                self.say(f"best: mIoU {best['mIoU']:.1f} {best['at']}, weights in {self.out / 'best.pt'}")
            results |= verdict(self)
            self.save_weights(net, "model.pt")
            save_json(results, self.out / "result.json")
            self.say(f"report: {report(self.out)}")
        self.accelerator.end_training()

    # What a run was begun with

    def _begin(self) -> None:
        """Refuse to resume with other settings; clear away what an attempt told that never came to a checkpoint."""
        made = ("checkpoints/[!.]*", "pseudo-labels*/round-*")
        self.resumed = any(any(self.out.glob(pattern)) for pattern in made)
        if self.main and not self.resumed:
            for old in itertools.chain.from_iterable(map(self.out.glob, _TOLD)):
                old.unlink()
        settings = json.loads(json.dumps({**vars(self.settings), "processes": self.world}, default=str))
        may_change = _MAY_CHANGE if holds_out(self.settings) else _MAY_CHANGE | _MEASURED
        asked = {name: value for name, value in settings.items() if name not in may_change}
        changed = self._changed("arguments.json", asked, leave=FOLDERS | {"root", "source_root"})
        if changed:
            what = "; ".join(f"{name} {value}, now {asked.get(name)}" for name, value in changed.items())
            raise SystemExit(f"{self.out} was begun with {what}: choose another --out, or remove the folder")

    def check_data(self, digests: dict[str, str]) -> None:
        """Refuse to resume with other data than the run was begun with. The folders themselves may have moved."""
        changed = self._changed("data.json", digests)
        if changed:
            raise SystemExit(
                f"{self.out} was begun with other data ({', '.join(changed)}: names or sizes of files differ): give "
                "the same files, choose another --out, or remove the folder"
            )

    def _changed(self, file: str, asked: dict[str, Any], leave: Collection[str] = ()) -> dict[str, Any]:
        """What a run that resumes was begun with, where it is not what is asked; if it is, that is kept."""
        path = self.out / file
        found = json.loads(path.read_text(encoding="utf-8")) if self.resumed and path.exists() else asked
        names = [name for name in {**found, **asked} if name not in leave and found.get(name) != asked.get(name)]
        if self.main and not names:
            save_json(asked, path)
        return {name: found.get(name) for name in names}
