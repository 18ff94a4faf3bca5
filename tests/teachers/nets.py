"""Small networks for the tests of teachers, and what to do with them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES = 3


class Net(nn.Module):
    """Two convolutions with BatchNorm and dropout between them, an integer buffer and a floating-point one."""

    def __init__(self, seed: int = 0, norm: str = "batch") -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first = nn.Conv2d(3, 4, 3, padding=1)
            self.norm = nn.BatchNorm2d(4) if norm == "batch" else nn.GroupNorm(2, 4)
            self.dropout = nn.Dropout(0.3 if norm == "batch" else 0.0)
            self.head = nn.Conv2d(4, CLASSES, 1)
        self.register_buffer("seen", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.dropout(self.norm(self.first(images)).relu())) * self.scale


def images(seed: int = 0, batch: int = 2, size: tuple[int, int] = (6, 8)) -> Tensor:
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def shake(net: nn.Module, seed: int) -> None:
    """Change all parameters and buffers, as training would, differently for each seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            else:
                tensor.copy_(torch.randint(1 + seed, 9 + seed, tensor.shape, generator=generator))


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all tensors in the ``state_dict``."""
    return {name: value.clone() for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def assert_same(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    """The same names, dtypes and values to the bit."""
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert tensor.dtype == two[name].dtype, name
        assert torch.equal(tensor, two[name]), name
