"""DeepLabV2 with ResNet-101, as the papers train it, with random weights."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F


class DeepLabV2(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        net = torchvision.models.resnet101(weights=None, replace_stride_with_dilation=[False, True, True])
        self.backbone = nn.Sequential(*list(net.children())[:-2])
        self.classifier = nn.ModuleList(
            nn.Conv2d(2048, num_classes, 3, padding=dilation, dilation=dilation) for dilation in (6, 12, 18, 24)
        )

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone(images)
        logits = torch.stack([convolution(features) for convolution in self.classifier]).sum(dim=0)
        return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=True)


def deeplab_v2(num_classes: int, device: torch.device | str) -> DeepLabV2:
    with torch.device(device):  # made there: nothing is copied
        return DeepLabV2(num_classes).to(memory_format=torch.channels_last)
