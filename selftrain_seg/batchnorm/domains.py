"""One set of running statistics for each domain, with weights in common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from selftrain_seg.batchnorm._layers import MEAN, VAR, some_layers

__all__ = ["add_domain", "remove_domain", "use_domain"]

_ENTRIES = (MEAN, VAR, "num_batches_tracked")


def add_domain(net: nn.Module, domain: str) -> None:
    """Give every BatchNorm layer a further set of running statistics, for the images of a domain of its own.

    In training each domain moves its own statistics and all learn one network, weights and biases of BatchNorm
    included; DSBN has these apart, too. Inside ``use_domain(net, domain)`` the network has the statistics of that
    domain, outside its own. They begin as copies of its own.

    Do it before ``DistributedDataParallel``, so that it sends them along, before a teacher copies the network, and
    after ``SyncBatchNorm.convert_sync_batchnorm``, which would lose them.

    Args:
        net: a network with BatchNorm layers.
        domain: a name that could be a variable's: ``"target"``.

    State / distributed:
        Buffers ``<domain>_running_mean``, ``<domain>_running_var`` and ``<domain>_num_batches_tracked`` of each layer,
        in ``state_dict`` under these names whichever domain is in use.

    Raises:
        TypeError: ``net`` is no ``torch.nn.Module``, or ``domain`` no string.
        ValueError: the network has no BatchNorm layer, or that domain already; the name is none.

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
    layers = some_layers(net)
    if not isinstance(domain, str):
        raise TypeError(f"`domain`: expected a string, got {type(domain).__name__}")
    if not domain.isidentifier():
        raise ValueError(f"`domain`: expected a name such as 'target', got {domain!r}")
    for name, layer in layers.items():
        if any(hasattr(layer, f"{domain}_{entry}") for entry in _ENTRIES):
            raise ValueError(f"`domain`: expected a new name, got {domain!r}, which {name or 'the layer'} has already")
    for layer in layers.values():
        if not hasattr(layer, "_domain"):
            layer._domain = None  # type: ignore[assignment]
            layer.register_state_dict_post_hook(_sort)  # type: ignore[no-untyped-call]
            layer.register_load_state_dict_pre_hook(_unsort)  # type: ignore[no-untyped-call]
        for entry in _ENTRIES:
            tensor = getattr(layer, entry)
            layer.register_buffer(f"{domain}_{entry}", None if tensor is None else tensor.detach().clone())


def remove_domain(net: nn.Module, domain: str) -> None:
    """Forget the statistics of a domain: what was added by ``add_domain`` is taken away.

    To keep them as the network's own, take them out first with ``get_statistics`` inside ``use_domain``.

    Args:
        net: the network.
        domain: its name.

    Raises:
        TypeError: ``net`` is no ``torch.nn.Module``.
        ValueError: the network has no such domain, or it is in use.

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
        raise ValueError(f"`domain`: expected one that is not in use, got {domain!r}; leave `use_domain` first")
    for layer in layers:
        for entry in _ENTRIES:
            delattr(layer, f"{domain}_{entry}")


@contextmanager
def use_domain(net: nn.Module, domain: str | None) -> Iterator[None]:
    """Let a network have the statistics of a domain inside a ``with`` block, to train, to predict or to change them.

    All that reads or changes running statistics, ``get_statistics``, ``set_statistics`` and ``estimate_statistics``
    too, means the domain's inside. Blocks may be nested. Tensors change places and nothing is copied, so it costs
    nothing on a GPU, gradients of forward passes in several domains can be computed together, and compiled networks
    are not compiled anew.

    Args:
        net: a network after ``add_domain``, wrapped or not.
        domain: its name; None for the network's own statistics.

    Raises:
        TypeError: ``net`` is no ``torch.nn.Module``.
        ValueError: the network has no such domain.

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
    layers = [layer for layer in some_layers(net).values() if hasattr(layer, "_domain")]
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
    layers = some_layers(net)
    for name, layer in layers.items():
        if f"{domain}_{MEAN}" not in layer._buffers:
            known = sorted(entry.removesuffix(f"_{MEAN}") for entry in layer._buffers if entry.endswith(f"_{MEAN}"))
            raise ValueError(
                f"`domain`: expected one that `add_domain` has added, got {domain!r}; {name or 'the layer'} has "
                f"{', '.join(map(repr, known)) or 'none'}"
            )
    return list(layers.values())


def _switch(layer: Any, domain: str | None) -> None:
    """Let the tensors in use and those of a domain change places, after those of the domain in use are back."""
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
    """Save each domain's tensors under its name, whichever is in use."""
    if layer._domain is not None:
        _exchange(state_dict, prefix, layer._domain)


def _unsort(layer: Any, state_dict: dict[str, torch.Tensor], prefix: str, *_: Any) -> None:
    """And load them so."""
    if layer._domain is not None:
        _exchange(state_dict, prefix, layer._domain)
