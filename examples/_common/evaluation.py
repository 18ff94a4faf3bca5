"""mIoU from one confusion matrix over the whole set, on any number of processes; BatchNorm statistics of a domain."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from _data.opening import Data
from _reporting import draw_predictions, record
from _reporting.without_masks import measure_without_masks
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torchmetrics.classification import MulticlassConfusionMatrix

from _common.loading import in_blocks
from _common.progress import progress
from _common.run import Run
from selftrain_seg import IGNORE_INDEX
from selftrain_seg.batchnorm import estimate_statistics, set_statistics
from selftrain_seg.confidence import fuse_views
from selftrain_seg.teachers import predict_in_parts


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
    with run.autocast():
        if tile is None:
            return net(images).float()
        stride = [max(1, round(side * (1 - run.settings.overlap))) for side in tile]
        return predict_in_parts(net, images, window=tuple(tile), stride=tuple(stride), taper=True).float()


def ready_to_predict(net: nn.Module, data: Data, run: Run) -> nn.Module:
    """Evaluation mode, with BatchNorm's statistics of the target images, or the average over processes."""
    if run.settings.reestimate_bn and has_batchnorm(net):
        reestimate_batchnorm(net, data, run)
    else:
        run.average_buffers(net)
    return net.eval()


def has_batchnorm(net: nn.Module) -> bool:
    """Tell whether a network has BatchNorm that is not frozen."""
    return any(isinstance(module, _BatchNorm) for module in net.modules())


def reestimate_batchnorm(net: nn.Module, data: Data, run: Run) -> None:
    """Give BatchNorm the statistics of all target images; processes share the images."""
    blocks = progress(in_blocks(data.target, run), "BatchNorm's statistics", disable=not run.main)
    images = (images for images, _ in blocks)
    set_statistics(net, estimate_statistics(net, images, forward=lambda batch: predict(net, batch, run)))


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
        if has_batchnorm(net):
            reestimate_batchnorm(net, data, run)
            adapted = evaluate(net.eval(), data, run, 0, group=group, ready=True)
            text += f"; BatchNorm re-estimated on the target images: {line(adapted, data)}"
            score = adapted if run.settings.reestimate_bn else score
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
        score = Score(
            None, measure_without_masks(lambda images: _fused(net, images, run), data, run, number, group, name)
        )
    else:
        score = _measure(net, data, run, name)
        if not group:
            run.keep_best(net, mean_iou(score, data), name if number > 0 else "before training")
    record(run, data, number, iou=score.iou, group=group, **recorded)
    return score


@torch.no_grad()
def _measure(net: nn.Module, data: Data, run: Run, name: str | None) -> Score:
    matrix = MulticlassConfusionMatrix(data.label_map.num_classes, ignore_index=IGNORE_INDEX).to(run.device)
    nothing = torch.zeros(0, dtype=torch.int64, device=run.device)
    matrix.update(nothing, nothing)  # a process may have no image, of which torchmetrics warns
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
    """Logits, or log-probabilities or logits averaged over ``--scales`` and ``--flip``."""
    scales, flip = tuple(run.settings.scales), run.settings.flip
    if scales == (1.0,) and not flip:
        return predict(net, images, run)
    if run.settings.fusion == "logits":
        return _mean_logits(net, images, run)
    return fuse_views(lambda view: predict(net, view, run), images, scales=scales, flip=flip).log()


def _mean_logits(net: nn.Module, images: Tensor, run: Run) -> Tensor:
    """Logits averaged over views, each brought back to the images' size and side."""
    size, total = images.shape[-2:], []
    for scale in run.settings.scales:
        resized = [max(1, round(scale * side)) for side in size]
        view = images if scale == 1 else F.interpolate(images, resized, mode="bilinear", antialias=True)
        logits = [predict(net, view, run)]
        if run.settings.flip:
            logits.append(predict(net, view.flip(-1), run).flip(-1))
        total += [F.interpolate(part, size, mode="bilinear") for part in logits]
    return torch.stack(total).mean(dim=0)


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
