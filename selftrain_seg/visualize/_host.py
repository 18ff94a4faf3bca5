"""Copy tensors from the device to the host."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]


def on_host(values: Any) -> Array:
    """Convert a tensor of any device and dtype, including bfloat16, to an array; floats become float64."""
    if isinstance(values, Tensor):
        values = values.detach()
        values = (values.double() if values.is_floating_point() else values).cpu().numpy()
    elif isinstance(values, (list, tuple)):  # such as losses of several steps, with graphs, on a device
        values = [on_host(value) for value in values]
    array = np.asarray(values)
    return array.astype(np.float64) if array.dtype.kind == "f" else array
