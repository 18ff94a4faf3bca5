"""Compare masks, or what a model predicts, with true masks: IoU and Dice of each class, over the whole data set.

What is evaluated is the folder that ``predict.py`` wrote, a folder of masks, or a model (a run, a file of weights,
``hf:FOLDER``, ``module:factory``) with ``--images``. Counts are added over all images before anything is divided. The
subsets of 16 and 13 classes that SYNTHIA is measured on are given where the classes are Cityscapes'. A pixel for which
a mask has no class (255) is a miss. ``evaluation.json`` holds all numbers, ``confusion.png`` shows what is taken for
what; both are written to ``evaluation`` in the folder of the predictions or of the run.

``python examples/evaluate.py my/predictions --masks my/masks --classes my/classes.json``
"""

from __future__ import annotations

import argparse
import math
import re
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _prediction as predicting
import torch
from _common.files import save_json
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassConfusionMatrix
from tqdm import tqdm

from selftrain_seg import IGNORE_INDEX
from selftrain_seg.datasets import LabelMap, SegmentationFolder

Pairs = Iterator[tuple[str, Tensor, Tensor]]  # name, predicted (H, W), true (H, W)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", help="folder of predict.py, folder of masks, or a model")
    parser.add_argument("--masks", type=Path, required=True, help="folder of true masks")
    parser.add_argument("--images", type=Path, help="folder of images, for a model")
    parser.add_argument(
        "--partial", action="store_true", help="leave out predictions without a mask, masks without a prediction"
    )
    parser.add_argument(
        "--out", type=Path, help="folder (default: evaluation, in the folder of predictions or the run)"
    )
    predicting.add_options(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out = args.out or home(args.predictions) / "evaluation"
    predicting.check_out(args.out)
    pairs, total, classes = by_model(args) if predicting.is_model(args.predictions) else by_masks(args)
    matrix, images, ignored = count(pairs, total, classes.num_classes)
    found = measures(matrix, classes)
    found = {"images": images, "ignored": ignored, "pixels": int(matrix.sum()), **found}
    with predicting.writing(args.out):
        args.out.mkdir(parents=True, exist_ok=True)
        save_json(found, args.out / "evaluation.json")
        picture(matrix, classes, args.out / "confusion.png")
    print(table(found))
    print(f"{args.out / 'evaluation.json'}, {args.out / 'confusion.png'}")


def home(predictions: str) -> Path:
    """The folder of masks, or of the run; of a model that has none, where the command was typed."""
    path = Path(predictions)
    if path.is_dir():
        return path
    return path.parent if (path.parent / "arguments.json").is_file() else Path()


def is_picture(path: Path) -> bool:
    """Tell the picture of an evaluation, which may lie among masks, from a mask."""
    return path.name == "confusion.png" and path.with_name("evaluation.json").is_file()


def in_options(error: Exception) -> str:
    """What the package says of its arguments, for people who type options."""
    said = re.split(r"\.? `mask_suffix` or `pair` ", str(error))[0]
    said = re.sub(r"`(images|masks|names|mask_suffix)`", lambda found: f"--{found[1].replace('_', '-')}", said)
    if "no mask" in said:
        said += "; here --mask-suffix, --names, and --partial, which leaves out what has no mask"
    return said


def by_model(args: Namespace) -> tuple[Pairs, int, LabelMap]:
    """Predict the images that have a mask."""
    if args.images is None:
        raise SystemExit(f"{args.predictions} is a model: say where the images are with --images")
    classes = predicting.complete(args, args.predictions)
    try:
        settings = {"names": args.names, "channels": args.channels, "white": args.white, "unpaired": unpaired(args)}
        data = SegmentationFolder(args.images, args.masks, label_map=classes, mask_suffix=args.mask_suffix, **settings)
        images = predicting.open_images(args.images, Namespace(**{**vars(args), "names": list(data.names)}))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{args.images}, {args.masks}: {in_options(error)}") from None
    net = predicting.open_network(args, args.predictions, classes)

    def pairs() -> Pairs:
        places = {name: place for place, name in enumerate(data.names)}
        for batch in predicting.read(images, range(len(images)), args):
            if batch[0].image is None:
                raise SystemExit(batch[0].problem)
            logits = predicting.logits_of(net, torch.stack([item.image for item in batch]), args)
            for item, one in zip(batch, logits, strict=True):
                truth = data.masks()[places[item.name]]
                if one.shape[-2:] != truth.shape:  # the truth stays as it is
                    one = F.interpolate(one[None], truth.shape, mode="bilinear")[0]
                yield item.name, one.argmax(dim=0).cpu(), truth

    return pairs(), len(data), classes


def by_masks(args: Namespace) -> tuple[Pairs, int, LabelMap]:
    """Read masks that were predicted, by ``predict.py`` or by others."""
    folder = Path(args.predictions)
    if not folder.is_dir():
        raise SystemExit(f"{folder}: no such folder, run or file")
    ours = (folder / "predict.json").is_file()
    written = folder / "classes.json"
    if args.classes is None and not ours:
        raise SystemExit(f"{folder}: say what the masks hold with --classes")
    classes = predicting.load_classes(args.classes or str(written))
    held = predicting.load_classes(str(written)) if ours else classes
    folder = folder / "masks" if ours else folder
    if held.classes != classes.classes:
        found, asked = ", ".join(held.classes), ", ".join(classes.classes)
        raise SystemExit(f"{written}: has classes {found}; --classes has {asked}")
    try:
        found = SegmentationFolder(folder, names=args.names)
        names = [name for name in found.names if not is_picture(found._image_path(name))]
        with tempfile.TemporaryDirectory() as empty:
            # Only masks are read, of both: what stands for their images is never opened.
            for name in names:
                stand_in = Path(empty, f"{name}.png")
                stand_in.parent.mkdir(parents=True, exist_ok=True)
                stand_in.touch()
            predicted = SegmentationFolder(empty, folder, label_map=held)
            suffix = {"mask_suffix": args.mask_suffix or "", "unpaired": unpaired(args)}
            truth = SegmentationFolder(empty, args.masks, label_map=classes, **suffix)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{args.predictions}, {args.masks}: {in_options(error)}") from None
    strangers = [path for path, why in truth.left_out if args.masks in path.parents and args.names is None]
    without = [path for path in strangers if not is_picture(path)]
    if without and not args.partial:
        what = f"{predicting.counted(len(without), 'mask')} without a prediction"
        raise SystemExit(f"{what}: {', '.join(map(str, without[:5]))}; --partial leaves out what has none")
    places = {name: place for place, name in enumerate(predicted.names)}

    def pairs() -> Pairs:
        for place, name in enumerate(truth.names):
            try:
                made, true = predicted.masks()[places[name]], truth.masks()[place]
            except (OSError, ValueError) as error:
                raise SystemExit(str(error)) from None
            if made.shape != true.shape:
                raise SystemExit(
                    f"{name}: the prediction is {tuple(made.shape)}, the mask in {args.masks} {tuple(true.shape)}"
                )
            yield name, made, true

    return pairs(), len(truth), classes


def unpaired(args: Namespace) -> Any:
    """What becomes of an image without a mask."""
    return "leave out" if args.partial else "error"


def count(pairs: Pairs, total: int, num_classes: int) -> tuple[Tensor, int, int]:
    """Add up a confusion matrix (C, C + 1), true class by predicted class, the last column without; images; ignored."""
    matrix, images, ignored = MulticlassConfusionMatrix(num_classes + 1, ignore_index=IGNORE_INDEX), 0, 0
    for _, predicted, true in tqdm(pairs, "evaluating", total, unit="image", leave=False, disable=None):
        matrix.update(predicted.where(predicted != IGNORE_INDEX, num_classes)[None], true[None])
        images, ignored = images + 1, ignored + int((true == IGNORE_INDEX).sum())
    counts = matrix.compute().long()[:num_classes] if images else torch.zeros(num_classes, num_classes + 1).long()
    if int(counts.sum()) == 0:
        raise SystemExit(f"not a single pixel of {predicting.counted(images, 'mask')} has a class: are the ids others?")
    return counts, images, ignored


def measures(matrix: Tensor, classes: LabelMap) -> dict[str, Any]:
    """All numbers, in percent; those of classes that are neither there nor predicted are None, and in no mean."""
    counts = matrix.double()
    right, true, predicted = counts[:, :-1].diag(), counts.sum(1), counts[:, :-1].sum(0)
    iou, dice = 100 * right / (true + predicted - right), 200 * right / (true + predicted)
    subsets = {"": tuple(range(classes.num_classes))}
    for size in (16, 13):
        try:
            subsets[f"-{size}"] = classes.synthia_subset(size)
        except ValueError:  # other classes than Cityscapes'
            continue
    found: dict[str, Any] = {"accuracy": float(100 * right.sum() / true.sum())}
    for name, subset in subsets.items():
        found |= {
            f"mIoU{name}": float(iou[list(subset)].nanmean()),
            f"mDice{name}": float(dice[list(subset)].nanmean()),
        }
    columns = {"IoU": iou, "Dice": dice, "recall": 100 * right / true, "precision": 100 * right / predicted}
    found["classes"] = {
        name: {
            **{measure: float(values[number]) for measure, values in columns.items()},
            "pixels": int(true[number]),
        }
        for number, name in enumerate(classes.classes)
    }
    return {**found, "confusion": matrix.tolist()}


def table(found: dict[str, Any]) -> str:
    """The numbers for people."""

    def text(value: float) -> str:
        return "-" if math.isnan(value) else f"{value:.1f}"

    width = max(map(len, found["classes"]), default=0)
    columns = ("IoU", "Dice", "recall", "precision")
    lines = [f"{'':{width}}" + "".join(f"{column:>11}" for column in columns)]
    for name, row in found["classes"].items():
        lines.append(f"{name:{width}}" + "".join(f"{text(row[column]):>11}" for column in columns))
    means = ", ".join(f"{name} {text(value)}" for name, value in found.items() if name.startswith(("mIoU", "mDice")))
    share = 100 * found["ignored"] / (found["ignored"] + found["pixels"])
    lines.append(f"{means}, accuracy {text(found['accuracy'])}")
    lines.append(
        f"{predicting.counted(found['images'], 'image')}, {share:.1f} % of the pixels without a class in the truth"
    )
    return "\n".join(lines)


def picture(matrix: Tensor, classes: LabelMap, path: Path) -> None:
    """Draw which share of each true class is predicted as which."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shares = 100 * matrix.double() / matrix.sum(1, keepdim=True)
    predicted = [*classes.classes, "no class"] if int(matrix[:, -1].sum()) else [*classes.classes]
    shares = shares[:, : len(predicted)].numpy()
    side = 2.2 + 0.42 * len(predicted)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(len(predicted)), predicted, rotation=90)
    axes.set_yticks(range(classes.num_classes), classes.classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for row, values in enumerate(shares):
        for column, value in enumerate(values):
            if not math.isnan(value) and value >= 0.5:
                ink = "white" if value > 55 else "black"
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=ink)
    figure.colorbar(drawn, label="% of the true pixels", shrink=0.7)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, dpi=130, format="png")
    temporary.replace(path)


if __name__ == "__main__":
    main()
