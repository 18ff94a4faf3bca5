"""Segmentation networks: images in [0, 1] to logits of the images' size."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from _common.model import SmallUNet

# Layers that do not come with pre-trained weights, and learn ten times as fast as those that do.
_HEADS = ("classifier", "aux_classifier", "segmentation_head", "head")


def build(args: Namespace, num_classes: int) -> nn.Module:
    """Build ``--network`` and load ``--init``."""
    pretrained = args.init is None and not args.from_scratch
    if args.network == "small-unet":
        net: nn.Module = SmallUNet(num_classes, channels=args.channels)
    elif args.network == "deeplabv2_resnet101":
        net = Scaled(DeepLabV2(num_classes, pretrained=pretrained))
    elif args.network in torchvision.models.list_models(torchvision.models.segmentation):
        backbone = "DEFAULT" if pretrained else None
        model = torchvision.models.get_model(
            args.network, weights=None, weights_backbone=backbone, num_classes=num_classes
        )
        net = Scaled(model)
    else:
        net = Scaled(_segmentation_models(args.network, num_classes, pretrained))
    if args.init is not None:
        if not args.init.is_file():
            raise SystemExit(f"--init {args.init}: no such file")
        try:
            net.load_state_dict(torch.load(args.init, map_location="cpu", weights_only=True))
        except RuntimeError as error:
            what = f"not the weights of --network {args.network} for {num_classes} classes"
            raise SystemExit(f"--init {args.init}: {what} ({str(error)[:300]} ...)") from None
    if args.frozen_bn:
        freeze_batchnorm(net)
    return net.to(memory_format=torch.channels_last)


def _segmentation_models(name: str, num_classes: int, pretrained: bool) -> nn.Module:
    try:
        import segmentation_models_pytorch as smp
    except ImportError:
        raise SystemExit(f"--network {name}: no such name; with segmentation_models_pytorch, Unet/resnet34") from None
    architecture, _, encoder = name.partition("/")
    weights = "imagenet" if pretrained else None
    return smp.create_model(
        architecture, encoder_name=encoder or "resnet34", encoder_weights=weights, classes=num_classes
    )


class Scaled(nn.Module):
    """Normalise images as ImageNet's, and enlarge logits to the size of the images."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to logits (B, C, H, W)."""
        out = self.net((images - self.mean) / self.std)
        logits = out["out"] if isinstance(out, dict) else out
        if logits.shape[-2:] == images.shape[-2:]:
            return logits
        return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=True)


class DeepLabV2(nn.Module):
    """DeepLabV2 as in the papers: ResNet-101 at 1/8 of the resolution and the sum of four dilated convolutions."""

    def __init__(self, num_classes: int, *, pretrained: bool) -> None:
        super().__init__()
        weights = torchvision.models.ResNet101_Weights.IMAGENET1K_V1 if pretrained else None
        net = torchvision.models.resnet101(weights=weights, replace_stride_with_dilation=[False, True, True])
        self.backbone = nn.Sequential(*list(net.children())[:-2])
        self.classifier = nn.ModuleList(
            nn.Conv2d(2048, num_classes, 3, padding=dilation, dilation=dilation) for dilation in (6, 12, 18, 24)
        )
        for convolution in self.classifier:
            nn.init.normal_(convolution.weight, std=0.01)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (B, 3, H, W) to logits at an eighth of the resolution."""
        features = self.backbone(images)
        return torch.stack([convolution(features) for convolution in self.classifier]).sum(dim=0)


def freeze_batchnorm(net: nn.Module) -> None:
    """Replace BatchNorm by the fixed scale and shift it stands for: neither statistics nor weights move any more."""
    for name, module in net.named_children():
        if isinstance(module, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(module.num_features, module.eps)
            frozen.load_state_dict(module.state_dict())
            setattr(net, name, frozen)
        else:
            freeze_batchnorm(module)


def parameter_groups(net: nn.Module, lr: float) -> Iterator[dict[str, object]]:
    """Yield optimizer groups: the head of a pre-trained network learns ten times as fast as its backbone."""
    heads, others = [], []
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            is_head = isinstance(net, Scaled) and any(part in _HEADS for part in name.split("."))
            (heads if is_head else others).append(parameter)
    yield {"params": others, "lr": lr}
    if heads:
        yield {"params": heads, "lr": 10 * lr}


def optimizer_of(
    args: Namespace, net: nn.Module, total: int, *, lr: float | None = None
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Make the optimizer and its polynomial schedule over ``total`` steps, from ``--lr`` unless another is given."""
    groups = list(parameter_groups(net, args.lr if lr is None else lr))
    if args.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=5e-4)
    else:
        optimizer = torch.optim.AdamW(groups, weight_decay=1e-2)
    return optimizer, torch.optim.lr_scheduler.PolynomialLR(optimizer, total, power=0.9)
