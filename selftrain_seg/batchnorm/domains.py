"""One set of running statistics per domain, with shared weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from selftrain_seg.batchnorm._layers import MEAN, VAR, require_layers

__all__ = ["add_domain", "remove_domain", "use_domain"]

_ENTRIES = (MEAN, VAR, "num_batches_tracked")


def add_domain(net: nn.Module, domain: str) -> None:
    """Add a set of running statistics for another domain to every BatchNorm layer.

    Inside ``use_domain(net, domain)`` the network uses and updates the statistics of that domain, which start as copies
    of its own. All weights are shared, including those of BatchNorm, which DSBN keeps per domain.

    Call it before ``DistributedDataParallel`` wraps or a teacher copies the network, and after
    ``SyncBatchNorm.convert_sync_batchnorm``, which drops the added statistics.

    Args:
        net: a network with BatchNorm layers.
        domain: a valid Python identifier, such as ``"target"``.

    State / distributed:
        Each layer gets the buffers ``<domain>_running_mean``, ``<domain>_running_var`` and
        ``<domain>_num_batches_tracked``. They have these names in ``state_dict``, whichever domain is in use.

    Raises:
        TypeError: ``net`` is not a ``torch.nn.Module``, or ``domain`` is not a string.
        ValueError: the network has no BatchNorm layer or already has that domain, or ``domain`` is not an identifier.

    References:
        Chang et al., "Domain-Specific Batch Normalization for Unsupervised Domain Adaptation", CVPR 2019,
        arXiv:1906.03950.

    Example:
        >>> import torch
        >>> norm = torch.nn.BatchNorm2d(1, momentum=1.0)
        >>> add_domain(norm, "target")
        >>> _ = norm(torch.full((1, 1, 2, 2), 3.0))
        >>> with use_domain(norm, "target"):
        ...     _ = norm(torch.full((1, 1, 2, 2), 5.0))
        >>> norm.running_mean, norm.target_running_mean
        (tensor([3.]), tensor([5.]))
    """
    layers = require_layers(net)
    if not isinstance(domain, str):
        raise TypeError(f"`domain`: expected a string, got {type(domain).__name__}")
    if not domain.isidentifier():
        raise ValueError(f"`domain`: expected a name such as 'target', got {domain!r}")
    for name, layer in layers.items():
        if any(hasattr(layer, f"{domain}_{entry}") for entry in _ENTRIES):
            raise ValueError(f"`domain`: expected a new name, got {domain!r}, which {name or 'the layer'} already has")
    for layer in layers.values():
        if not hasattr(layer, "_domain"):
            layer._domain = None  # type: ignore[assignment]
            layer.register_state_dict_post_hook(_sort)  # type: ignore[no-untyped-call]
            layer.register_load_state_dict_pre_hook(_unsort)  # type: ignore[no-untyped-call]
        for entry in _ENTRIES:
            tensor = getattr(layer, entry)
            layer.register_buffer(f"{domain}_{entry}", None if tensor is None else tensor.detach().clone())


def remove_domain(net: nn.Module, domain: str) -> None:
    """Remove the statistics of a domain that ``add_domain`` added.

    To keep them as the network's own statistics, call ``get_statistics`` inside ``use_domain`` first, and then
    ``set_statistics``.

    Args:
        net: the network.
        domain: its name.

    Raises:
        TypeError: ``net`` is not a ``torch.nn.Module``.
        ValueError: the network does not have the domain, or it is in use.

    Example:
        >>> import torch
        >>> norm = torch.nn.BatchNorm2d(1)
        >>> add_domain(norm, "target")
        >>> remove_domain(norm, "target")
        >>> sorted(norm.state_dict())
        ['bias', 'num_batches_tracked', 'running_mean', 'running_var', 'weight']
    """
    layers = _layers_with(net, domain)
    if any(layer._domain == domain for layer in layers):
        raise ValueError(f"`domain`: expected a domain that is not in use, got {domain!r}; leave `use_domain` first")
    for layer in layers:
        for entry in _ENTRIES:
            delattr(layer, f"{domain}_{entry}")


@contextmanager
def use_domain(net: nn.Module, domain: str | None) -> Iterator[None]:
    """Make a network use the statistics of a domain inside a ``with`` block.

    Training, prediction, ``get_statistics``, ``set_statistics`` and ``estimate_statistics`` then use the statistics of
    the domain. Blocks may be nested. Tensors are swapped, not copied, so the block costs nothing on a GPU, one backward
    pass may cover forward passes in several domains, and compiled networks are not recompiled.

    Args:
        net: a network with the domain, wrapped or not.
        domain: name of the domain; None for the network's own statistics.

    Raises:
        TypeError: ``net`` is not a ``torch.nn.Module``.
        ValueError: the network does not have the domain.

    Example:
        >>> import torch
        >>> norm = torch.nn.BatchNorm2d(1).eval()
        >>> add_domain(norm, "target")
        >>> with use_domain(norm, "target"):
        ...     _ = norm.running_mean.fill_(1.0)
        ...     norm(torch.ones(1, 1, 1, 1)).item()
        0.0
        >>> norm.running_mean
        tensor([0.])
    """
    layers = [layer for layer in require_layers(net).values() if hasattr(layer, "_domain")]
    layers = layers if domain is None else _layers_with(net, domain)
    before: list[Any] = [layer._domain for layer in layers]
    try:
        for layer in layers:
            _switch(layer, domain)
        yield
    finally:
        for layer, earlier in zip(layers, before, strict=True):
            _switch(layer, earlier)


def _layers_with(net: nn.Module, domain: str) -> list[_BatchNorm]:
    layers = require_layers(net)
    for name, layer in layers.items():
        if f"{domain}_{MEAN}" not in layer._buffers:
            known = sorted(entry.removesuffix(f"_{MEAN}") for entry in layer._buffers if entry.endswith(f"_{MEAN}"))
            raise ValueError(
                f"`domain`: expected a domain added by `add_domain`, got {domain!r}; {name or 'the layer'} has "
                f"{', '.join(map(repr, known)) or 'none'}"
            )
    return list(layers.values())


def _switch(layer: Any, domain: str | None) -> None:
    """Swap back the tensors of the domain in use, then swap in those of ``domain``."""
    for name in (layer._domain, domain) if layer._domain != domain else ():
        if name is not None:
            _exchange(layer._buffers, "", name)
    layer._domain = domain


def _exchange(tensors: Any, prefix: str, domain: str) -> None:
    for entry in _ENTRIES:
        own, other = prefix + entry, f"{prefix}{domain}_{entry}"
        if own in tensors and other in tensors:
            tensors[own], tensors[other] = tensors[other], tensors[own]


def _sort(layer: Any, state_dict: dict[str, torch.Tensor], prefix: str, *_: Any) -> None:
    """Save the tensors of each domain under its name, whichever is in use."""
    if layer._domain is not None:
        _exchange(state_dict, prefix, layer._domain)


def _unsort(layer: Any, state_dict: dict[str, torch.Tensor], prefix: str, *_: Any) -> None:
    """Load the tensors of each domain by its name, whichever is in use."""
    if layer._domain is not None:
        _exchange(state_dict, prefix, layer._domain)
