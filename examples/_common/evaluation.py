"""Prediction, BatchNorm statistics and mIoU on the target domain, on any number of processes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from _data.held_out import Restyled
from _data.opening import Data
from _reporting import draw_predictions, record, subset_means
from _reporting.without_masks import measure_without_masks
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset
from torchmetrics.classification import MulticlassConfusionMatrix
from torchvision.ops import FrozenBatchNorm2d

from _common.loading import in_blocks
from _common.progress import progress
from _common.run import Run
from _common.scores import SCORE, record_score
from selftrain_seg import IGNORE_INDEX
from selftrain_seg.batchnorm import choose_alpha, estimate_statistics, mix_statistics, set_statistics
from selftrain_seg.confidence import fuse_views
from selftrain_seg.teachers import predict_in_parts


class Score(NamedTuple):
    """Result of an evaluation on the target domain.

    Attributes:
        iou: (C,) IoU in percent, NaN for classes that never occur or are in none of the data's subsets; None without
            validation masks.
        statistics: of the predictions, by name, if there are no validation masks; else empty.
    """

    iou: Tensor | None
    statistics: dict[str, float]


def predict(net: Callable[[Tensor], Tensor], images: Tensor, run: Run) -> Tensor:
    """Return the logits of whole images, or with ``--tile`` those of overlapping parts, merged."""
    tile = run.settings.tile
    with run.autocast():
        if tile is None:
            return net(images).float()
        stride = [max(1, round(side * (1 - run.settings.overlap))) for side in tile]
        return predict_in_parts(net, images, window=tuple(tile), stride=tuple(stride), taper=True).float()


def predict_labels(net: Callable[[Tensor], Tensor], images: Tensor, run: Run) -> Tensor:
    """Return the logits that pseudo-labels are made from, averaged over ``--label-scales`` and ``--label-flip``."""
    return _mean_logits(net, images, run, run.settings.label_scales, run.settings.label_flip)


def ready_to_predict(net: nn.Module, data: Data, run: Run) -> nn.Module:
    """Switch to evaluation mode, and re-estimate BatchNorm (``--reestimate-bn``) or average it over processes."""
    if run.settings.reestimate_bn and has_batchnorm(net):
        reestimate_batchnorm(net, data, run, run.settings.reestimate_bn)
    else:
        run.average_buffers(net)
    return net.eval()


def has_batchnorm(net: nn.Module) -> bool:
    """Return whether a network has BatchNorm layers with running statistics that are not frozen."""
    return any(isinstance(module, _BatchNorm) and module.running_mean is not None for module in net.modules())


def reestimate_batchnorm(net: nn.Module, data: Data, run: Run, share: float | str) -> float:
    """Set BatchNorm's statistics to those of the target images, or to a mixture with those of source images.

    Both are estimated anew, because the running statistics of training mix both domains. Source statistics come from
    ``--check-images`` images or more, evenly spread. Processes share the images.

    Args:
        net: the network itself, not what ``run.prepare`` returned.
        data: has source images, unless the share is 1.
        run: has the settings of prediction.
        share: weight of the target statistics, above 0. "auto" takes the share with the best mIoU on restyled source
            images, or the smallest one that is within ``--check-tolerance`` of it.

    Returns:
        The share.
    """
    statistics = _statistics(net, data.target, run)
    if share != 1:
        stride = max(1, len(data.source) // run.settings.check_images)
        of_source = _statistics(net, data.source.only(range(0, len(data.source), stride)), run)
        if share == "auto":
            margin = max(0.0, run.settings.check_tolerance)
            found = choose_alpha(net, of_source, statistics, lambda one: restyled_miou(one, data, run), margin=margin)
            share = found.alpha
            scores = ", ".join(f"{alpha:g}: {score:.1f}" for alpha, score in found.scores.items())
            run.say(f"BatchNorm: {share:g} of the target's statistics ({SCORE} by share: {scores})")
        statistics = mix_statistics(of_source, statistics, share)
    set_statistics(net, statistics)
    return float(share)


def _statistics(net: nn.Module, dataset: Dataset[Any], run: Run) -> dict[str, Tensor]:
    blocks = progress(in_blocks(dataset, run), "BatchNorm statistics", disable=not run.main)
    images = (images for images, _ in blocks)
    return estimate_statistics(net, images, forward=lambda batch: predict(net, batch, run))


def restyled_miou(net: nn.Module, data: Data, run: Run) -> float:
    """Return the mIoU, in percent, on held-out source images in the colours of target images."""
    restyled = Restyled(data.held_out, data.target)
    miou = mean_iou(_measure(net.eval(), data._replace(val=restyled), run, None), data)
    if math.isnan(miou):
        raise SystemExit(
            "--check and --reestimate-bn auto: the held-out source images have no labelled pixel: use more "
            "--check-images"
        )
    return miou


def score_before(net: nn.Module, data: Data, run: Run, *, group: str = "") -> Score:
    """Score the network before training, as it is and with BatchNorm re-estimated: rounds -1 and 0 of the report.

    The network is unchanged afterwards. An error in evaluation ends the run here, not after its last step.

    Returns:
        The score of the statistics that ``--reestimate-bn`` selects. It is empty if the run is resumed.
    """
    if run.evaluation is None:
        run.evaluation = lambda name: _score_during(net, data, run, name)
    if run.stage:  # resumed
        return Score(None, {})
    with _unchanged(net, run):
        score = evaluate(net.eval(), data, run, -1, group=group, ready=True)
        text = line(score, data)
        is_frozen = any(isinstance(module, FrozenBatchNorm2d) for module in net.modules())
        if has_batchnorm(net):
            share = reestimate_batchnorm(net, data, run, run.settings.reestimate_bn or 1)
            adapted = evaluate(net.eval(), data, run, 0, group=group, ready=True)
            where = " outside the frozen backbone" if is_frozen else ""
            what = "re-estimated on" if share == 1 else f"with a share of {share:g} of the statistics of"
            text += f"; BatchNorm{where} {what} the target images: {line(adapted, data)}"
            score = adapted if run.settings.reestimate_bn else score
        elif run.settings.reestimate_bn:
            missing = "the network has no BatchNorm with running statistics"
            reason = "all BatchNorm layers are frozen" if is_frozen else missing
            text += f"; --reestimate-bn has no effect: {reason}"
    run.say(f"before training{f', {group}' if group else ''}: {text}")
    if score.iou is not None:
        run.track({f"mIoU {group}".strip(): mean_iou(score, data)})  # the first point of the curve
    return score


def evaluate(
    net: nn.Module, data: Data, run: Run, number: int, *, group: str = "", ready: bool = False, **recorded: Any
) -> Score:
    """Score a network for the report: mIoU on the validation images, or statistics of its predictions without any.

    Args:
        net: the network itself, not what ``run.prepare`` returned; it is made ready to predict.
        data: with or without validation images.
        run: has the settings of evaluation.
        number: of the round: -1 source only, 0 BatchNorm re-estimated, training rounds from 1.
        group: name of the network if a run has several.
        ready: keep BatchNorm's statistics as they are.
        recorded: for the report: ``stored``, the labels of the round, or its ``thresholds``.
    """
    if not ready:
        net = ready_to_predict(net, data, run)
    name = {-1: "source only", 0: "BatchNorm re-estimated"}.get(number, f"round {number}")
    name = f"{name} {group}".strip()
    score = _scored(net, data, run, name, before=number < 1, group=group, draw=True)
    if score is None:
        score = Score(
            None, measure_without_masks(lambda images: _fused(net, images, run), data, run, number, group, name)
        )
    record(run, data, number, iou=score.iou, group=group, **recorded)
    return score


def _score_during(net: nn.Module, data: Data, run: Run, name: str) -> None:
    """Score a network during training, for ``--eval-every``."""
    if data.val is None and run.settings.check == "none":
        return
    with _unchanged(net, run):
        score = _scored(ready_to_predict(net, data, run), data, run, name)
        if score is not None:
            run.say(f"{name}: {line(score, data)}")


def _scored(
    net: nn.Module, data: Data, run: Run, name: str, *, before: bool = False, group: str = "", draw: bool = False
) -> Score | None:
    """Measure a network, log its mIoU and keep the best weights; returns None without validation images."""
    score = None if data.val is None else _measure(net, data, run, name if draw else None)
    miou = None if score is None else mean_iou(score, data)
    if miou is not None:
        run.track({f"mIoU {name}" if before else f"mIoU {group}".strip(): miou})
    if not group:
        restyled = None if run.settings.check == "none" else restyled_miou(net, data, run)
        record_score(net, name, run, before=before, miou=miou, restyled=restyled)
    return score


@torch.no_grad()
def _measure(net: nn.Module, data: Data, run: Run, name: str | None) -> Score:
    """Compute the IoU from one confusion matrix over all images; with a name, draw the first predictions."""
    matrix = MulticlassConfusionMatrix(data.label_map.num_classes, ignore_index=IGNORE_INDEX).to(run.device)
    empty = torch.zeros(0, dtype=torch.int64, device=run.device)
    matrix.update(empty, empty)  # torchmetrics warns if a process has no image
    draw = run.main and name is not None
    for images, labels in progress(in_blocks(data.val, run), "evaluating", disable=not run.main):
        logits = _fused(net, images, run)
        if logits.shape[-2:] != labels.shape[-2:]:  # --resize keeps the size of validation masks
            logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear")
        matrix.update(logits.argmax(dim=1), labels)
        if draw:
            draw_predictions(images, logits, labels, data, run, name)
            draw = False
    counts = matrix.compute().double().cpu()  # summed over processes
    iou = 100 * counts.diag() / (counts.sum(0) + counts.sum(1) - counts.diag())
    counted = torch.tensor(sorted(set().union(*data.subsets.values())))  # SYNTHIA lacks classes of Cityscapes
    return Score(torch.full_like(iou, torch.nan).index_copy(0, counted, iou[counted]), {})


def _fused(net: nn.Module, images: Tensor, run: Run) -> Tensor:
    """Return the logits of evaluation, or the log-probabilities averaged over ``--scales`` and ``--flip``."""
    scales, flip = tuple(run.settings.scales), run.settings.flip
    if scales == (1.0,) and not flip:
        return predict(net, images, run)
    if run.settings.fusion == "logits":
        return _mean_logits(net, images, run, scales, flip)
    probs = fuse_views(lambda view: predict(net, view, run), images, scales=scales, flip=flip)
    return probs.clamp(min=torch.finfo(probs.dtype).tiny).log()  # resizing would turn -inf into NaN


def _mean_logits(
    net: Callable[[Tensor], Tensor], images: Tensor, run: Run, scales: Sequence[float], flip: bool
) -> Tensor:
    """Return the logits averaged over scaled and mirrored views, in the size of the images."""
    if tuple(scales) == (1.0,) and not flip:
        return predict(net, images, run)
    size, total = images.shape[-2:], []
    for scale in scales:
        resized = [max(1, round(scale * side)) for side in size]
        view = images if scale == 1 else F.interpolate(images, resized, mode="bilinear", antialias=True)
        logits = [predict(net, view, run)]
        if flip:
            logits.append(predict(net, view.flip(-1), run).flip(-1))
        total += [F.interpolate(part, size, mode="bilinear") for part in logits]
    return torch.stack(total).mean(dim=0)


def mean_iou(score: Score, data: Data) -> float:
    """Return the mean IoU over the first of the data's subsets of classes."""
    return next(iter(subset_means(score.iou, data).values()))


