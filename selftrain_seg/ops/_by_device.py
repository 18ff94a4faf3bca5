"""How an operator is registered that is done in one way on the CPU and in another elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

library: Any = torch.library.Library("selftrain_seg", "FRAGMENT")  # type: ignore[no-untyped-call]


def by_device(
    schema: str, anywhere: Callable[..., Any], fake: Callable[..., Any], *, cpu: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """Register an operator and return it; PyTorch's dispatcher chooses among its implementations.

    Args:
        schema: its name, arguments and results, as in ``torch.library.define``.
        anywhere: its implementation in torch, for any device. It must not make the host wait.
        fake: makes results of the right shape, dtype and layout without values.
        cpu: what is faster on a CPU, where the host may look at values; the results are the same, bit for bit.
    """
    name = schema.partition("(")[0]
    library.define(schema)
    library.impl(name, anywhere, "CompositeExplicitAutograd")
    if cpu is not None:
        library.impl(name, cpu, "CPU")
    torch.library.register_fake(f"selftrain_seg::{name}", fake, lib=library)
    found: Callable[..., Any] = getattr(torch.ops.selftrain_seg, name).default
    return found
