"""UniMatch: weak-to-strong consistency of images and features (Yang et al., CVPR 2023, arXiv:2208.09910).

Semi-supervised (``--data voc --labelled 106``: one image in 106 has labels). The network labels weakly augmented images
where it is sure. In the same step it learns these labels in two strong views of each image, which have other colours
and a box from another image (CutMix), and with half of the feature channels dropped. There is no teacher. On the
synthetic benchmark the source images are the labelled ones.

Differs from the published code: labelled and unlabelled images are separate forward passes, and so are images with
dropped features; the box comes from another image of the batch and has the aspect ratio of the image; Cityscapes is
trained without OHEM. The published network is ``--network DeepLabV3Plus/resnet101`` of segmentation_models_pytorch.

``python examples/source_only.py && python examples/unimatch.py --init runs/source_only/model.pt``
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

    threshold: float = 0.95  # confidence that a pixel must reach to get a pseudo-label
    strong_weight: float = 0.5  # weight of the loss on the two strong views
    feature_weight: float = 0.5  # weight of the loss with dropped features; 0 disables it
    drop: float = 0.5  # probability that a channel is dropped
    box_chance: float = 0.5  # probability that a strong view gets a box from another image
    box_area: tuple[float, float] = (0.02, 0.4)  # range of the box's share of the view


def features_of(net: nn.Module) -> nn.Module:
    """Return the module whose features are dropped: the backbone, or the coarsest level of the small U-Net."""
    if isinstance(net, SmallUNet):
        return net.down[-1]
    _, backbone = backbone_of(net)
    if backbone is getattr(net, "net", net):
        raise SystemExit("--network has no `backbone` or `encoder` whose features could be dropped: --feature-weight 0")
    return backbone


def strong_view(
    weak: Tensor, labels: Tensor, valid: Tensor, views: WeakStrongViews, settings: UniMatchSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """Recolour images and paste a box of the next image into some of them; return images, labels and valid pixels."""
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
        raise SystemExit("CutMix needs two images per process: expected a --batch of at least twice the processes")
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
    unlabelled = run.loader(data.target, "others", mark_padding(transform))
    views = WeakStrongViews(settings.crop, scale=(1.0, 1.0), flip_chance=0.0, strong=StrongSettings(cut_out_chance=0.0))
    student.train()
    steps = run.steps("consistency", settings.steps, labelled, unlabelled)
    for _, (images, true_labels), (weak, padding) in steps:
        weak, valid = as_floats(weak), padding != IGNORE_INDEX
        with run.accumulate(student):
            # Separate forward passes: in a joint batch, BatchNorm would mix the statistics of the two domains.
            labelled_loss = supervised_loss(run, student(as_floats(images)), true_labels)
            with torch.no_grad():
                pseudo = select_fixed(student(weak), threshold=settings.threshold, valid=valid)
            pairs = (strong_view(weak, pseudo.labels, valid, views, settings) for _ in range(2))
            strong, strong_labels, strong_valid = (torch.cat(parts) for parts in zip(*pairs, strict=True))
            # Both losses are divided by all valid pixels, as published, so a batch with few labels has less weight.
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