def summary(score: Score, data: Data) -> dict[str, Any]:
    """Return the entries of ``result.json``: the mean IoU of each subset of classes, and the IoU of each class."""
    if score.iou is None and not score.statistics:
        raise SystemExit("the folder holds a run of more rounds: give more --rounds, or choose another --out")
    if score.iou is None:
        return {"not measured": "mIoU: there are no validation masks", **score.statistics}
    return {**subset_means(score.iou, data), "iou": dict(zip(data.label_map.classes, score.iou.tolist(), strict=True))}


def line(score: Score, data: Data) -> str:
    """Return a score as one line of text."""
    if score.iou is None:
        return ", ".join(f"{name} {value:.3g}" for name, value in score.statistics.items()) or "not measured"
    return ", ".join(f"{heading} {value:.1f}" for heading, value in subset_means(score.iou, data).items())


@contextlib.contextmanager
def _unchanged(net: nn.Module, run: Run) -> Iterator[None]:
    """Restore a network's buffers and mode, and torch's generators, at the end."""
    kept = {name: buffer.clone() for name, buffer in net.named_buffers()}
    modes = {module: module.training for module in net.modules()}
    devices = [] if run.device.type == "cpu" else [run.device]  # by default, those of all GPUs
    with torch.random.fork_rng(devices, device_type=run.device.type):
        yield
    for name, buffer in net.named_buffers():
        buffer.copy_(kept[name])
    for module, training in modes.items():
        module.training = training
