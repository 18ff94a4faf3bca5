"""BatchNorm layers that stay in evaluation mode during training."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from selftrain_seg.batchnorm._layers import batchnorm_layers

__all__ = ["freeze_batchnorm"]


def freeze_batchnorm(net: nn.Module, *, affine: bool = True) -> None:
    """Freeze BatchNorm layers: ``net.train()`` no longer makes them use or update batch statistics.

    This is common when a pre-trained network is trained with small batches. Each layer becomes a subclass of its type,
    so names in the ``state_dict`` do not change (torchvision's ``FrozenBatchNorm2d`` drops the counter), and timm's
    layers with activations, ``estimate_statistics`` and ``set_statistics`` still work. Copies and pickled networks stay
    frozen.

    Call it after ``SyncBatchNorm.convert_sync_batchnorm``, which creates new layers.

    Args:
        net: a network, wrapped or not. Layers without running statistics are left as they are.
        affine: whether to freeze weights and biases too, by setting ``requires_grad`` to False. Do so before you create
            the optimizer and ``DistributedDataParallel``.

    Raises:
        TypeError: ``net`` is not a ``torch.nn.Module``.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
        >>> freeze_batchnorm(net)
        >>> net.train()[1].training
        False
        >>> _ = net(torch.rand(2, 3, 5, 5))
        >>> net[1].running_mean
        tensor([0., 0., 0., 0.])
    """
    for layer in batchnorm_layers(net).values():
        if not isinstance(layer, _Frozen):
            layer.__class__ = _frozen(type(layer))  # type: ignore[arg-type]
        layer.train(False)
        if affine:
            for parameter in layer.parameters(recurse=False):
                parameter.requires_grad_(False)


class _Frozen:
    """Mixin of frozen BatchNorm layers."""

    def train(self, mode: bool = True) -> Any:
        """Set evaluation mode, whatever ``mode`` is."""
        return super().train(False)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Recreate the class on copying and unpickling, since it cannot be imported by name."""
        return _empty, (type(self).__mro__[2],), self.__dict__.copy()


@functools.cache
def _frozen(cls: type[_BatchNorm]) -> type[_BatchNorm]:
    return type(f"Frozen{cls.__name__}", (_Frozen, cls), {})


def _empty(cls: type[_BatchNorm]) -> _BatchNorm:
    """Return an empty frozen layer of a class."""
    frozen: type[_BatchNorm] = _frozen(cls)  # type: ignore[arg-type]
    return frozen.__new__(frozen)
