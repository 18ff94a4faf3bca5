"""mIoU from one confusion matrix over the whole set, on any number of ranks; BatchNorm statistics of a domain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn
from torchmetrics.classification import MulticlassConfusionMatrix
from torchvision.utils import make_grid

from _common.data import save_atomically
from _common.folders import Data
from _common.loading import in_order
from _common.run import Run, said
from selftrain_seg import IGNORE_INDEX
from selftrain_seg.confidence import fuse_views, top_confidence
from selftrain_seg.distributed import all_reduce_sum
from selftrain_seg.teachers import predict_in_parts, soft_neighbourhood_density
from selftrain_seg.visualize import confidence_map, image_sheet, overlay, record_picture, record_round, record_step

_PIXELS_AT_ONCE = 25 * 64 * 128  # of small images; large ones go one by one
_WATCHED = 50  # target images that a network is watched on where there are no masks


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
    if run.args.tile is None:
        return net(images)
    stride = [max(1, round(side * (1 - run.args.overlap))) for side in run.args.tile]
    return predict_in_parts(net, images, window=tuple(run.args.tile), stride=tuple(stride), taper=True)


def prepare(net: nn.Module, data: Data, run: Run) -> nn.Module:
    """Make a network ready to predict target images: evaluation mode, BatchNorm's statistics as asked for.

    With ``--reestimate-bn 1`` they are those of all target images, else the average over ranks of what training left.
    """
    net = getattr(net, "_orig_mod", net)
    net = getattr(net, "module", net)
    if run.args.reestimate_bn:
        every = range(len(data.target))  # all of them on every rank, so that all have the same statistics
        images = (images for images, _ in in_order(data.target, run, every))
        with torch.random.fork_rng():
            torch.manual_seed(run.args.seed)  # dropout is on: alike on all ranks, and after a restart
            try:
                update_bn((torch.cat(batch) for batch in _for_statistics(images, run)), net)
            except ValueError as error:
                raise said(error) from None
    else:
        run.average_buffers(net)
    return net.eval()


def score_before(net: nn.Module, data: Data, run: Run, *, group: str = "") -> Score:
    """Score of the network that training begins with; afterwards the network is as it was.

    So what comes after the last step has been done once before the first, and nothing ends a run of hours there.
    """
    if run.resumed():
        return Score(None, {})
    kept = {name: buffer.clone() for name, buffer in net.named_buffers()}
    with torch.random.fork_rng():
        score = evaluate(prepare(net, data, run), data, run, 0, group=group)
    for name, buffer in net.named_buffers():
        buffer.copy_(kept[name])
    net.train()
    run.say(f"before training{f', {group}' if group else ''}: {line(score, data)}")
    if run.main:
        record_round(run.out, 0, classes=data.label_map.classes, iou=score.iou, group=group)
    return score


@torch.no_grad()
def evaluate(net: nn.Module, data: Data, run: Run, round: int, *, group: str = "") -> Score:
    """Measure a network on the validation images; without any, tell what is seen on target images.

    Args:
        net: what ``prepare`` has made ready.
        data: with validation images or without.
        run: with its options for evaluation.
        round: 0 before training, then counted; pictures of the first images are named so.
        group: of several networks in one run, which.
    """
    name = f"{'before' if round == 0 else f'round {round}'} {group}".strip()
    if data.val is None:
        return Score(None, _watch(net, data, run, round, group, name))
    matrix = MulticlassConfusionMatrix(data.label_map.num_classes, ignore_index=IGNORE_INDEX).to(run.device)
    shown = not run.main
    items = in_order(data.val, run, range(run.rank, len(data.val), run.world))
    for batch in _of_one_size(items):
        images, labels = (torch.cat(parts) for parts in zip(*batch, strict=True))
        logits = _fused(net, images, run)
        if logits.shape[-2:] != labels.shape[-2:]:  # --resize; the truth stays as it is
            logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear")
        matrix.update(logits.argmax(dim=1), labels)
        if not shown:
            show_predictions(images, logits, labels, data, run, name)
            shown = True
    counts = matrix.compute().double().cpu()  # added over ranks
    iou = 100 * counts.diag() / (counts.sum(0) + counts.sum(1) - counts.diag())
    counted = torch.tensor(sorted(set().union(*data.subsets.values())))  # SYNTHIA has not all of Cityscapes' classes
    return Score(torch.full_like(iou, torch.nan).index_copy(0, counted, iou[counted]), {})


def _fused(net: nn.Module, images: Tensor, run: Run) -> Tensor:
    """Logits, or log-probabilities averaged over ``--scales`` and ``--flip``."""
    scales, flip = tuple(run.args.scales), run.args.flip
    if scales == (1.0,) and not flip:
        return predict(net, images, run)
    return fuse_views(lambda view: predict(net, view, run), images, scales=scales, flip=flip).log()


def _watch(net: nn.Module, data: Data, run: Run, round: int, group: str, name: str) -> dict[str, float]:
    """How sure the network is on some target images, how its outputs cluster, and how its labels have changed."""
    places = range(0, len(data.target), -(-len(data.target) // _WATCHED))[run.rank :: run.world]
    folder, ending = run.out / "seen", f"{group}-rank{run.rank}of{run.world}.pt"
    before = [folder / f"{number}{ending}" for number in range(round)]
    earlier = next((torch.load(path, weights_only=True) for path in reversed(before) if path.exists()), None)
    sums, labels = torch.zeros(5, dtype=torch.float64), []  # images, entropy, density, pixels compared, equal ones
    for number, (images, _) in enumerate(in_order(data.target, run, places)):
        logits = _fused(net, images, run).float()
        log_probs = logits.log_softmax(dim=1)
        entropy = -(log_probs.exp() * log_probs).sum(dim=1).mean() / torch.tensor(logits.shape[1]).log()
        generator = torch.Generator(logits.device).manual_seed(run.args.seed)
        density = soft_neighbourhood_density(logits, generator=generator)
        labels.append(logits.argmax(dim=1)[0].byte().cpu())
        sums[:3] += torch.stack([torch.ones(()), entropy.cpu(), density.cpu()]).double()
        if earlier is not None:
            sums[3:] += torch.tensor([labels[-1].numel(), int((labels[-1] == earlier[number]).sum())])
        if number == 0 and run.main:
            show_predictions(images, logits, None, data, run, name)
    save_atomically(labels, folder / f"{round}{ending}")
    images, entropy, density, compared, equal = all_reduce_sum(sums).tolist()
    seen = {"entropy": entropy / images, "SND": density / images}
    if compared:
        seen["labels as before, %"] = 100 * equal / compared
    if run.main:
        record_step(run.out, round, {f"{name}{f' {group}' if group else ''} by round": x for name, x in seen.items()})
    return seen


def show_predictions(images: Tensor, logits: Tensor, labels: Tensor | None, data: Data, run: Run, name: str) -> None:
    """Leave pictures of a few images: labels over them on TensorBoard; these and the confidence for the report."""
    images, logits = visible(images[:6]), logits[:6]
    if logits.shape[-2:] != images.shape[-2:]:
        logits = F.interpolate(logits, size=images.shape[-2:], mode="bilinear")
        labels = None if labels is None else F.interpolate(labels[:, None].float(), size=images.shape[-2:])[:, 0].long()
    palette, top = data.label_map.palette, top_confidence(logits)
    maps = {"prediction": top.labels} | ({} if labels is None else {"truth": labels[:6]})
    painted = {column: overlay(images, shown, palette, opacity=0.6) for column, shown in maps.items()}
    rows = ((255 * images).round().byte(), *painted.values())
    run.picture(f"images, predictions{'' if labels is None else ', truth'}", make_grid(torch.cat(rows), len(images)))
    columns = {"image": images[:4], **{column: shown[:4] for column, shown in painted.items()}}
    sheet = image_sheet(columns, palette=palette, classes=data.label_map.classes)
    record_picture(run.out, f"{name} predictions", sheet)
    confidence = confidence_map(top.log_confidence[:4].exp(), images=images[:4])
    record_picture(run.out, f"{name} confidence", confidence)


def visible(images: Tensor) -> Tensor:
    """Three channels that can be looked at: the first three, or the first as grey."""
    return images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)


def report(score: Score, data: Data) -> dict[str, Any]:
    """What goes into ``result.json``: mean IoU over each of the data's subsets of classes, and the IoU of each."""
    if score.iou is None:
        return {"not measured": "mIoU: there are no validation masks", **score.seen}
    means = {heading: float(score.iou[list(classes)].nanmean()) for heading, classes in data.subsets.items()}
    return {**means, "iou": dict(zip(data.label_map.classes, score.iou.tolist(), strict=True))}


