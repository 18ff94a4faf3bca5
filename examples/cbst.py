"""CBST: class-balanced self-training in rounds (Zou et al., ECCV 2018, arXiv:1810.07911).

Each round labels the most confident portion of every class in the target images, trains on these labels and on source
images, and the portion grows. ``--spatial-prior`` multiplies probabilities by where source classes lie (CBST-SP);
``--policy global`` has one threshold for all classes, as self-training had before. Differs from the published code:
every step has as many source as target images, which go through the network apart.

``python examples/source_only.py && python examples/cbst.py --init runs/source_only/model.pt``
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from _common.evaluation import evaluate, line, score_before, summary
from _common.loading import as_floats
from _common.progress import progress
from _common.rounds import Estimator, label_target, open_store, small_class_crop, source_order
from _common.run import Run
from _common.settings import Settings, command_line, parse
from _data.augmentation import training_transform
from _data.checks import look_at_masks
from _data.opening import Data, open_data
from _networks.build import build
from torch import Tensor

from selftrain_seg import IGNORE_INDEX, PseudoLabels
from selftrain_seg.confidence import SpatialPrior, add_prior
from selftrain_seg.losses import cross_entropy
from selftrain_seg.selectors import select_hard, select_reweighted
from selftrain_seg.thresholds import ClassBalancedThreshold, GlobalThreshold, PortionSchedule


@dataclass(kw_only=True)
class CBSTSettings(Settings):
    """Settings of CBST."""

    policy: Literal["class-balanced", "global"] = "class-balanced"  # a threshold for each class, or one for all
    spatial_prior: bool = False  # weigh classes by where they are in source images
    prior_sigma: float = 70.0  # of the prior's Gaussian, in pixels
    normalise_prior: bool = False  # with --spatial-prior, probabilities sum to 1 again; not so in the paper
    rounds: int = 6  # of labelling and training
    portion: tuple[float, float, float] = (0.2, 0.05, 0.5)  # of pixels that are labelled: start, step, stop
    source_portion: tuple[float, float, float] | None = None  # of source images in use: start, step, stop
    lr_decay: float = 1.0  # factor of the learning rate from round to round
    source_redraw: bool = False  # draw the source images anew in each round; by default some are added
    mine: bool = False  # crop around small classes
    stride: int = 1  # thresholds count every so many-th row and column: 2 counts one pixel in 4


def estimate_prior(data: Data, run: Run, sigma_px: float) -> Tensor:
    """How often source pixels at each place are of each class, smoothed; of the target images' size."""
    height, width = data.target[0][0].shape[-2:]
    prior = SpatialPrior(data.label_map.num_classes, (height, width), sigma_px=sigma_px).to(run.device)
    masks = data.source.masks()
    for place in progress(range(run.rank, len(masks), run.world), "spatial prior", disable=not run.main):
        try:
            prior.update(masks[place][None].to(run.device))
        except ValueError as error:
            needs = "--spatial-prior needs images of one scene and one size, which --resize gives"
            raise SystemExit(f"{needs}: {data.source.names[place]}: {error}") from None
    return prior.compute()


class WithPrior:
    """Thresholds of renormalised probabilities."""

    def __init__(self, estimator: Estimator, prior: Tensor) -> None:
        self.estimator, self.prior, self.compute = estimator, prior, estimator.compute

    def update(self, logits: Tensor) -> None:
        """Count a batch."""
        self.estimator.update(add_prior(logits, self.prior))


@command_line
def main() -> None:
    settings = parse(CBSTSettings, __doc__)
    if settings.normalise_prior and not settings.spatial_prior:
        raise SystemExit("--normalise-prior says how --spatial-prior weighs classes: add --spatial-prior")
    run = Run(settings)
    data = open_data(settings, run)
    num_classes = data.label_map.num_classes
    torch.manual_seed(settings.seed)
    net = build(settings, num_classes)
    look_at_masks(data, run)
    student, optimizer = run.prepare(net), run.optimizer(net)
    run.restore()
    run.expect(settings.rounds * settings.steps)
    store = open_store(run, data)
    prior = estimate_prior(data, run, settings.prior_sigma) if settings.spatial_prior else None
    score = score_before(net, data, run)
    how = {"scale": settings.scale_range, "jitter": settings.colour_jitter}
    transform = training_transform(settings.crop, **how)

    factor, added = (None, prior) if settings.normalise_prior else (prior, None)

    def select(logits: Tensor, thresholds: Tensor) -> PseudoLabels:
        if added is not None:
            logits = add_prior(logits, added)
        if settings.policy == "global":
            return select_hard(logits, thresholds, prior=factor)
        return select_reweighted(logits, thresholds, prior=factor)

    for number in range(settings.rounds):
        stage = f"round{number + 1}"
        if run.passed(stage):
            continue
        portion = PortionSchedule(*settings.portion)(number)
        estimator = GlobalThreshold if settings.policy == "global" else ClassBalancedThreshold
        kc: Estimator = estimator(num_classes, portion, prior=factor, stride=settings.stride).to(run.device)
        if added is not None:
            kc = WithPrior(kc, added)
        stored = label_target(net, data, run, store, stage, number, kc, select, portion)

        order = source_order(settings, len(data.source), number)
        mined = small_class_crop(stored, settings.crop) if settings.mine else None
        mining = training_transform(settings.crop, crop=mined, **how)
        source = run.loader(data.source, f"{stage} source", transform, order)
        target = run.loader(data.target_with(stored.labels), f"{stage} target", mining)

        student.train()
        steps = run.steps(stage, settings.steps, source, target, lr_scale=settings.lr_decay**number)
        for _, source_batch, target_batch in steps:
            with run.accumulate(student):
                losses = []
                for images, labels in (source_batch, target_batch):
                    # The domains go through the network apart: in one batch BatchNorm would mix their statistics.
                    total = cross_entropy(student(as_floats(images)), labels, reduction="sum")
                    losses.append(run.mean(total, (labels != IGNORE_INDEX).sum()))
                run.backward(losses[0] + losses[1])
                optimizer.step()
                optimizer.zero_grad()
            run.log(source_loss=losses[0], target_loss=losses[1])
        score = evaluate(net, data, run, number + 1, stored=stored)
        run.say(f"round {number + 1}: {line(score, data)}")

    run.finish(net, summary(score, data))


if __name__ == "__main__":
    main()
