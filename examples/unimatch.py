"""UniMatch: weak-to-strong consistency, twice and in the features (Yang et al., CVPR 2023, arXiv:2208.09910).

Semi-supervised (``--data voc --labelled 106``: one image in 106 has labels). The network labels the pixels that it is
sure of in weakly augmented images. In the same step it learns these labels in two strong views of each image, which
have other colours and a box of another image (CutMix), and from features of which half of the channels are dropped.
There is no teacher. On the embedded benchmark the source images are the labelled ones.

Differs from the published code: labelled and other images go through the network apart, as in all trainers here; images
with dropped features are a pass of their own; the box comes from another image of the batch and has the proportions of
the image; Cityscapes is trained without OHEM. The published network is
``--network DeepLabV3Plus/resnet101`` of segmentation_models_pytorch.

``python examples/source_only.py && python examples/unimatch.py --init runs/source_only/model.pt``
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from _common.evaluation import evaluate, line, score_before, summary
from _common.loading import as_floats
from _common.run import Run
from _common.settings import Settings, command_line, parse
from _data.augmentation import mark_padding, training_transform
from _data.checks import look_at_masks
from _data.opening import open_data
from _networks.build import backbone_of, build
from _networks.small_unet import SmallUNet
from torch import Tensor, nn

from selftrain_seg import IGNORE_INDEX
from selftrain_seg.losses import cross_entropy
from selftrain_seg.mining import cut_mix
from selftrain_seg.selectors import select_fixed
from selftrain_seg.teachers import perturb_features
from selftrain_seg.views import StrongSettings, WeakStrongViews


@dataclass(kw_only=True)
class UniMatchSettings(Settings):
    """Settings of UniMatch."""

    threshold: float = 0.95  # confidence from which the network learns its own label
    strong_weight: float = 0.5  # of the loss on the two strong views
    feature_weight: float = 0.5  # of the loss with dropped features; 0 leaves it out
    drop: float = 0.5  # chance of a channel to be dropped
    box_chance: float = 0.5  # of a strong view to get a box of another image
    box_area: tuple[float, float] = (0.02, 0.4)  # range of its share of the view


def features_of(net: nn.Module) -> nn.Module:
    """The part of a network whose output the decoder gets: all of it, or the coarsest."""
    if isinstance(net, SmallUNet):
        return net.down[-1]
    _, backbone = backbone_of(net)
    if backbone is getattr(net, "net", net):
        raise SystemExit("--network has neither `backbone` nor `encoder`, whose features to drop: --feature-weight 0")
    return backbone


def strong_view(
    weak: Tensor, labels: Tensor, valid: Tensor, views: WeakStrongViews, settings: UniMatchSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """Other colours, and in some images a box of the next one: images, labels and valid pixels."""
    images = views.strong(weak, views.draw(weak))
    boxed = torch.rand(len(images), device=images.device) < settings.box_chance
    source = [torch.where(boxed.view(-1, *[1] * (part.ndim - 1)), part.roll(-1, 0), part) for part in (images, labels)]
    mixed = cut_mix(images, labels, source=tuple(source), area=settings.box_area, paste_ignored=True)
    return mixed.images, mixed.labels, torch.where(mixed.pasted & boxed[:, None, None], valid.roll(-1, 0), valid)


@command_line
def main() -> None:
    settings = parse(UniMatchSettings, __doc__)
    run = Run(settings)
    if settings.batch == run.world:
        raise SystemExit("a process cuts boxes out of its own images, and --batch gives each but one")
    data = open_data(settings, run)
    torch.manual_seed(settings.seed)
    net = build(settings, data.label_map.num_classes)
    look_at_masks(data, run)
    encoder = features_of(net) if settings.feature_weight else None
    student, optimizer = run.prepare(net), run.optimizer(net)
    run.restore()
    run.expect(settings.steps)
    score_before(net, data, run)

    transform = training_transform(settings.crop, scale=settings.scale_range, jitter=settings.colour_jitter)
    labelled = run.loader(data.source, "labelled", transform)
    others = run.loader(data.target, "others", mark_padding(transform))
    views = WeakStrongViews(settings.crop, scale=(1.0, 1.0), flip_chance=0.0, strong=StrongSettings(cut_out_chance=0.0))
    student.train()
    steps = run.steps("consistency", settings.steps, labelled, others)
    for _, (images, true_labels), (weak, padding) in steps:
        weak, valid = as_floats(weak), padding != IGNORE_INDEX
        with run.accumulate(student):
            # Apart: where the domains differ, BatchNorm would mix their statistics in one batch.
            total = cross_entropy(student(as_floats(images)), true_labels, reduction="sum")
            labelled_loss = run.mean(total, (true_labels != IGNORE_INDEX).sum())
            with torch.no_grad():
                pseudo = select_fixed(student(weak), threshold=settings.threshold, valid=valid)
            pairs = (strong_view(weak, pseudo.labels, valid, views, settings) for _ in range(2))
            strong, strong_labels, strong_valid = (torch.cat(parts) for parts in zip(*pairs, strict=True))
            # Divided by all pixels that exist, as published: the fewer are sure, the less these count.
            total = cross_entropy(student(strong), strong_labels, reduction="sum")
            strong_loss = run.mean(total, strong_valid.sum())
            feature_loss = torch.zeros((), device=run.device)
            if settings.feature_weight:
                with perturb_features(encoder, chance=settings.drop):
                    perturbed = student(weak)
                total = cross_entropy(perturbed, pseudo.labels, reduction="sum")
                feature_loss = run.mean(total, valid.sum())
            consistency = settings.strong_weight * strong_loss + settings.feature_weight * feature_loss
            run.backward((labelled_loss + consistency) / 2)
            optimizer.step()
            optimizer.zero_grad()
        selected = (pseudo.labels != IGNORE_INDEX).float().mean()
        run.log(labelled_loss=labelled_loss, strong_loss=strong_loss, feature_loss=feature_loss, selected=selected)

    score = evaluate(net, data, run, 1)
    run.say(f"round 1: {line(score, data)}")
    run.finish(net, summary(score, data))


if __name__ == "__main__":
    main()
