"""Settings that say which network is built, from which weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(kw_only=True)
class NetworkSettings:
    """Which network, and what it starts from."""

    network: str = "small-unet"
    """small-unet, deeplabv2_resnet101, efficientnet-lite0-unet, a name of torchvision, Unet/resnet34 of
    segmentation_models_pytorch, hf:FOLDER of transformers, or module:factory, your own"""
    init: Path | None = None  # weights to start from: another run, or a published DeepLabV2
    backbone_weights: Path | None = None  # file of a pre-trained backbone, in place of a download
    from_scratch: bool = False  # no pre-trained backbone, so nothing is downloaded
    frozen_bn: bool = False  # BatchNorm stays as it is: neither its statistics nor its weights change
    reestimate_bn: float | Literal["auto"] = 0
    """share of the target's statistics in BatchNorm, for labels and mIoU, from 0 (none) to 1 (all); auto: chosen for
    each network on held-out source images in the colours of target images"""
