"""mIoU from one confusion matrix over the whole set, on any number of processes; BatchNorm statistics of a domain."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from _data.opening import Data
from _reporting import draw_predictions, record, record_unlabelled
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn
from torchmetrics.classification import MulticlassConfusionMatrix

from _common.files import save_atomically
from _common.loading import _PIXELS_AT_ONCE, in_blocks
from _common.progress import progress
from _common.run import Run
from _common.settings import in_options
from selftrain_seg import IGNORE_INDEX
from selftrain_seg.confidence import fuse_views
from selftrain_seg.distributed import all_reduce_sum
from selftrain_seg.teachers import predict_in_parts, soft_neighbourhood_density

_WATCHED = 50  # target images that a network is watched on where there are no validation masks


class Score(NamedTuple):
    """What is known of a network on the target domain.

    Attributes:
        iou: (C,) in percent, NaN for classes that never occur or are in none of the data's subsets; None without masks.
        seen: what can be told without masks.
    """

    iou: Tensor | None
    seen: dict[str, float]


def predict(net: Callable[[Tensor], Tensor], images: Tensor, run: Run) -> Tensor:
    """Logits of whole images, in parts that overlap where ``--tile`` asks for it."""
    tile = run.settings.tile
    if tile is None:
        return net(images)
    stride = [max(1, round(side * (1 - run.settings.overlap))) for side in tile]
    return predict_in_parts(net, images, window=tuple(tile), stride=tuple(stride), taper=True)


def ready_to_predict(net: nn.Module, data: Data, run: Run) -> nn.Module:
    """Evaluation mode, with BatchNorm's statistics of the target images, or the average over processes."""
    if run.settings.reestimate_bn:
        try:
            reestimate_batchnorm(net, data, run)
        except ValueError as error:
            raise SystemExit(in_options(error)) from None
    else:
        run.average_buffers(net)
    return net.eval()


def reestimate_batchnorm(net: nn.Module, data: Data, run: Run) -> None:
    """Give BatchNorm the statistics of all target images, the same on every process."""
    blocks = progress(in_blocks(data.target, run, every_image=True), "BatchNorm's statistics", disable=not run.main)
    batches = (torch.cat(batch) for batch in _batches_for_statistics((images for images, _ in blocks), run))
    with torch.random.fork_rng():
        torch.manual_seed(run.settings.seed)  # dropout is on: alike on all processes, and after a restart
        update_bn(batches, net)


def score_before(net: nn.Module, data: Data, run: Run, *, group: str = "") -> Score:
    """Score the network that training begins with, as it came and with BatchNorm re-estimated: rounds -1 and 0.

    Afterwards the network is as it was. What comes after the last step has so been done once before the first, and
    nothing ends a run of hours there. The score that is returned is that of ``--reestimate-bn``.
    """
    if run.evaluation is None:
        run.evaluation = lambda where: _score_between(net, data, run, where)
    if run.stage:  # resumed
        return Score(None, {})
    with _unchanged(net):
        score = evaluate(net.eval(), data, run, -1, group=group, ready=True)
        text = line(score, data)
        if any(isinstance(module, _BatchNorm) for module in net.modules()):
            try:
                reestimate_batchnorm(net, data, run)
                adapted = evaluate(net.eval(), data, run, 0, group=group, ready=True)
                text += f"; BatchNorm re-estimated on the target images: {line(adapted, data)}"
                score = adapted if run.settings.reestimate_bn else score
            except ValueError as error:
                if run.settings.reestimate_bn:
                    raise SystemExit(in_options(error)) from None
                text += "; BatchNorm cannot be re-estimated from one image at a time"
    run.say(f"before training{f', {group}' if group else ''}: {text}")
    return score


def _score_between(net: nn.Module, data: Data, run: Run, where: str) -> None:
    """What ``--eval-every`` does."""
    if data.val is None:
        return
    with _unchanged(net):
        score = _measure(ready_to_predict(net, data, run), data, run, None)
        run.say(f"{where}: {line(score, data)}")
        run.keep_best(net, mean_iou(score, data), where)
        run.accelerator.log({"mIoU": mean_iou(score, data)}, step=run.steps_done)


def evaluate(
    net: nn.Module, data: Data, run: Run, number: int, *, group: str = "", ready: bool = False, **recorded: Any
) -> Score:
    """Measure a network on the validation images; without any, tell what is seen on target images.

    Args:
        net: the network itself, not what ``run.prepare`` returned; gets ready to predict.
        data: with validation images or without.
        run: with its settings of evaluation.
        number: of the round: -1 source only, 0 BatchNorm re-estimated, then counted from 1.
        group: of several networks in one run, which.
        ready: leave BatchNorm's statistics as they are.
        recorded: for the report: ``stored``, the labels of the round, or its ``thresholds``.
    """
    if not ready:
        net = ready_to_predict(net, data, run)
    name = {-1: "source only", 0: "before"}.get(number, f"round {number}")
    name = f"{name} {group}".strip()
    if data.val is None:
        score = Score(None, _watch(net, data, run, number, group, name))
        record_unlabelled(run, number, f"{group} " if group else "", score.seen)
    else:
        score = _measure(net, data, run, name)
        if not group:
            run.keep_best(net, mean_iou(score, data), name if number > 0 else "before training")
    record(run, data, number, iou=score.iou, group=group, **recorded)
    return score


