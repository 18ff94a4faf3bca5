"""A network for ``--network tests.examples.tiny_network:deeplab``: built like DeepLabV2, of 10 thousand parameters.

Unlike ``small-unet`` it has the papers' settings, a pre-trained backbone whose BatchNorm can be frozen, and a head that
learns faster.
"""

from __future__ import annotations

from torch import Tensor, nn


class TinyDeepLab(nn.Module):
    """A backbone at a quarter of the resolution and a dilated head."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            *(nn.Conv2d(3, 12, 3, 2, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
            *(nn.Conv2d(12, 16, 3, 2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 24, 3, padding=2, dilation=2, bias=False), nn.BatchNorm2d(24), nn.ReLU()),
        )
        self.classifier = nn.Conv2d(24, num_classes, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to logits at a quarter of the resolution, as DeepLabV2 does at an eighth."""
        return self.classifier(self.backbone(images))


class WithAuxiliary(TinyDeepLab):
    """Also has an auxiliary head, which the trainers' losses do not use."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.auxiliary = nn.Conv2d(24, num_classes, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map images to a dict, as torchvision's networks do."""
        features = self.backbone(images)
        return {"out": self.classifier(features), "aux": self.auxiliary(features)}


def deeplab(num_classes: int) -> nn.Module:
    """What ``--network`` calls."""
    return TinyDeepLab(num_classes)


def with_auxiliary(num_classes: int) -> nn.Module:
    """What ``--network`` calls."""
    return WithAuxiliary(num_classes)
