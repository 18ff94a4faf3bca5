"""A run of a trainer: processes and precision (by Accelerate), batches, steps, checkpoints and logging."""

from __future__ import annotations

import hashlib
import math
import os
import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
from _networks.build import Scaled, exclude_unused, parameter_groups, synchronize_batchnorm
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration, send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from _common.checkpoints import load_checkpoint, save_checkpoint
from _common.files import save_json, save_weights
from _common.loading import Seeded, StepSampler
from _common.numbers import check
from _common.progress import peak_resident, progress
from _common.resuming import check_settings, clear_records, is_resumed
from _common.scores import best_scores
from _common.settings import Settings
from _common.trackers import start_tracker
from selftrain_seg.distributed import all_reduce_sum
from selftrain_seg.visualize import record_about, record_step, report

# Factor of the learning rate after a share of the schedule.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "poly": lambda share: (1 - share) ** 0.9,
    "linear": lambda share: 1 - share,
    "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
    "constant": lambda share: 1.0,
}

_REPORT_EVERY = 60  # seconds, at least, between reports during training

# The argument that replaces it does not exist in older versions of torch.
warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)


class Run:
    """One run, of one process or of several under ``torchrun`` or ``accelerate launch``.

    The seed of each step depends only on ``--seed``, the stage and the step. A run that was killed and resumes from its
    last checkpoint therefore gives the same result as an uninterrupted one.
    """

    def __init__(self, settings: Settings) -> None:
        check(settings)
        self.settings, self.out, self.started = settings, settings.out, time.time()
        self.accelerator = _accelerator(settings)
        # ``accumulate`` and ``backward`` exchange gradients and step optimizers only in the last pass of a step, and
        # scale losses for fp16 and for the number of passes. ``autocast`` is for networks without ``prepare``.
        self.accumulate, self.backward = self.accelerator.accumulate, self.accelerator.backward
        self.autocast = self.accelerator.autocast
        device = self.accelerator.device
        self.device = torch.device("cpu") if device.type == "cpu" else device  # torch.load refuses cpu:0
        self.rank = self.accelerator.process_index
        self.world, self.main = self.accelerator.num_processes, self.accelerator.is_main_process
        torch.set_num_threads(settings.threads)
        for option, images in (("batch", settings.batch), ("labelled-batch", getattr(settings, "labelled_batch", 0))):
            if images and images % self.world:
                raise SystemExit(f"--{option} {images} cannot be shared by {self.world} processes")
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SystemExit(f"--out {self.out}: expected a folder, or a name for a new one: {error}") from None
        self.resumed = is_resumed(self)
        if self.main and not self.resumed:
            clear_records(self)
        check_settings(self)
        if self.main:
            record_about(self.out)
        start_tracker(self.accelerator, settings, self.resumed)
        self.stage, self.step, self.finished = "", 0, {}
        self.seconds_before = 0.0  # of earlier attempts, until the checkpoint from which this one resumes
        self.evaluation: Callable[[str], None] | None = None  # called by --eval-every
        self.registered: dict[str, Any] = {}
        self.networks: list[nn.Module] = []
        self.optimizers: list[Any] = []
        self.is_first_pass = True  # of a step
        self._pictures, self._total, self._losses, self._reported = 0, 0, {}, self.started

    # Networks, optimizers, losses

    def prepare(self, net: nn.Module) -> nn.Module:
        """Move a network to the device and wrap it for training: processes, mixed precision, torch.compile."""
        if self.world > 1 and self.device.type == "cuda":
            net = synchronize_batchnorm(net)
        self.networks.append(net.to(self.device))
        if self.world > 1 and isinstance(net, Scaled) and (unused := exclude_unused(net, self.settings.crop)):
            self.say(f"{unused} parameters of the network do not affect its logits: they are not trained")
        return self.accelerator.prepare_model(net)

    def optimizer(self, net: nn.Module) -> Any:
        """Make the optimizer of ``--optimizer``."""
        kind, decay = self.settings.optimizer, self.settings.weight_decay
        groups = list(parameter_groups(net, self.settings.lr, self.settings.head_factor))
        make = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind]
        decay = decay if decay is not None else {"adamw": 1e-2}.get(kind, 5e-4)
        return self.wrap_optimizer(make(groups, weight_decay=decay, **({"momentum": 0.9} if kind == "sgd" else {})))

    def wrap_optimizer(self, optimizer: torch.optim.Optimizer) -> Any:
        """Include an optimizer in accumulation, checkpoints and the learning rate schedule."""
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        self.optimizers.append(self.accelerator.prepare_optimizer(optimizer))
        return self.optimizers[-1]

    def mean(self, total: Tensor, count: Tensor) -> Tensor:
        """Divide a sum by the count over all processes, so that gradients are those of a single process."""
        return total * self.world / all_reduce_sum(count).clamp(min=1)

    @property
    def is_last_pass(self) -> bool:
        """Whether the optimizer steps in this pass."""
        return self.accelerator.sync_gradients

    def average_buffers(self, net: nn.Module) -> None:
        """Average BatchNorm's statistics over processes."""
        for buffer in filter(torch.is_floating_point, net.buffers()):
            buffer.copy_(all_reduce_sum(buffer) / self.world)

    # Batches and steps

    def seed(self, *place: Any) -> int:
        """Return the seed of a place of this run, such as (stage, step)."""
        digest = hashlib.blake2b(repr((self.settings.seed, *place)).encode(), digest_size=7).digest()
        return int.from_bytes(digest, "big")

    def loader(
        self,
        dataset: Dataset[Any],
        name: str,
        transform: Callable[..., Any],
        order: Sequence[int] | None = None,
        batch: int | None = None,
    ) -> DataLoader[Any]:
        """Yield random batches without end.

        Args:
            dataset: its items are tuples.
            name: of the stage and the data set; batches differ between names.
            transform: called with the parts of an item; its random numbers have a seed of their own for each image.
            order: indices of the images to draw, in order; None for random permutations.
            batch: images in a batch over all processes; None for ``--batch``.
        """
        return DataLoader(
            Seeded(dataset, transform),
            batch_sampler=StepSampler(self, name, len(dataset), order, batch),
            num_workers=self.settings.workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # without it, starting the loader would advance torch's global generator
        )

    def steps(
        self,
        stage: str,
        total: int,
        *loaders: DataLoader[Any],
        lr_scale: Any = 1.0,
        decay: tuple[int, float] | None = None,
    ) -> Iterator[tuple[Any, ...]]:
        """Yield (step, batch of each loader) for each remaining step of a stage, ``--accumulate`` times each.

        Args:
            stage: its name, unique in this run.
            total: number of its steps.
            loaders: made by :meth:`loader`.
            lr_scale: factor of all learning rates, or a dict optimizer -> factor.
            decay: (first step, last step) of the schedule that this stage is a part of. By default the stage has a
                schedule of its own, over ``--decay-over``, and resets the state of optimizers.
        """
        first, last = decay or (0, self.settings.decay_over * total)
        if stage != self.stage:
            if self.stage:
                self.finished[self.stage] = self.step
            self.stage, self.step = stage, 0
            for optimizer in self.optimizers if decay is None else ():
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
                bar.set_postfix(self._postfix(), refresh=False)
                bar.update()
                every = self.settings.eval_every
                if every and self.step % every == 0 and self.step < total and self.evaluation is not None:
                    self.evaluation(f"{stage}, step {self.step}")  # before the checkpoint, so resuming skips none
                if self.step % self.settings.checkpoint_every == 0 or self.step == total:
                    save_checkpoint(self)
                    self._update_report()

    def expect(self, total: int) -> None:
        """Set the number of steps of the whole run, for the progress bar."""
        self._total, self._first = total, self.steps_done

    def passed(self, stage: str) -> bool:
        """Return whether a later stage has begun."""
        return stage in self.finished

    def has_begun(self, stage: str) -> bool:
        """Return whether a stage has begun, so that the network has learnt from its data."""
        return stage == self.stage or stage in self.finished

    @property
    def seconds(self) -> float:
        """Seconds of all attempts so far."""
        return self.seconds_before + time.time() - self.started

    @property
    def steps_done(self) -> int:
        """Number of steps in all stages so far."""
        return sum(self.finished.values()) + self.step

    def _set_learning_rates(self, scale: Any, step: int, last: float) -> None:
        decayed = SCHEDULES[self.settings.schedule](min(1.0, step / max(1, last)))
        decayed *= min(1.0, (step + 1) / max(1, self.settings.lr_warmup * self.settings.steps))
        for optimizer in self.optimizers:
            factor = decayed * (scale.get(optimizer, 1.0) if isinstance(scale, dict) else scale)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor

    def _postfix(self) -> dict[str, str]:
        """Return losses, the share of the whole run and the time left, for the progress bar."""
        shown = {name: f"{value:.3g}" for name, value in list(self._losses.items())[:3]}
        if self._total:
            done = self.steps_done
            left = (time.time() - self.started) / max(1, done - self._first) * (self._total - done)
            shown["run"] = f"{100 * done / self._total:.0f} %, {tqdm.format_interval(int(max(0, left)))} left"
        return shown

    # Checkpoints and results

    def register(self, **objects: Any) -> None:
        """Include the ``state_dict`` of objects in checkpoints. Each process saves its own."""
        self.registered |= objects

    def restore(self) -> None:
        """Resume from the last checkpoint, if there is one."""
        folder = load_checkpoint(self)
        if folder is not None:
            self.say(f"{self.stage}: continues after step {self.step} (from {folder})")

    def finish(self, net: nn.Module, results: dict[str, Any]) -> None:
        """Write the network's weights, ``result.json`` and ``report.html``."""
        memory = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else peak_resident()
        about = {"data": self.settings.data, "seed": self.settings.seed, "seconds": self.seconds}
        if self.main:
            results = {**about, "peak_memory_mb": memory / 1e6, **results, **best_scores(self)}
            save_weights(net, self.out / "model.pt")
            save_json(results, self.out / "result.json")
            self.say(f"report: {report(self.out)}")
        self.accelerator.end_training()

    # Logging

    def say(self, text: str) -> None:
        """Print on the first process."""
        if self.main:
            tqdm.write(text)

    def log(self, **values: Tensor | float) -> None:
        """Send numbers to the tracker and the report every ``--log-every`` steps, averaged over processes.

        All processes must call it.
        """
        if self.steps_done % self.settings.log_every == 0 and self.is_last_pass:
            numbers = torch.stack([torch.as_tensor(value).detach().float().cpu() for value in values.values()])
            means = all_reduce_sum(numbers) / self.world
            self._losses = dict(zip(values, means.tolist(), strict=True))
            self.track(self._losses)
            if self.main:
                record_step(self.out, self.steps_done, self._losses)

    def track(self, values: dict[str, float]) -> None:
        """Send numbers to the tracker now."""
        self.accelerator.log(values, step=self.steps_done)

    def picture(self, name: str, image: Tensor) -> None:
        """Send an image (3, H, W), uint8, to the tracker if it shows images."""
        self._pictures += 1
        for tracker in self.accelerator.trackers if self.main else ():
            if hasattr(tracker, "log_images"):
                pixels = image.byte().permute(1, 2, 0)[None].cpu().numpy()
                board = tracker.name == "tensorboard"  # it numbers pictures; Weights & Biases needs increasing steps
                settings = {"dataformats": "NHWC"} if board else {}
                tracker.log_images({name: pixels}, step=self._pictures if board else self.steps_done, **settings)

    def _update_report(self) -> None:
        if self.main and time.time() - self._reported >= _REPORT_EVERY:
            report(self.out)
            self._reported = time.time()


