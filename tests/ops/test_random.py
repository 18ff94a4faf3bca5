import pytest
import torch
from scipy import stats

from selftrain_seg.ops.random import check_generator, uniform_integers


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_integers_are_uniform():
    draws = uniform_integers(100, 600, torch.device("cpu"), generator())
    assert draws.shape == (100, 600)
    assert draws.dtype == torch.int64
    assert draws.min() >= 0
    assert draws.max() < 2**62
    for values in (draws % 10, draws >> 58):  # the lowest digit, the upper bits
        assert stats.chisquare(torch.bincount(values.flatten()).numpy()).pvalue > 1e-3


def test_the_generator_is_the_source():
    device = torch.device("cpu")
    one = generator(3)
    first, second = (uniform_integers(2, 5, device, one) for _ in range(2))
    assert torch.equal(first, torch.randint(2**62, (2, 5), generator=generator(3)))  # the stream of earlier versions
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    uniform_integers(2, 5, device, generator())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(uniform_integers(2, 5, device, None), first)


def test_check_generator():
    check_generator(None, torch.zeros(1, device="meta"))
    check_generator(generator(), torch.zeros(1))
    with pytest.raises(ValueError, match=r"^`generator`: expected device meta, got cpu$"):
        check_generator(generator(), torch.zeros(1, device="meta"))
