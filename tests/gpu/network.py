"""DeepLabV2 with ResNet-101, as the papers train it, with random weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck, ResNet

RESNET_101, TINY = (3, 4, 23, 3), (1, 1, 1, 1)


class DeepLabV2(nn.Module):
    def __init__(self, num_classes: int, layers: tuple[int, ...]) -> None:
        super().__init__()
        net = ResNet(Bottleneck, list(layers), replace_stride_with_dilation=[False, True, True])
        self.backbone = nn.Sequential(*list(net.children())[:-2])
        self.classifier = nn.ModuleList(
            nn.Conv2d(2048, num_classes, 3, padding=dilation, dilation=dilation) for dilation in (6, 12, 18, 24)
        )

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone(images)
        logits = torch.stack([convolution(features) for convolution in self.classifier]).sum(dim=0)
        return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=True)


def deeplab_v2(num_classes: int, device: torch.device | str, *, tiny: bool = False) -> DeepLabV2:
    with torch.device(device):  # made there: nothing is copied
        return DeepLabV2(num_classes, TINY if tiny else RESNET_101).to(memory_format=torch.channels_last)
