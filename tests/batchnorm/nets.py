"""Small networks with BatchNorm, and images for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Pixels(nn.Module):
    """``relu(norm(W x))`` thrice, one pixel at a time, dropout between, and a head."""

    def __init__(self, seed: int = 0, dropout: float = 0.5, norm: type[nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.convs = nn.ModuleList(nn.Conv2d(3 if k == 0 else 4, 4, 1, bias=False) for k in range(3))
            self.norms = nn.ModuleList(norm(4) for _ in range(3))
            self.head = nn.Conv2d(4, 5, 1)
            for layer in self.norms:
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.uniform_(layer.bias, -0.5, 0.5)
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: Tensor) -> Tensor:
        for conv, layer in zip(self.convs, self.norms, strict=True):
            images = self.dropout(layer(conv(images)).relu())
        return self.head(images)


def trained(seed: int = 0, **settings) -> Pixels:
    """A network whose statistics are those of some source."""
    net = Pixels(seed, **settings)
    generator = torch.Generator().manual_seed(seed + 50)
    for layer in net.norms:
        layer.running_mean.copy_(0.1 * torch.randn(4, generator=generator))
        layer.running_var.copy_(0.3 * torch.rand(4, generator=generator) + 0.1)
        layer.num_batches_tracked.fill_(7)
    return net


def target(sizes=(2, 1, 3), seed: int = 1, height: int = 5, width: int = 6) -> list[Tensor]:
    """Batches of several sizes, every image with a brightness of its own."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.rand(size, 3, height, width, generator=generator) * torch.rand(size, 3, 1, 1, generator=generator) - 0.3
        for size in sizes
    ]


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def assert_state(net: nn.Module, expected: dict[str, Tensor]) -> None:
    found = net.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