def line(score: Score, data: Data) -> str:
    """One line for people."""
    if score.iou is None:
        return ", ".join(f"{name} {value:.3g}" for name, value in score.seen.items()) or "not measured"
    return ", ".join(f"{heading} {score.iou[list(classes)].nanmean():.1f}" for heading, classes in data.subsets.items())


def _of_one_size(items: Iterable[tuple[Tensor, Tensor]]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Put small images of one size together."""
    batch: list[tuple[Tensor, Tensor]] = []
    for images, labels in items:
        full = (len(batch) + 1) * images[0, 0].numel() > _PIXELS_AT_ONCE
        if batch and (full or images.shape != batch[0][0].shape or labels.shape != batch[0][1].shape):
            yield batch
            batch = []
        batch.append((images, labels))
    if batch:
        yield batch


def _for_statistics(items: Iterable[Tensor], run: Run) -> Iterator[list[Tensor]]:
    """Many small images of one size at once, of large ones a batch; never a single one left if there are others."""
    waiting: dict[torch.Size, list[Tensor]] = {}
    for images in items:
        for part in _tiles(images, run.args.tile):
            size = max(run.args.batch, 2 * _PIXELS_AT_ONCE // part[0, 0].numel())
            batch = waiting.setdefault(part.shape, [])
            batch.append(part)
            if len(batch) == size + 2:
                yield batch[:size]
                del batch[:size]
    yield from waiting.values()


def _tiles(images: Tensor, size: list[int] | None) -> Iterator[Tensor]:
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
