import pytest
import torch

from selftrain_seg.ops.numbers import integers, near
from tests.launches import GPU, launched

VALUES = [3, -7, 0, 255, 2**62 - 1, *range(200)]


def test_integers():
    for values in ([], [5], VALUES):
        found = integers(values, torch.device("cpu"))
        assert found.dtype == torch.int64
        assert found.tolist() == values


def test_integers_go_to_a_gpu_with_a_launch():
    assert launched(integers, [1, 2, 3], torch.device(GPU)) == ["zeros", "_foreach_add_"]
    assert launched(integers, [], torch.device(GPU)) == []
    on_cpu = torch.zeros(len(VALUES), dtype=torch.int64)  # what is done there, where it can be looked at
    torch._foreach_add_(list(on_cpu.unbind()), VALUES)
    assert on_cpu.tolist() == VALUES


def test_near():
    here, there = torch.ones(3), torch.ones(2, device=GPU)
    assert near(here, here) is here
    assert near(here, there).device.type == GPU


@pytest.mark.gpu
def test_on_the_gpu():
    assert integers(VALUES, torch.device("cuda")).tolist() == VALUES
    assert near(torch.arange(3), torch.ones(1, device="cuda")).tolist() == [0, 1, 2]
    assert near(torch.arange(3, device="cuda"), torch.ones(1)).tolist() == [0, 1, 2]
