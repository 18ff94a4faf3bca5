"""Dropping channels of a network's features, for its consistency with itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map  # what transformers and torch.export register their outputs with

from selftrain_seg import _checks
from selftrain_seg.ops.random import check_generator

__all__ = ["perturb_features"]


@contextmanager
def perturb_features(
    *modules: nn.Module, chance: float = 0.5, beside: bool = False, generator: torch.Generator | None = None
) -> Iterator[None]:
    """Drop channels of what some of a network's modules return, inside a ``with`` block.

    Every feature map (B, D, h, w) loses each of its channels with probability ``chance`` p, image by image, and what is
    left is multiplied by 1 / (1 - p), as in ``torch.nn.Dropout2d``, but in evaluation mode, too. UniMatch trains the
    student to say from such features what it says from all of them. The module to name is the encoder, which hands all
    its feature maps to the decoder at once: ``net.encoder`` of segmentation_models_pytorch, ``net.backbone`` of
    torchvision, ``net.segformer`` of transformers. Of a network without one, name the last stage that narrows. (Stages
    that follow one another would each work on what the stage before has lost.)

    With ``beside`` the features stay, and their perturbed copies come after them in the batch. The rest of the network
    then returns twice as many logits for a single pass of the encoder, as in UniMatch:
    ``logits, perturbed = net(images).chunk(2)``. That is for encoders that return everything the decoder gets.

    Works inside ``DistributedDataParallel`` and around or inside ``torch.compile``, which compiles the network a second
    time for it; a ``generator`` breaks the compiled graph. Give every rank a generator with another seed.

    Args:
        modules: of the network; what they return is a tensor, or a list, tuple or dict of tensors, each (B, D, h, w).
        chance: p in [0, 1].
        beside: whether the batch goes on with both.
        generator: source of the random numbers, on the device of the features; None for torch's default one.

    Raises:
        TypeError: a module is no ``torch.nn.Module``; ``chance`` is no number.
        ValueError: no module is given, or one twice; ``chance`` is outside [0, 1]; a module is never called in the
            block (as a ``ModuleList`` is not), is perturbed already or itself made by ``torch.compile``; it returns
            anything but floating-point (B, D, h, w); the generator is on another device.

    References:
        Yang et al., Revisiting Weak-to-Strong Consistency in Semi-Supervised Semantic Segmentation (UniMatch),
        CVPR 2023, arXiv:2208.09910: p = 0.5, all that the decoder gets.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 2, 1))
        >>> images = torch.rand(4, 3, 8, 8)
        >>> with perturb_features(net[0], beside=True):
        ...     logits, perturbed = net(images).chunk(2)
        >>> torch.allclose(logits, net(images)), torch.allclose(perturbed, net(images))
        (True, False)
    """
    if not modules:
        raise ValueError("`modules`: expected at least one, got none")
    for index, module in enumerate(modules):
        if not isinstance(module, nn.Module):
            raise TypeError(f"`modules[{index}]`: expected a torch.nn.Module, got {type(module).__name__}")
        if "forward" in vars(module):
            raise ValueError(f"`modules[{index}]`: expected a module that is neither compiled nor perturbed already")
        if any(module is other for other in modules[:index]):
            raise ValueError(f"`modules[{index}]`: expected each module once")
    _checks.check_real(chance, "chance", 0.0, 1.0)
    called = [False] * len(modules)
    for index, module in enumerate(modules):
        # An attribute of the instance goes before the method of its class; torch.compile looks at it, not at hooks.
        module.forward = _perturbed(module.forward, index, called, float(chance), bool(beside), generator)
    try:
        yield
    finally:
        for module in modules:
            del module.forward
    for index, module in enumerate(modules):
        if not called[index]:
            raise ValueError(
                f"`modules[{index}]`: expected a module that is called in the block, got one that is not:"
                f" {type(module).__name__}"
            )


def _perturbed(
    forward: Callable[..., Any],
    index: int,
    called: list[bool],
    chance: float,
    beside: bool,
    generator: torch.Generator | None,
) -> Callable[..., Any]:
    """A module's forward pass, with channels dropped from what it returns."""

    def drop(features: Any) -> Any:
        if not isinstance(features, Tensor):
            return features
        if features.ndim != 4 or not features.is_floating_point():
            raise ValueError(
                f"`modules[{index}]`: expected it to return floating-point feature maps (B, D, h, w), got"
                f" {tuple(features.shape)} {features.dtype}"
            )
        check_generator(generator, features)
        shape = features.shape[:2]
        if generator is None:
            kept = torch.rand(shape, device=features.device) >= chance
        else:
            kept = torch.rand(shape, device=features.device, generator=generator) >= chance
        factor = kept.to(features.dtype) / max(1 - chance, 1e-6)
        dropped = features * factor[:, :, None, None]
        return torch.cat([features, dropped]) if beside else dropped

    def perturbed(*arguments: Any, **keywords: Any) -> Any:
        called[index] = True
        return tree_map(drop, forward(*arguments, **keywords))

    return perturbed
