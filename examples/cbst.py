"""CBST: class-balanced self-training in rounds (Zou et al., ECCV 2018, arXiv:1810.07911).

Each round labels the most confident portion of the pixels of every class in the target images, and trains on these
labels and on source images. The portion grows from round to round. ``--spatial-prior`` multiplies the probabilities by
the frequency of each class at each position in source images (CBST-SP). ``--policy global`` uses one threshold for all
classes, as earlier self-training did. Differs from the published code: each step has as many source as target images,
in separate forward passes.

``python examples/source_only.py && python examples/cbst.py --init runs/source_only/model.pt``
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from _common.evaluation import evaluate, line, score_before, summary
from _common.loading import Readable, as_floats
from _common.losses import supervised_loss
from _common.progress import progress
from _common.run import Run
from _common.settings import Settings, command_line, parse
from _data.augmentation import training_transform
from _data.checks import check_one_size, look_at_masks
from _data.opening import Data, open_data
from _labelling.drawing import source_order
from _labelling.rounds import Estimator, label_target, open_store, small_class_crop
from _networks.build import build
from torch import Tensor

from selftrain_seg import PseudoLabels
from selftrain_seg.confidence import SpatialPrior, add_prior
from selftrain_seg.selectors import select_hard, select_reweighted
from selftrain_seg.thresholds import ClassBalancedThreshold, GlobalThreshold, PortionSchedule


@dataclass(kw_only=True)
class CBSTSettings(Settings):
    """Settings of CBST."""

    policy: Literal["class-balanced", "global"] = "class-balanced"  # one threshold per class, or one for all classes
    spatial_prior: bool = False  # multiply probabilities by the frequency of classes at each position in source images
    prior_sigma: float | None = None
    """standard deviation of the Gaussian that smooths the prior, in pixels; default: 1/15 of the height of an image"""
    normalise_prior: bool = False  # with --spatial-prior, normalise the products to sum to 1; the paper does not
    rounds: int = 6  # rounds of labelling and training
    portion: tuple[float, float, float] = (0.2, 0.05, 0.5)  # portion of pixels to label: start, step, stop
    source_portion: tuple[float, float, float] | None = None  # share of source images to train on: start, step, stop
    lr_decay: float = 1.0  # factor of the learning rate from round to round
    source_redraw: bool = False  # with --source-portion, draw the images anew in each round instead of adding some
    mine: bool = False  # crop target images around small classes
    stride: int = 1  # thresholds are estimated from every stride-th row and column; 2 uses one pixel in 4


def estimate_prior(data: Data, run: Run, sigma_px: float | None) -> Tensor:
    """Return the smoothed frequency (C, H, W) of each class at each position, from the source masks."""
    height, width = data.target[0][0].shape[-2:]
    sigma_px = height / 15 if sigma_px is None else sigma_px
    prior = SpatialPrior(data.label_map.num_classes, (height, width), sigma_px=sigma_px).to(run.device)
    masks = Readable(data.source.masks())
    for image in progress(range(run.rank, len(masks), run.world), "spatial prior", disable=not run.main):
        prior.update(masks[image][None].to(run.device))
    return prior.compute()


class WithPrior:
    """An estimator of thresholds of the renormalised product of probabilities and prior."""

    def __init__(self, estimator: Estimator, prior: Tensor) -> None:
        self.estimator, self.prior, self.compute = estimator, prior, estimator.compute

    def update(self, logits: Tensor) -> None:
        """Count a batch."""
        self.estimator.update(add_prior(logits, self.prior))


@command_line
def main() -> None:
    settings = parse(CBSTSettings, __doc__)
    if settings.normalise_prior and not settings.spatial_prior:
        raise SystemExit("--normalise-prior has no effect without --spatial-prior")
    run = Run(settings)
    data = open_data(settings, run)
    num_classes = data.label_map.num_classes
    torch.manual_seed(settings.seed)
    net = build(settings, num_classes)
    look_at_masks(data, run)
    if settings.spatial_prior:
        check_one_size(data, run, "--spatial-prior")
    student, optimizer = run.prepare(net), run.optimizer(net)
    run.restore()
    run.expect(settings.rounds * settings.steps)
    store = open_store(run, data)
    prior = estimate_prior(data, run, settings.prior_sigma) if settings.spatial_prior else None
    score = score_before(net, data, run)
    augmentation = {"scale": settings.scale_range, "jitter": settings.colour_jitter}
    transform = training_transform(settings.crop, **augmentation)
    # The prior is a factor of the probabilities, or it is added to the logits, which renormalises.
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
        kind = GlobalThreshold if settings.policy == "global" else ClassBalancedThreshold
        estimator: Estimator = kind(num_classes, portion, prior=factor, stride=settings.stride).to(run.device)
        if added is not None:
            estimator = WithPrior(estimator, added)
        stored = label_target(net, data, run, store, stage, number, estimator, select, portion)

        order = source_order(settings, len(data.source), number)
        crop = small_class_crop(stored, settings.crop) if settings.mine else None
        source = run.loader(data.source, f"{stage} source", transform, order)
        mining = training_transform(settings.crop, crop=crop, **augmentation)
        target = run.loader(data.target_with(stored.labels), f"{stage} target", mining)

        student.train()
        steps = run.steps(stage, settings.steps, source, target, lr_scale=settings.lr_decay**number)
        for _, (source_images, source_labels), (target_images, pseudo_labels) in steps:
            with run.accumulate(student):
                # Separate forward passes: in a joint batch, BatchNorm would mix the statistics of the two domains.
                source_loss = supervised_loss(run, student(as_floats(source_images)), source_labels)
                target_loss = supervised_loss(run, student(as_floats(target_images)), pseudo_labels)
                run.backward(source_loss + target_loss)
                optimizer.step()
                optimizer.zero_grad()
            run.log(source_loss=source_loss, target_loss=target_loss)
        score = evaluate(net, data, run, number + 1, stored=stored)
        run.say(f"round {number + 1}: {line(score, data)}")

    run.finish(net, summary(score, data))


if __name__ == "__main__":
    main()
