"""Drop channels of a network's features, for consistency training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map  # what transformers and torch.export register their outputs with

from selftrain_seg import _checks
from selftrain_seg.ops.random import check_generator, uniform
from selftrain_seg.teachers._forwards import check_replaceable

__all__ = ["perturb_features"]


@contextmanager
def perturb_features(
    *modules: nn.Module, chance: float = 0.5, beside: bool = False, generator: torch.Generator | None = None
) -> Iterator[None]:
    """Drop channels of the outputs of some modules of a network inside a ``with`` block.

    Each channel of every feature map (B, D, h, w) is dropped with probability ``chance`` p, for each image separately;
    the others are multiplied by 1 / (1 - p), as in ``torch.nn.Dropout2d`` but also in evaluation mode. UniMatch trains
    the student to predict the same labels from such features. Pass the encoder, which returns all feature maps that the
    decoder uses: ``net.encoder`` of segmentation_models_pytorch, ``net.backbone`` of torchvision, ``net.segformer`` of
    transformers. In a network without an encoder module, pass the last stage that reduces the resolution. Do not pass
    consecutive stages, as each would perturb the output of the previous one.

    With ``beside``, perturbed copies of the features are appended to the batch. The rest of the network then returns
    twice as many logits for a single pass of the encoder, as in UniMatch:
    ``logits, perturbed = net(images).chunk(2)``. This requires an encoder that returns all inputs of the decoder.

    Works inside ``DistributedDataParallel`` and around or inside ``torch.compile``, which compiles the network a second
    time; a ``generator`` breaks the compiled graph. Give every rank a generator with another seed.

    Args:
        modules: modules of the network that return a tensor, or a list, tuple or dict of tensors, each (B, D, h, w).
        chance: p in [0, 1].
        beside: whether to append the perturbed features to the batch instead of replacing the features.
        generator: source of the random numbers, on the device of the features; None for torch's default one.

    Raises:
        TypeError: a module is not a ``torch.nn.Module``; ``chance`` is not a number.
        ValueError: no module is given, or one is repeated; ``chance`` is outside [0, 1]; a module is never called in
            the block (such as a ``ModuleList``), is already perturbed, or is the output of ``torch.compile``; a tensor
            that it returns is not floating-point (B, D, h, w); the generator is on another device.

    References:
        Yang et al., Revisiting Weak-to-Strong Consistency in Semi-Supervised Semantic Segmentation (UniMatch),
        CVPR 2023, arXiv:2208.09910: p = 0.5, on all inputs of the decoder.

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
    check_replaceable(modules, "modules", "module", "perturbed")
    _checks.check_real(chance, "chance", 0.0, 1.0)
    called = [False] * len(modules)
    for index, module in enumerate(modules):
        # An instance attribute takes precedence over the method of the class; torch.compile respects it, unlike hooks.
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
    """Wrap a module's ``forward`` to drop channels of its output."""

    def drop(features: Any) -> Any:
        if not isinstance(features, Tensor):
            return features
        if features.ndim != 4 or not features.is_floating_point():
            raise ValueError(
                f"`modules[{index}]`: expected it to return floating-point feature maps (B, D, h, w), got"
                f" {tuple(features.shape)} {features.dtype}"
            )
        check_generator(generator, features)
        kept = uniform(features.shape[:2], features.device, generator) >= chance
        factor = kept.to(features.dtype) / max(1 - chance, 1e-6)
        dropped = features * factor[:, :, None, None]
        return torch.cat([features, dropped]) if beside else dropped

    def perturbed(*arguments: Any, **keywords: Any) -> Any:
        called[index] = True
        return tree_map(drop, forward(*arguments, **keywords))

    return perturbed
