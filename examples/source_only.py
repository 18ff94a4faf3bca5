"""Train on labelled images only: the starting point of adaptation, and the controls to compare it with.

``python examples/source_only.py`` trains on the source domain. Three controls start from its model: ``--init MODEL
--steps 0 --reestimate-bn 1`` only re-estimates BatchNorm's statistics, ``--init MODEL`` trains further on the source,
and ``--domain target`` trains on the target's labels, the upper bound. ``--part 0 0.8`` and ``--part 0.2 1`` train the
two students of DMT on different parts of the labelled images (its difference-maximised sampling).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from _common.evaluation import evaluate, line, score_before, summary
from _common.loading import as_floats
from _common.losses import supervised_loss
from _common.run import Run
from _common.settings import Settings, command_line, parse
from _data.augmentation import training_transform
from _data.checks import look_at_masks
from _data.opening import open_data
from _networks.build import build
from torch.utils.data import Subset


@dataclass(kw_only=True)
class SourceSettings(Settings):
    """Settings of training on labelled images."""

    domain: Literal["source", "target"] = "source"  # images to train on; target: with their labels, the upper bound
    part: tuple[float, float] = (0.0, 1.0)  # images between these two shares of a random order


def part_of(length: int, part: tuple[float, float], seed: int) -> list[int]:
    """Return the indices of the images between two shares of a random order."""
    first, last = (round(length * share) for share in part)
    if not 0 <= first < last <= length:
        raise SystemExit(f"--part {part[0]:g} {part[1]:g}: expected two shares of 1 with images between them")
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed))[first:last].tolist()


@command_line
def main() -> None:
    settings = parse(SourceSettings, __doc__)
    run = Run(settings)
    data = open_data(settings, run)
    torch.manual_seed(settings.seed)
    net = build(settings, data.label_map.num_classes)
    look_at_masks(data, run)
    student, optimizer = run.prepare(net), run.optimizer(net)
    run.restore()
    run.expect(settings.steps)
    labelled = data.source if settings.domain == "source" else data.target_with(True)
    if settings.part != (0.0, 1.0):
        labelled = Subset(labelled, part_of(len(labelled), settings.part, settings.seed))
    score_before(net, data, run)

    transform = training_transform(settings.crop, scale=settings.scale_range, jitter=settings.colour_jitter)
    student.train()
    steps = run.steps("labelled", settings.steps, run.loader(labelled, settings.domain, transform))
    for _, (images, labels) in steps:
        with run.accumulate(student):
            loss = supervised_loss(run, student(as_floats(images)), labels)
            run.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        run.log(loss=loss)

    score = evaluate(net, data, run, 1)
    trained = f"trained on {settings.domain}" if settings.steps else "not trained"
    run.say(f"{trained}; on the target: {line(score, data)}")
    run.finish(net, summary(score, data))


if __name__ == "__main__":
    main()
