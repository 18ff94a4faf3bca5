"""Compare masks, or the predictions of a model, with true masks: IoU and Dice of each class over the whole data set.

The predictions are a folder of ``predict.py``, a folder of masks, or a model (a run, a file of weights, ``hf:FOLDER``,
``module:factory``) with ``--images``. Counts are summed over all images before they are divided. If the classes are
those of Cityscapes, the means over the 16 and 13 classes of SYNTHIA are added. A predicted pixel without a class (255)
counts as wrong. ``evaluation.json`` holds all numbers, ``confusion.png`` shows the confusion matrix. Both are written
to ``evaluation`` in the folder of the predictions or of the run.

``python examples/evaluate.py my/predictions --masks my/masks --classes my/classes.json``
"""

from __future__ import annotations

import argparse
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from _common.files import save_json
from _prediction.images import open_images, read
from _prediction.network import is_model, logits_of, open_network
from _prediction.options import add_options, check_out, complete, counted, in_options, load_classes, writing
from _prediction.scores import Pairs, count, measures, save_confusion, table
from torch.nn import functional as F

from selftrain_seg.datasets import LabelMap, SegmentationFolder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", help="folder of predict.py, folder of masks, or a model")
    parser.add_argument("--masks", type=Path, required=True, help="folder of true masks")
    parser.add_argument("--images", type=Path, help="folder of images, for a model")
    partial = "leave out predictions without a true mask, and true masks without a prediction"
    parser.add_argument("--partial", action="store_true", help=partial)
    out = "output folder (default: evaluation, in the folder of the predictions or of the run)"
    parser.add_argument("--out", type=Path, help=out)
    add_options(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out = args.out or home(args.predictions) / "evaluation"
    check_out(args.out)
    pairs, total, classes = by_model(args) if is_model(args.predictions) else by_masks(args)
    matrix, images, ignored = count(pairs, total, classes.num_classes)
    found = {"images": images, "ignored": ignored, "pixels": int(matrix.sum()), **measures(matrix, classes)}
    with writing(args.out):
        save_json(found, args.out / "evaluation.json")
        save_confusion(matrix, classes, args.out / "confusion.png")
    print(table(found))
    print(f"{args.out / 'evaluation.json'}, {args.out / 'confusion.png'}")


def home(predictions: str) -> Path:
    """Return the folder of masks or of the run; for a model without one, the current folder."""
    path = Path(predictions)
    if path.is_dir():
        return path
    return path.parent if (path.parent / "arguments.json").is_file() else Path()


def is_confusion(path: Path) -> bool:
    """Return whether a file is the picture of an evaluation, which may lie among masks."""
    return path.name == "confusion.png" and path.with_name("evaluation.json").is_file()


def unpaired(args: Namespace) -> Any:
    """Return the ``unpaired`` argument of ``SegmentationFolder``."""
    return "leave out" if args.partial else "error"


def by_model(args: Namespace) -> tuple[Pairs, int, LabelMap]:
    """Predict the images that have a true mask; return the pairs, their number and the classes."""
    if args.images is None:
        raise SystemExit(f"{args.predictions} is a model: expected --images")
    classes = complete(args, args.predictions)
    try:
        settings = {"names": args.names, "channels": args.channels, "white": args.white, "unpaired": unpaired(args)}
        data = SegmentationFolder(args.images, args.masks, label_map=classes, mask_suffix=args.mask_suffix, **settings)
        images = open_images(args.images, Namespace(**{**vars(args), "names": list(data.names)}))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{args.images}, {args.masks}: {in_options(error)}") from None
    net = open_network(args, args.predictions, classes)

    def pairs() -> Pairs:
        indices = {name: index for index, name in enumerate(data.names)}
        for batch in read(images, range(len(images)), args):
            if batch[0].image is None:
                raise SystemExit(batch[0].error)
            logits = logits_of(net, torch.stack([item.image for item in batch]), args)
            for item, one in zip(batch, logits, strict=True):
                try:
                    true = data.masks()[indices[item.name]]
                except (OSError, ValueError) as error:
                    raise SystemExit(in_options(error)) from None
                if one.shape[-2:] != true.shape:  # the true mask keeps its size
                    one = F.interpolate(one[None], true.shape, mode="bilinear")[0]
                yield item.name, one.argmax(dim=0).cpu(), true

    return pairs(), len(data), classes


def by_masks(args: Namespace) -> tuple[Pairs, int, LabelMap]:
    """Read predicted and true masks; return the pairs, their number and the classes."""
    folder = Path(args.predictions)
    if not folder.is_dir():
        raise SystemExit(f"{folder}: no such folder, run or file")
    by_predict = (folder / "predict.json").is_file()
    written = folder / "classes.json"
    if args.classes is None and not by_predict:
        raise SystemExit(f"{folder}: expected --classes, as predict.py did not write these masks")
    classes = load_classes(args.classes or str(written))
    predicted_classes = load_classes(str(written)) if by_predict else classes
    folder = folder / "masks" if by_predict else folder
    if predicted_classes.classes != classes.classes:
        found, expected = ", ".join(predicted_classes.classes), ", ".join(classes.classes)
        raise SystemExit(f"{written}: has classes {found}; --classes has {expected}")
    try:
        found = SegmentationFolder(folder, names=args.names)
        names = [name for name in found.names if not is_confusion(found._image_path(name))]
        with tempfile.TemporaryDirectory() as empty:
            # SegmentationFolder pairs masks with images. Only masks are read here, so empty files stand for the images.
            for name in names:
                stand_in = Path(empty, f"{name}.png")
                stand_in.parent.mkdir(parents=True, exist_ok=True)
                stand_in.touch()
            predicted = SegmentationFolder(empty, folder, label_map=predicted_classes)
            pairing = {"mask_suffix": args.mask_suffix or "", "unpaired": unpaired(args)}
            truth = SegmentationFolder(empty, args.masks, label_map=classes, **pairing)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{args.predictions}, {args.masks}: {in_options(error)}") from None
    left_out = [path for path, _ in truth.left_out if args.masks in path.parents and args.names is None]
    without = [path for path in left_out if not is_confusion(path)]
    if without and not args.partial:
        what = f"{counted(len(without), 'true mask')} without a prediction"
        raise SystemExit(f"{what}: {', '.join(map(str, without[:5]))}; --partial leaves them out")
    indices = {name: index for index, name in enumerate(predicted.names)}

    def pairs() -> Pairs:
        for index, name in enumerate(truth.names):
            try:
                labels, true = predicted.masks()[indices[name]], truth.masks()[index]
            except (OSError, ValueError) as error:
                raise SystemExit(in_options(error)) from None
            if labels.shape != true.shape:
                sizes = f"{tuple(labels.shape)}, the mask in {args.masks} {tuple(true.shape)}"
                raise SystemExit(f"{name}: the prediction is {sizes}")
            yield name, labels, true

    return pairs(), len(truth), classes


if __name__ == "__main__":
    main()
