"""mIoU from one confusion matrix over the whole set, on any number of processes; BatchNorm statistics of a domain."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from _data.held_out import Restyled
from _data.opening import Data
from _reporting import draw_predictions, record
from _reporting.without_masks import measure_without_masks
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset
from torchmetrics.classification import MulticlassConfusionMatrix

from _common.check import SCORE, keep_if_better
from _common.loading import in_blocks
from _common.progress import progress
from _common.run import Run
from selftrain_seg import IGNORE_INDEX
from selftrain_seg.batchnorm import choose_alpha, estimate_statistics, mix_statistics, set_statistics
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


def predict_labels(net: Callable[[Tensor], Tensor], images: Tensor, run: Run) -> Tensor:
    """Logits that pseudo-labels are made of, averaged over ``--label-scales`` and ``--label-flip``."""
    return _mean_logits(net, images, run, run.settings.label_scales, run.settings.label_flip)


def ready_to_predict(net: nn.Module, data: Data, run: Run) -> nn.Module:
    """Evaluation mode, with BatchNorm's statistics by ``--reestimate-bn``, or their average over processes."""
    if run.settings.reestimate_bn and has_batchnorm(net):
        reestimate_batchnorm(net, data, run, run.settings.reestimate_bn)
    else:
        run.average_buffers(net)
    return net.eval()


def has_batchnorm(net: nn.Module) -> bool:
    """Tell whether a network has BatchNorm that is not frozen."""
    return any(isinstance(module, _BatchNorm) for module in net.modules())


def reestimate_batchnorm(net: nn.Module, data: Data, run: Run, share: float | str) -> float:
    """Give BatchNorm the statistics of all target images, or mix them with those of source images.

    Processes share the images. Both are estimated anew, since in training the running statistics become a mixture of
    both domains; those of the source from at least ``--check-images`` of its images, evenly spread, if it has so many.

    Args:
        net: the network itself.
        data: with source images unless the share is 1.
        run: with the settings of prediction.
        share: of the target's statistics, above 0; "auto" chooses what scores best on restyled source images, and the
            smallest of those that are as good within ``--check-tolerance``.

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
    blocks = progress(in_blocks(dataset, run), "BatchNorm's statistics", disable=not run.main)
    images = (images for images, _ in blocks)
    return estimate_statistics(net, images, forward=lambda batch: predict(net, batch, run))


def restyled_miou(net: nn.Module, data: Data, run: Run) -> float:
    """MIoU on held-out source images in the colours of target images, in percent. BatchNorm stays as it is."""
    restyled = Restyled(data.held_out, data.target)
    return mean_iou(_measure(net.eval(), data._replace(val=restyled), run, None), data)


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
            share = reestimate_batchnorm(net, data, run, run.settings.reestimate_bn or 1)
            adapted = evaluate(net.eval(), data, run, 0, group=group, ready=True)
            what = "re-estimated on" if share == 1 else f"with a share of {share:g} of the statistics of"
            text += f"; BatchNorm {what} the target images: {line(adapted, data)}"
            score = adapted if run.settings.reestimate_bn else score
    run.say(f"before training{f', {group}' if group else ''}: {text}")
    return score


def _score_between(net: nn.Module, data: Data, run: Run, where: str) -> None:
    """What ``--eval-every`` does."""
    if data.val is None and run.settings.check == "none":
        return
    with _unchanged(net):
        ready_to_predict(net, data, run)
        true_score = None
        if data.val is not None:
            score = _measure(net, data, run, None)
            true_score = mean_iou(score, data)
            run.say(f"{where}: {line(score, data)}")
            run.keep_best(net, true_score, where)
            run.accelerator.log({"mIoU": true_score}, step=run.steps_done)
        if run.settings.check != "none":
            keep_if_better(net, restyled_miou(net, data, run), true_score, where, run, before=False)


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
    name = {-1: "source only", 0: "BatchNorm re-estimated"}.get(number, f"round {number}")
    name = f"{name} {group}".strip()
    if data.val is None:
        score = Score(
            None, measure_without_masks(lambda images: _fused(net, images, run), data, run, number, group, name)
        )
    else:
        score = _measure(net, data, run, name)
        if not group:
            run.keep_best(net, mean_iou(score, data), name)
    if run.settings.check != "none" and not group:
        true_score = None if score.iou is None else mean_iou(score, data)
        keep_if_better(net, restyled_miou(net, data, run), true_score, name, run, before=number < 1)
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
        return _mean_logits(net, images, run, scales, flip)
    probs = fuse_views(lambda view: predict(net, view, run), images, scales=scales, flip=flip)
    return probs.clamp(min=torch.finfo(probs.dtype).tiny).log()  # resizing turns -inf into NaN


def _mean_logits(
    net: Callable[[Tensor], Tensor], images: Tensor, run: Run, scales: Sequence[float], flip: bool
) -> Tensor:
    """Logits averaged over views, each brought back to the images' size and side."""
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
