"""BatchNorm that stays in evaluation mode while the rest trains."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from selftrain_seg.batchnorm._layers import batchnorm_layers

__all__ = ["freeze_batchnorm"]


def freeze_batchnorm(net: nn.Module, *, affine: bool = True) -> None:
    """Let BatchNorm layers normalise by their running statistics for ever: ``net.train()`` no longer moves these.

    The usual choice where a pre-trained network learns from small batches. Layers stay what they are, so names in the
    ``state_dict`` do too (torchvision's ``FrozenBatchNorm2d`` drops the counter), activations inside a layer (timm)
    still work, and ``estimate_statistics`` and ``set_statistics`` do. Copies and pickled networks are frozen as well.

    Freeze after ``SyncBatchNorm.convert_sync_batchnorm``, which would make new layers that are not.

    Args:
        net: a network, wrapped or not. Layers without running statistics have nothing to freeze.
        affine: whether weights and biases stop learning, too: ``requires_grad`` is set to False. Do that before the
            optimizer and ``DistributedDataParallel`` look at it.

    Raises:
        TypeError: ``net`` is no ``torch.nn.Module``.

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
    """What a frozen layer is besides a BatchNorm layer."""

    def train(self, mode: bool = True) -> Any:
        """Evaluation mode, whatever is asked for."""
        return super().train(False)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """The class is made here and cannot be found by name: copies and pickles make it again."""
        return _empty, (type(self).__mro__[2],), self.__dict__.copy()


@functools.cache
def _frozen(cls: type[_BatchNorm]) -> type[_BatchNorm]:
    return type(f"Frozen{cls.__name__}", (_Frozen, cls), {})


def _empty(cls: type[_BatchNorm]) -> _BatchNorm:
    """A frozen layer of that class without anything in it."""
    frozen: type[_BatchNorm] = _frozen(cls)  # type: ignore[arg-type]
    return frozen.__new__(frozen)