@torch.no_grad()
def _measure(net: nn.Module, data: Data, run: Run, name: str | None) -> Score:
    matrix = MulticlassConfusionMatrix(data.label_map.num_classes, ignore_index=IGNORE_INDEX).to(run.device)
    draw = run.main and name is not None
    for images, labels in progress(in_blocks(data.val, run), "evaluating", disable=not run.main):
        logits = _fused(net, images, run)
        if logits.shape[-2:] != labels.shape[-2:]:  # --resize; the truth stays as it is
            logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear")
        matrix.update(logits.argmax(dim=1), labels)
        if draw:
            draw_predictions(images, logits, labels, data, run, name)
            draw = False
    counts = matrix.compute().double().cpu()  # added over processes
    iou = 100 * counts.diag() / (counts.sum(0) + counts.sum(1) - counts.diag())
    counted = torch.tensor(sorted(set().union(*data.subsets.values())))  # SYNTHIA has not all of Cityscapes' classes
    return Score(torch.full_like(iou, torch.nan).index_copy(0, counted, iou[counted]), {})


def _fused(net: nn.Module, images: Tensor, run: Run) -> Tensor:
    """Logits, or log-probabilities averaged over ``--scales`` and ``--flip``."""
    scales, flip = tuple(run.settings.scales), run.settings.flip
    if scales == (1.0,) and not flip:
        return predict(net, images, run)
    return fuse_views(lambda view: predict(net, view, run), images, scales=scales, flip=flip).log()


@torch.no_grad()
def _watch(net: nn.Module, data: Data, run: Run, number: int, group: str, name: str) -> dict[str, float]:
    """How sure the network is on some target images, how its outputs cluster, and how its labels have changed."""
    places = range(0, len(data.target), -(-len(data.target) // _WATCHED))
    folder, ending = run.out / "seen", f"{group}-rank{run.rank}of{run.world}.pt"
    before = [folder / f"{earlier}{ending}" for earlier in range(-1, number)]
    earlier = next((torch.load(path, weights_only=True) for path in reversed(before) if path.exists()), None)
    sums, labels = torch.zeros(5, dtype=torch.float64), []  # images, entropy, density, pixels compared, equal ones
    for images, _ in in_blocks(torch.utils.data.Subset(data.target, places), run):
        for logits in _fused(net, images, run).float().split(1):
            log_probs = logits.log_softmax(dim=1)
            entropy = -(log_probs.exp() * log_probs).sum(dim=1).mean() / torch.tensor(logits.shape[1]).log()
            generator = torch.Generator(logits.device).manual_seed(run.settings.seed)
            density = soft_neighbourhood_density(logits, generator=generator)
            labels.append(logits.argmax(dim=1)[0].byte().cpu())
            sums[:3] += torch.stack([torch.ones(()), entropy.cpu(), density.cpu()]).double()
            if earlier is not None:
                sums[3:] += torch.tensor([labels[-1].numel(), int((labels[-1] == earlier[len(labels) - 1]).sum())])
        if len(labels) == len(images) and run.main:
            draw_predictions(images, _fused(net, images, run), None, data, run, name)
    save_atomically(labels, folder / f"{number}{ending}")
    images, entropy, density, compared, equal = all_reduce_sum(sums).tolist()
    seen = {"entropy": entropy / images, "SND": density / images}
    return seen | ({"labels as before, %": 100 * equal / compared} if compared else {})


def mean_iou(score: Score, data: Data) -> float:
    """Mean IoU over the first of the data's subsets of classes."""
    return float(score.iou[list(next(iter(data.subsets.values())))].nanmean())


def summary(score: Score, data: Data) -> dict[str, Any]:
    """What goes into ``result.json``: mean IoU over each of the data's subsets of classes, and the IoU of each."""
    if score.iou is None and not score.seen:
        raise SystemExit("this run has gone beyond so many rounds: give more --rounds, or choose another --out")
    if score.iou is None:
        return {"not measured": "mIoU: there are no validation masks", **score.seen}
    means = {heading: float(score.iou[list(classes)].nanmean()) for heading, classes in data.subsets.items()}
    return {**means, "iou": dict(zip(data.label_map.classes, score.iou.tolist(), strict=True))}


def line(score: Score, data: Data) -> str:
    """One line for people."""
    if score.iou is None:
        return ", ".join(f"{name} {value:.3g}" for name, value in score.seen.items()) or "not measured"
    return ", ".join(f"{heading} {score.iou[list(classes)].nanmean():.1f}" for heading, classes in data.subsets.items())


@contextlib.contextmanager
def _unchanged(net: nn.Module) -> Iterator[None]:
    """Leave a network's buffers and mode, and torch's generator, as they were."""
    kept = {name: buffer.clone() for name, buffer in net.named_buffers()}
    modes = {module: module.training for module in net.modules()}
    with torch.random.fork_rng():
        yield
    for name, buffer in net.named_buffers():
        buffer.copy_(kept[name])
    for module, training in modes.items():
        module.training = training


def _batches_for_statistics(items: Iterable[Tensor], run: Run) -> Iterator[list[Tensor]]:
    """Many small images of one size at once, of large ones a batch; never a single one left if there are others."""
    waiting: dict[torch.Size, list[Tensor]] = {}
    for images in items:
        for part in (part for image in images.split(1) for part in _tiles(image, run.settings.tile)):
            size = max(run.settings.batch, 2 * _PIXELS_AT_ONCE // part[0, 0].numel())
            batch = waiting.setdefault(part.shape, [])
            batch.append(part)
            if len(batch) == size + 2:
                yield batch[:size]
                del batch[:size]
    yield from waiting.values()


def _tiles(images: Tensor, size: Any) -> Iterator[Tensor]:
    """Parts of an image that cover it."""
    if size is None:
        yield images
        return
    starts = []
    for length, side in zip(images.shape[-2:], size, strict=True):
        starts.append([*range(0, max(length - side, 0), side), max(length - side, 0)])
    for top in starts[0]:
        for left in starts[1]:
            yield images[..., top : top + size[0], left : left + size[1]]
