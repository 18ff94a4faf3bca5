"""Settings of the network and its initial weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(kw_only=True)
class NetworkSettings:
    """The network and its initial weights."""

    network: str = "small-unet"
    """small-unet, deeplabv2_resnet101, efficientnet-lite0-unet, a name of torchvision, Unet/resnet34 of
    segmentation_models_pytorch, hf:FOLDER of transformers, or module:factory for a network of your own"""
    init: Path | None = None  # weights to start from: another run, or a published DeepLabV2
    backbone_weights: Path | None = None  # weights of a pre-trained backbone, in place of a download
    from_scratch: bool = False  # use no pre-trained weights, and download none
    frozen_bn: bool = False  # freeze BatchNorm: neither its statistics nor its weights change
    reestimate_bn: float | Literal["auto"] = 0
    """share of target statistics in BatchNorm, for labels and evaluation, from 0 to 1; auto chooses it for each
    network on held-out source images in the colours of target images"""
