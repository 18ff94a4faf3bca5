"""The BatchNorm layers of a network."""

from __future__ import annotations

from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from selftrain_seg.teachers import _weights

MEAN, VAR = "running_mean", "running_var"


def batchnorm_layers(net: Any) -> dict[str, _BatchNorm]:
    """Return the layers with running statistics by their names in the bare network; a shared layer once."""
    _weights.check_module(net, "net")
    found = {}
    for name, module in _weights.unwrap(net).named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            if is_lazy(module.running_mean):
                raise ValueError(f"`net`: expected initialised layers, got lazy layer {name}; run `net` once first")
            found[_weights.canonical(name)] = module
    return found


def require_layers(net: Any) -> dict[str, _BatchNorm]:
    """Return the same as ``batchnorm_layers``, or raise an error if there is none."""
    found = batchnorm_layers(net)
    if not found:
        raise ValueError(
            f"`net`: expected BatchNorm layers with running statistics, found none in {type(net).__name__} "
            "(torchvision's FrozenBatchNorm2d is not supported)"
        )
    return found


def join(name: str, entry: str) -> str:
    return f"{name}.{entry}" if name else entry