def _accelerator(settings: Settings) -> Accelerator:
    """Make the Accelerator, or refuse what it cannot run."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if settings.device not in ("auto", "cpu") and not (several and settings.device == "cuda"):
        try:
            torch.empty(0, device=settings.device)
        except (RuntimeError, AssertionError) as error:  # the latter from a build of torch without CUDA
            raise SystemExit(f"--device {settings.device}: {error}".partition("\n")[0]) from None
        os.environ["ACCELERATE_TORCH_DEVICE"] = settings.device  # with several processes, each has a GPU of its own
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("1", "true"):
            raise SystemExit(f"{name} is not supported: each process trains the whole network (DDP); turn it off")
    tracker = None if settings.tracker == "none" else settings.tracker
    if tracker is not None and tracker not in map(str, get_available_trackers()):
        raise SystemExit(f"--tracker {tracker}: not installed: pip install {tracker}, or --tracker none")
    found = torch.accelerator.current_accelerator(check_available=True)
    has_gpu = found is not None and found.type != "mps"  # it has no float64
    try:
        return Accelerator(
            # On a machine without an accelerator, Accelerate starts several processes only with ``cpu=True``.
            cpu=settings.device == "cpu" or (settings.device == "auto" and not has_gpu),
            mixed_precision=settings.amp,
            gradient_accumulation_steps=settings.accumulate,
            dynamo_backend="inductor" if settings.compile else None,
            log_with=tracker,
            project_config=ProjectConfiguration(str(settings.out), logging_dir=str(settings.out)),
            kwargs_handlers=[
                # Source and target images go through the network separately; ``average_buffers`` averages the
                # statistics.
                DistributedDataParallelKwargs(broadcast_buffers=False),
                # One process reads all source masks, or draws a benchmark, while the others wait.
                InitProcessGroupKwargs(timeout=timedelta(hours=6)),
            ],
        )
    except ValueError as error:
        raise SystemExit(f"--amp {settings.amp}, --device {settings.device}: {error}") from None
