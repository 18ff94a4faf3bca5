"""A GPU that is not there, and arguments on it.

PyTorch's ``FakeTensorMode`` makes tensors of "cuda" on any machine. They have a shape, a dtype and a device, but no
values. An operation on tensors of two devices fails as on a GPU, and so does whatever reads a value on the host. For an
operator of this package the plain implementation runs too, and its results must look like those of the fake one.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from tests.launches import HostWaits, refuse_waits

aten = torch.ops.aten
WAITS = (DataDependentOutputException, DynamicOutputShapeException, HostWaits)
LAYOUTS = {torch.float32: torch.contiguous_format, torch.bfloat16: torch.channels_last}
B, C, H, W = 2, 4, 24, 32


class FakeGPU(FakeTensorMode):
    """Tensors of "cuda" without values; copies of modules made inside it stay inside it."""

    def __deepcopy__(self, _):
        return self


class Watch(TorchDispatchMode):
    """Raises HostWaits if the host waits; compares the plain implementations of our operators with the fake ones."""

    preparing = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        try:
            result = func(*args, **kwargs)
        except DataDependentOutputException:
            if func not in (aten.item.default, aten._local_scalar_dense.default) or args[0].device.type != "cpu":
                raise
            return 0.5 if args[0].is_floating_point() else 1  # the host may read what it has; any number will do
        if Watch.preparing:
            return result
        if func.namespace == "selftrain_seg":
            with self:
                plain = func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **kwargs)
            assert tree_map(looks, plain) == tree_map(looks, result), f"{func}: plain and fake results differ"
        elif not sent_without_waiting(func, args, kwargs):
            refuse_waits(func, args, kwargs, "cuda")
        return result


def looks(value):
    return (value.shape, value.dtype, value.device, value.stride()) if isinstance(value, Tensor) else value


def sent_without_waiting(func, args, kwargs):
    """A copy from the host that returns at once."""
    if func is aten._to_copy.default:
        return args[0].device.type == "cpu" and kwargs.get("non_blocking")
    return func is aten.copy_.default and args[1].device.type == "cpu" and args[2:] == (True,)


@contextmanager
def fake_gpu():
    try:
        with FakeGPU():
            torch.ones(2).to("cuda") + 1
    except RuntimeError as error:
        if torch.version.cuda and tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 14):
            raise
        pytest.skip(f"this PyTorch asks the driver for a fake tensor: {error}")
    with FakeGPU(), Watch():
        yield


@contextmanager
def preparing():
    """Within, the host may wait."""
    with mock.patch.object(Watch, "preparing", True):
        yield


class Inputs:
    """Arguments on a device that holds no values; each is made when it is read."""

    def __init__(self, device, dtype=torch.float32):
        self.device, self.dtype = device, dtype

    def sent(self, tree):
        """Tensors of the same shapes and dtypes on the device."""
        make = partial(torch.empty, device=self.device)
        return tree_map(lambda leaf: make(leaf.shape, dtype=leaf.dtype) if isinstance(leaf, Tensor) else leaf, tree)

    @preparing()
    def moved(self, module):
        """A module made on the CPU, moved; ``torch.utils.swap_tensors`` cannot swap the parameters of this mode."""
        for part in module.modules():
            for name, weight in part._parameters.items():
                if weight is not None:
                    part._parameters[name] = nn.Parameter(weight.detach().to(self.device), weight.requires_grad)
        with mock.patch("torch.utils.swap_tensors"):
            return module.to(self.device)

    @preparing()
    def net(self):
        """A network of half resolution."""
        place = {"device": self.device, "dtype": self.dtype}
        layers = nn.Conv2d(3, 4, 1, **place), nn.BatchNorm2d(4, **place), nn.ReLU()
        return nn.Sequential(*layers, nn.Conv2d(4, C, 1, stride=2, **place))

    def maps(self, high, dtype=torch.int64):
        return torch.randint(high, (B, H, W), device=self.device).to(dtype)

    def numbers(self, *values):
        """(K,) int64."""
        return torch.zeros(len(values), dtype=torch.int64, device=self.device)

    @property
    def logits(self):
        logits = torch.randn(B, C, H, W, dtype=self.dtype, device=self.device)
        return logits.to(memory_format=LAYOUTS[self.dtype]).requires_grad_()

    @property
    def soft(self):
        return self.logits.detach().softmax(1)

    @property
    def images(self):
        return torch.rand(B, 3, H, W, dtype=self.dtype, device=self.device)

    @property
    def labels(self):
        return self.maps(C)

    @property
    def few(self):
        return self.maps(C, torch.uint8)

    @property
    def valid(self):
        return self.maps(2, torch.bool)

    @property
    def weights(self):
        return torch.rand(B, H, W, device=self.device)

    @property
    def classes(self):
        return torch.rand(C, device=self.device)

    @property
    def counts(self):
        return torch.randint(100, (C,), device=self.device)

    @property
    def prior(self):
        return torch.rand(C, H, W, device=self.device)
