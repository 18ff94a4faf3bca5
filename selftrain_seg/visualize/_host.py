"""The one door from the device to the host: whatever is drawn goes through here."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]


def on_host(values: Any) -> Array:
    """A tensor of any device and dtype, bfloat16 included, as an array; floats as float64."""
    if isinstance(values, Tensor):
        values = values.detach()
        values = (values.double() if values.is_floating_point() else values).cpu().numpy()
    elif isinstance(values, (list, tuple)):  # of tensors, say: losses of some steps, with their graphs, on the device
        values = [on_host(value) for value in values]
    array = np.asarray(values)
    return array.astype(np.float64) if array.dtype.kind == "f" else array
