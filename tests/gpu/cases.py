"""What is measured: each operation as ours and its rivals do it, what it must move, and what the targets are.

A row of the table is one ``Row``: an operation in one version, for one number of classes, dtype and layout. Sizes are
such that logits are about 150 MB in float32, four images of 512 x 1024 with 19 classes; "small" ones are
two of 128 x 256, where all time is the host's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from selftrain_seg import losses, mining, selectors, teachers
from selftrain_seg.confidence import top_confidence
from selftrain_seg.thresholds import ClassBalancedThreshold
from tests.benchmarks import plain
from tests.gpu.network import deeplab_v2

BATCH = {2: 32, 19: 4, 150: 1}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
CACHE = 200e6  # bytes of inputs that no device's cache holds for long
PORTION = 0.2


class Row(NamedTuple):
    """``version``: "ours", "plain path" (ours without kernels), "plain torch", "compiled" (plain torch's)."""

    operation: str
    version: str = "ours"
    classes: int = 19
    dtype: str = "fp32"
    layout: str = "contiguous"
    size: str = "large"

    @property
    def key(self) -> str:
        return "|".join(map(str, self))

    @classmethod
    def parse(cls, key: str) -> Row:
        operation, version, classes, *rest = key.split("|")
        return cls(operation, version, int(classes), *rest)


@dataclass
class Inputs:
    """What operations are called with, made when asked for, on the device, from one seed."""

    row: Row
    device: torch.device
    smoke: bool = False

    @property
    def shape(self) -> tuple[int, int, int, int]:
        if self.smoke:
            return 2, self.row.classes, 16, 24
        if self.row.size == "small":
            return 2, self.row.classes, 128, 256
        return BATCH[self.row.classes], self.row.classes, 512, 1024

    @cached_property
    def generator(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(0)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)

    @cached_property
    def classes(self) -> Tensor:
        """What is to be seen (B, H, W): patches of 8 x 8 pixels, as neighbours have the same label."""
        batch, classes, height, width = self.shape
        small = (batch, 1, height // 8, width // 8)
        drawn = torch.randint(0, classes, small, generator=self.generator, device=self.device)
        return drawn.repeat_interleave(8, 2).repeat_interleave(8, 3).squeeze(1)

    def make_logits(self) -> Tensor:
        values = 2 * self.normal(*self.shape)
        values.scatter_add_(1, self.classes.unsqueeze(1), 6 + 3 * self.normal(*values[:, :1].shape))
        return values.to(DTYPES[self.row.dtype]).contiguous(memory_format=LAYOUTS[self.row.layout])

    @cached_property
    def logits(self) -> list[Tensor]:
        """So many that reading one after the other finds nothing in the cache."""
        first = self.make_logits()
        copies = 1 if self.smoke or self.row.size == "small" else min(4, -int(-CACHE // first.nbytes))
        return [first, *(first.clone() for _ in range(1, copies))]  # clones keep the layout

    @cached_property
    def labels(self) -> Tensor:
        ignored = torch.rand(self.classes.shape, generator=self.generator, device=self.device) < 0.3
        return self.classes.masked_fill(ignored, 255)

    @cached_property
    def soft(self) -> Tensor:
        soft = torch.softmax(2 * self.make_logits().float(), 1) * (self.labels != 255).unsqueeze(1)
        return soft.contiguous(memory_format=LAYOUTS[self.row.layout])

    @cached_property
    def confidence(self) -> Tensor:
        return torch.rand(self.classes.shape, generator=self.generator, device=self.device)

    @cached_property
    def kc(self) -> Tensor:
        return torch.full((self.row.classes,), 0.9, device=self.device)

    @cached_property
    def class_weight(self) -> Tensor:
        return torch.rand(self.row.classes, generator=self.generator, device=self.device)

    @cached_property
    def images(self) -> Tensor:
        batch, _, height, width = self.shape
        return self.normal(batch, 3, height, width)


Versions = dict[str, Callable[[Tensor], Any]]
Limit = tuple[float, float]


@dataclass(frozen=True)
class Operation:
    """An operation and its targets.

    Attributes:
        make: for inputs, a call of each version, "ours" and "torch": the shortest that torch has.
        group: "selection", "loss" or "other"; a loss is called forward and backward.
        passes: at most so many passes over the logits, in float32 and in bfloat16.
        launches: at most so many.
        moved: for inputs, bytes that must be read and written at least.
        compiled: whether compiling the rival makes sense: it does not look at values and changes no state.
        rival: whether torch has anything to compare with.
        host_ms: at most so much of the host's time.
        floors: at most so many times what ``moved`` takes.
    """

    make: Callable[[Inputs], Versions]
    group: str
    passes: Limit | None = None
    launches: float | None = None
    moved: Callable[[Inputs], float] | None = None
    compiled: bool = True
    rival: bool = True
    host_ms: float | None = None
    floors: float | None = None


def pixels(inputs: Inputs) -> int:
    batch, _, height, width = inputs.shape
    return batch * height * width


def logits_and(a_pixel: float, inputs: Inputs) -> float:
    """Bytes of the logits, read once, and so many for each pixel."""
    return inputs.logits[0].nbytes + a_pixel * pixels(inputs)


# What selectors write: labels, predicted labels and confidence.
SELECTED = partial(logits_and, 8 + 8 + 4)


def selection(
    ours: Callable[[Inputs], Callable[[Tensor], Any]],
    torchs: Callable[[Inputs], Callable[[Tensor], Any]],
    passes: Limit,
    launches: float,
    moved: Callable[[Inputs], float] = SELECTED,
    compiled: bool = True,
) -> Operation:
    return Operation(lambda i: {"ours": ours(i), "torch": torchs(i)}, "selection", passes, launches, moved, compiled)


def loss(ours: Any, torchs: Any, *names: str, passes: Limit = (4.5, 6.5), **settings: Any) -> Operation:
    """A loss, forward and backward, of the inputs' attributes ``names``, each of which must be read twice."""

    def step(function: Any, inputs: Inputs) -> Callable[[Tensor], Any]:
        targets = [getattr(inputs, name) for name in names]
        for each in inputs.logits:
            each.requires_grad_()
        return lambda logits: torch.autograd.grad(function(logits, *targets), logits)

    def moved(inputs: Inputs) -> float:
        targets = sum(getattr(inputs, name).nbytes for name in names)
        return 3 * inputs.logits[0].nbytes + 2 * targets

    def make(inputs: Inputs) -> Versions:
        versions = {"ours": partial(ours, **settings), "torch": torchs}
        if inputs.row.version == "compiled":  # the function alone: what autograd does is in it
            versions["torch"] = compile_for(inputs.device, torchs)
        return {name: step(function, inputs) for name, function in versions.items() if function is not None}

    return Operation(make, "loss", passes, 5, moved, compiled=torchs is not None)


def compile_for(device: torch.device, function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled for one shape; without a GPU, where it is only walked through, by no compiler."""
    torch.compiler.reset()
    return torch.compile(function, dynamic=False, backend="inductor" if device.type == "cuda" else "eager")


def estimate(inputs: Inputs) -> Versions:
    estimator = ClassBalancedThreshold(inputs.row.classes, PORTION).to(inputs.device)
    counts = torch.zeros(inputs.row.classes, plain.BINS, dtype=torch.int64, device=inputs.device)
    return {"ours": estimator.update, "torch": lambda z: plain.update(z, counts)}


def compute(inputs: Inputs) -> Versions:
    estimator = ClassBalancedThreshold(inputs.row.classes, PORTION).to(inputs.device)
    estimator.update(inputs.logits[0])
    counts = torch.zeros(inputs.row.classes, plain.BINS, dtype=torch.int64, device=inputs.device)
    plain.update(inputs.logits[0], counts)
    return {"ours": lambda _: estimator.compute(), "torch": lambda _: plain.compute(counts)}


def stateful(selector: type[torch.nn.Module], rival: Callable[..., Any], inputs: Inputs) -> Versions:
    classes, device = inputs.row.classes, inputs.device
    return {"ours": selector(classes).to(device), "torch": rival(classes, device)}


def fairness(inputs: Inputs) -> Versions:
    share = torch.full((inputs.row.classes,), 1 / inputs.row.classes, device=inputs.device)
    for each in inputs.logits:
        each.requires_grad_()
    return {"ours": lambda z: torch.autograd.grad(losses.fairness_loss(z, share, share), z)}


def average(inputs: Inputs) -> Versions:
    student = deeplab_v2(inputs.row.classes, inputs.device, tiny=inputs.smoke)
    if inputs.row.version == "ours":
        teacher = teachers.MeanTeacher(student, warmup=False)
        return {"ours": lambda _: teacher.update(student)}
    torchs = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(0.999), use_buffers=True)
    torchs.update_parameters(student)  # the first one copies
    return {"torch": lambda _: torchs.update_parameters(student)}


def weights_moved(inputs: Inputs) -> float:
    network = deeplab_v2(inputs.row.classes, "meta", tiny=inputs.smoke)
    return 3 * 4 * sum(each.numel() for each in network.parameters())


def mine(inputs: Inputs) -> Versions:
    _, _, height, width = inputs.shape
    rare, size = torch.tensor([0, 1], device=inputs.device), (height // 2, width // 2)

    def call(_: Tensor) -> Any:
        corners = mining.mine_crops(inputs.labels, rare, size)
        return mining.crop(inputs.images, corners, size), mining.crop(inputs.labels, corners, size)

    return {"ours": call}


def mix(inputs: Inputs) -> Versions:
    return {"ours": lambda _: mining.class_mix(inputs.images, inputs.labels)}


def paste(inputs: Inputs) -> Versions:
    return {"ours": lambda _: mining.paste_classes(inputs.images, inputs.labels, inputs.class_weight)}


KC = selectors.select_hard, selectors.select_reweighted, selectors.select_soft
ONE_PASS, FAMILY, SOFT = (1.6, 2.2), (3, 5), (7.5, 12)

OPERATIONS: dict[str, Operation] = {
    "top_confidence": selection(
        lambda i: top_confidence, lambda i: plain.top, ONE_PASS, 1, partial(logits_and, 8 + 4)
    ),
    "ClassBalancedThreshold.update": Operation(
        estimate, "selection", (2.5, 4), 2, partial(logits_and, 0), compiled=False
    ),
    "ClassBalancedThreshold.compute": Operation(compute, "other", launches=10, compiled=False),
    "select_hard": selection(
        lambda i: lambda z: KC[0](z, i.kc), lambda i: lambda z: plain.hard(z, i.kc), ONE_PASS, 1
    ),
    "select_reweighted": selection(
        lambda i: lambda z: KC[1](z, i.kc), lambda i: lambda z: plain.reweighted(z, i.kc), ONE_PASS, 1
    ),
    "select_soft": selection(
        lambda i: lambda z: KC[2](z, i.kc), lambda i: lambda z: plain.soft(z, i.kc), (3, 5), 1,
        lambda i: SELECTED(i) + 4 * i.logits[0].numel(),
    ),
    "select_fixed": selection(lambda i: selectors.select_fixed, lambda i: plain.fixed, ONE_PASS, 1),
    **{
        selector.__name__: Operation(
            partial(stateful, selector, rival), "selection", FAMILY, 10, SELECTED, compiled=False
        )
        for selector, rival in (
            (selectors.FreeMatchSelector, plain.freematch),
            (selectors.SoftMatchSelector, plain.softmatch),
            (selectors.FlexMatchSelector, plain.flexmatch),
            (selectors.RunningConfidenceSelector, plain.running_confidence),
        )
    },
    "InstanceAdaptiveSelector": Operation(
        partial(stateful, selectors.InstanceAdaptiveSelector, plain.instance_adaptive),
        "selection", (5, 8), 8, SELECTED, compiled=False,
    ),
    "cross_entropy": loss(losses.cross_entropy, partial(F.cross_entropy, ignore_index=255), "labels"),
    "mrkld_loss": loss(losses.mrkld_loss, plain.mrkld, "labels"),
    "mrent_loss": loss(losses.mrent_loss, plain.mrent, "labels"),
    "mrl2_loss": loss(losses.mrl2_loss, plain.mrl2, "labels"),
    "region_guided_loss": loss(losses.region_guided_loss, plain.region, "labels"),
    "dynamic_loss": loss(losses.dynamic_loss, plain.dynamic, "labels", gamma=9.0),
    "dynamic_mutual_loss": loss(
        losses.dynamic_mutual_loss, plain.dynamic_mutual, "labels", "confidence", gamma_agree=5.0, gamma_disagree=5.0
    ),
    "symmetric_loss": loss(losses.symmetric_loss, plain.symmetric, "labels"),
    "class_weighted_loss": loss(losses.class_weighted_loss, plain.class_weighted, "labels", "class_weight"),
    "fairness_loss": Operation(
        fairness, "loss", (4.5, 6.5), 5, moved=lambda i: 3 * i.logits[0].nbytes, compiled=False, rival=False
    ),
    "cross_entropy, soft labels": loss(losses.cross_entropy, plain.cross_entropy_soft, "soft", passes=SOFT),
    "mrkld_loss, soft labels": loss(losses.mrkld_loss, plain.mrkld_soft, "soft", passes=SOFT),
    "negative_loss": loss(losses.negative_loss, plain.negative, "soft", passes=SOFT),
    "MeanTeacher.update": Operation(
        average, "other", moved=weights_moved, compiled=False, host_ms=0.7, floors=1.2
    ),
    "soft_neighbourhood_density": Operation(
        lambda i: {"ours": teachers.soft_neighbourhood_density, "torch": plain.density}, "other", compiled=False
    ),
    "entropy_score": Operation(
        lambda i: {"ours": teachers.entropy_score, "torch": plain.entropy_score}, "other",
        moved=partial(logits_and, 0), compiled=False,
    ),
    "mine_crops + crop": Operation(mine, "other", launches=20, compiled=False, rival=False),
    "class_mix": Operation(mix, "other", launches=12, compiled=False, rival=False),
    "paste_classes": Operation(paste, "other", launches=115, compiled=False, rival=False),
}  # fmt: skip
BASELINE = "cross_entropy"  # its "plain torch" is F.cross_entropy, to which all losses are compared
WALL = {"large": 1.0, "small": 1.6}  # a loss's wall time, at most so many times that of the baseline
SOME = ("top_confidence", "ClassBalancedThreshold.update", "select_reweighted", "FreeMatchSelector", "mrkld_loss",
        "cross_entropy, soft labels")  # fmt: skip
VERSION = {"ours": "ours", "plain path": "ours", "plain torch": "torch", "compiled": "torch"}


def call_of(inputs: Inputs) -> Callable[[Tensor], Any]:
    """The call that a row measures."""
    operation, version = OPERATIONS[inputs.row.operation], inputs.row.version
    call = operation.make(inputs)[VERSION[version]]
    return compile_for(inputs.device, call) if version == "compiled" and operation.group != "loss" else call


def rows(*, full: bool = False, smoke: bool = False) -> list[Row]:
    """All rows, those first that targets speak of: what comes last may be left out for want of time."""
    settings = [(dtype, layout) for layout in LAYOUTS for dtype in DTYPES]
    usual = [("fp32", "contiguous"), ("bf16", "channels_last")]
    if smoke:
        settings = usual = [("bf16", "channels_last")]
    out = list(_rows(settings, usual, full))
    out = list(dict.fromkeys(out))
    return list({_kind(row): row for row in reversed(out)}.values())[::-1] if smoke else out


def _kind(row: Row) -> Any:
    """Rows of one kind do the same with other names: each of our operations is one, and what it is compared with."""
    main = row.version == "ours" and row.classes == 19 and row.size == "large"
    return row.operation if main else (OPERATIONS[row.operation].group, row.version, row.classes, row.size)


def _rows(settings: list[tuple[str, str]], usual: list[tuple[str, str]], full: bool) -> Iterator[Row]:
    by_logits = [name for name, operation in OPERATIONS.items() if operation.group != "other"]
    of_losses = [name for name, operation in OPERATIONS.items() if operation.group == "loss"]
    others = [name for name, operation in OPERATIONS.items() if operation.group == "other"]
    rivals = [name for name, operation in OPERATIONS.items() if operation.rival]
    first, *rest = settings
    for setting in settings:
        yield Row(BASELINE, "plain torch", 19, *setting)
        yield from (Row(name, "ours", 19, *setting) for name in by_logits)
    yield from (Row(name, "ours", 19, *first) for name in others)
    yield Row(BASELINE, "plain torch", 19, *first, size="small")
    yield from (Row(name, "ours", 19, *first, size="small") for name in of_losses)
    yield from (Row(name, "plain torch", 19, *first) for name in rivals)
    yield from (Row(name, "compiled", 19, *first) for name in rivals if OPERATIONS[name].compiled)
    for classes in (2, 150):
        for setting in settings if full else usual:
            yield Row(BASELINE, "plain torch", classes, *setting)
            yield from (Row(name, "ours", classes, *setting) for name in (by_logits if full else SOME))
    yield from (Row(name, "plain path", 19, *first) for name in (by_logits if full else SOME))
    for setting in rest if full else usual[1:]:
        yield from (Row(name, "plain torch", 19, *setting) for name in rivals if name in by_logits)
    for setting in rest if full else ():
        yield from (Row(name, "compiled", 19, *setting) for name in rivals if OPERATIONS[name].compiled)
