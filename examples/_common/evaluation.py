"""mIoU from one confusion matrix over the whole set, on any number of ranks; BatchNorm statistics of a domain."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torchmetrics.classification import MulticlassConfusionMatrix
from torchvision.utils import make_grid

from _common.folders import Data
from _common.loading import in_order
from _common.run import Run
from selftrain_seg import IGNORE_INDEX
from selftrain_seg.confidence import fuse_views, top_confidence
from selftrain_seg.visualize import confidence_map, image_sheet, overlay, record_picture


def prepare(net: nn.Module, data: Data, run: Run) -> nn.Module:
    """Make a network ready to predict target images: evaluation mode, BatchNorm's statistics as asked for.

    With ``--reestimate-bn 1`` they are those of all target images, else the average over ranks of what training left.
    """
    net = getattr(net, "_orig_mod", net)
    net = getattr(net, "module", net)
    if run.args.reestimate_bn:
        every = range(len(data.target))  # all of them on every rank, so that all have the same statistics
        with torch.random.fork_rng():
            torch.manual_seed(run.args.seed)  # dropout is on: alike on all ranks, and after a restart
            update_bn((images for images, _ in in_order(data.target, run, every, size=_for_statistics(data, run))), net)
    else:
        run.average_buffers(net)
    return net.eval()


@torch.no_grad()
def evaluate(net: nn.Module, data: Data, run: Run, name: str = "") -> Tensor:
    """Return the IoU of each class (C,) on the validation images, in percent.

    NaN for classes that never occur or are in none of the data's subsets.
    ``name`` tells the pictures of the first images from those of other calls.
    """
    metric = MulticlassConfusionMatrix(data.label_map.num_classes, ignore_index=IGNORE_INDEX).to(run.device)
    scales, flip, shown = tuple(run.args.scales), run.args.flip, not run.main
    for images, labels in in_order(data.val, run, range(run.rank, len(data.val), run.world), size=_at_once(run)):
        fused = scales != (1.0,) or flip
        scores = fuse_views(net, images, scales=scales, flip=flip) if fused else net(images)
        metric.update(scores.argmax(dim=1), labels)
        if not shown:
            show_predictions(images, scores.log() if fused else scores, labels, data, run, name)
            shown = True
    matrix = metric.compute().double().cpu()  # added over ranks
    iou = 100 * matrix.diag() / (matrix.sum(0) + matrix.sum(1) - matrix.diag())
    counted = torch.tensor(sorted(set().union(*data.subsets.values())))  # SYNTHIA has not all of Cityscapes' classes
    return torch.full_like(iou, torch.nan).index_copy(0, counted, iou[counted])


def show_predictions(images: Tensor, logits: Tensor, labels: Tensor, data: Data, run: Run, name: str) -> None:
    """Leave pictures of a few images: labels over them on TensorBoard; these and the confidence for the report."""
    images, logits, labels = (part[:6] for part in (images, logits, labels))
    palette, top = data.label_map.palette, top_confidence(logits)
    predicted, truth = (overlay(images, maps, palette, opacity=0.6) for maps in (top.labels, labels))
    rows = ((255 * images).round().byte(), predicted, truth)
    run.picture("images, predictions, truth", make_grid(torch.cat(rows), len(images)))
    columns = {"image": images[:4], "prediction": predicted[:4], "truth": truth[:4]}
    sheet = image_sheet(columns, palette=palette, classes=data.label_map.classes)
    record_picture(run.out, f"{name} predictions".strip(), sheet)
    confidence = confidence_map(top.log_confidence[:4].exp(), images=images[:4])
    record_picture(run.out, f"{name} confidence".strip(), confidence)


def report(iou: Tensor, data: Data) -> dict[str, Any]:
    """Mean IoU over each of the data's subsets of classes, and the IoU of each class."""
    means = {heading: float(iou[list(classes)].nanmean()) for heading, classes in data.subsets.items()}
    return {**means, "iou": dict(zip(data.label_map.classes, iou.tolist(), strict=True))}


def line(iou: Tensor, data: Data) -> str:
    """One line for people."""
    return ", ".join(f"{heading} {iou[list(classes)].nanmean():.1f}" for heading, classes in data.subsets.items())


def _at_once(run: Run) -> int:
    return 25 if run.args.data == "streets" else 1


def _for_statistics(data: Data, run: Run) -> int:
    """Whole images at once: many small ones; one of VOC, where sizes differ; never a single one left at the end."""
    size = {"streets": 50, "voc": 1}.get(run.args.data, run.args.batch)
    while size > 1 and len(data.target) % size == 1:
        size += 1
    return size
