"""Online self-training: the network labels the images of each batch itself, without rounds and without a teacher.

The baseline of DST-CBC and DMT (Feng et al., arXiv:2004.08514). A pixel is labelled if the network's confidence in it
reaches ``--threshold``. It trades the second pass over all images for labels that change with every step. Differs from
the published code: labelled and other images are separate forward passes with one common mean.

``python examples/source_only.py && python examples/online.py --init runs/source_only/model.pt``
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from _common.evaluation import evaluate, line, score_before, summary
from _common.loading import as_floats
from _common.losses import supervised_loss
from _common.run import Run
from _common.settings import Settings, command_line, parse
from _data.augmentation import mark_padding, training_transform
from _data.checks import look_at_masks
from _data.opening import open_data
from _networks.build import build

from selftrain_seg import IGNORE_INDEX
from selftrain_seg.selectors import select_fixed


@dataclass(kw_only=True)
class OnlineSettings(Settings):
    """Settings of online self-training."""

    threshold: float = 0.9  # confidence from which a pixel is labelled; 0 labels all pixels
    labelled_batch: int | None = None  # labelled images in a batch; default: --batch, the number of other images


@command_line
def main() -> None:
    settings = parse(OnlineSettings, __doc__)
    run = Run(settings)
    data = open_data(settings, run)
    torch.manual_seed(settings.seed)
    net = build(settings, data.label_map.num_classes)
    look_at_masks(data, run)
    student, optimizer = run.prepare(net), run.optimizer(net)
    run.restore()
    run.expect(settings.steps)
    score_before(net, data, run)

    transform = training_transform(settings.crop, scale=settings.scale_range, jitter=settings.colour_jitter)
    labelled = run.loader(data.source, "labelled", transform, batch=settings.labelled_batch)
    others = run.loader(data.target, "others", mark_padding(transform))
    student.train()
    for _, (true_images, true_labels), (images, padding) in run.steps("online", settings.steps, labelled, others):
        with run.accumulate(student):
            # Separate forward passes: in a joint batch, BatchNorm would mix the statistics of the two domains.
            logits = student(as_floats(images))
            pseudo = select_fixed(logits, threshold=settings.threshold, valid=padding != IGNORE_INDEX)
            logits = torch.cat([student(as_floats(true_images)), logits])
            loss = supervised_loss(run, logits, torch.cat([true_labels, pseudo.labels]))
            run.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        run.log(loss=loss, selected=(pseudo.labels != IGNORE_INDEX).float().mean())

    score = evaluate(net, data, run, 1)
    run.say(f"round 1: {line(score, data)}")
    run.finish(net, summary(score, data))


if __name__ == "__main__":
    main()
