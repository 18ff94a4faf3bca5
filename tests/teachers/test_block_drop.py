import math

import pytest
import torch
from torch import nn

from selftrain_seg.teachers import drop_blocks
from tests.teachers.nets import assert_same, snapshot


class Block(nn.Module):
    """A residual block that counts its calls."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(2)
        self.conv = nn.Conv2d(2, 2, 1)
        self.calls = 0

    def forward(self, x, scale=1.0):
        self.calls += 1
        return x + scale * self.conv(self.norm(x))


def chain(count=4):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.ModuleList(Block() for _ in range(count))


def through(blocks, x):
    for block in blocks:
        x = block(x, scale=0.5)
    return x


def batch():
    return torch.rand(2, 2, 3, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("seed", range(6))
def test_a_dropped_block_computes_nothing(seed):
    blocks, x = chain(), batch()
    before = [snapshot(block) for block in blocks]
    with drop_blocks(blocks, generator=torch.Generator().manual_seed(seed)) as skipped:
        out = through(blocks, x)
    assert len(skipped) == 4
    assert [block.calls for block in blocks] == [int(not skip) for skip in skipped]
    for block, old, skip in zip(blocks, before, skipped, strict=True):
        assert block.norm.num_batches_tracked.item() == int(not skip)
        if skip:
            assert_same(snapshot(block), old)
    left = [block for block, skip in zip(blocks, skipped, strict=True) if not skip]
    assert torch.equal(out, through(left, x))


def test_gradients_pass_through_dropped_blocks():
    blocks, x = chain(2), batch().requires_grad_()
    with drop_blocks(blocks[1:], chance=1.0):
        through(blocks, x).sum().backward()
    assert x.grad is not None
    assert all(parameter.grad is not None for parameter in blocks[0].parameters())
    assert all(parameter.grad is None for parameter in blocks[1].parameters())


def test_blocks_return_after_the_with_and_after_exceptions():
    blocks, x = chain(), batch()
    for block in blocks:
        block.eval()
    full = through(blocks, x)
    with drop_blocks(blocks, chance=1.0):
        assert torch.equal(through(blocks, x), x)
    assert torch.equal(through(blocks, x), full)
    with pytest.raises(RuntimeError, match="stop"), drop_blocks(blocks, chance=1.0):
        raise RuntimeError("stop")
    assert torch.equal(through(blocks, x), full)
    assert not any("forward" in vars(block) for block in blocks)


def test_only_the_given_blocks_and_one_draw_a_with():
    blocks, x = chain(), batch()
    with drop_blocks(blocks[1:3], chance=1.0) as skipped:
        through(blocks, x)
        through(blocks, x)
    assert skipped == [True, True]
    assert [block.calls for block in blocks] == [2, 0, 0, 2]
    with drop_blocks(iter(blocks), chance=0.0) as skipped:
        through(blocks, x)
    assert skipped == [False] * 4
    with drop_blocks([]) as skipped:
        assert skipped == []


@pytest.mark.parametrize("chance", [0.2, 0.5, 0.9])
def test_chance(chance):
    blocks, generator = chain(5), torch.Generator().manual_seed(0)
    draws, pairs = 2000, 0
    counts = [0] * 5
    for _ in range(draws):
        with drop_blocks(blocks, chance=chance, generator=generator) as skipped:
            counts = [count + skip for count, skip in zip(counts, skipped, strict=True)]
            pairs += skipped[0] and skipped[1]
    spread = 4 * math.sqrt(draws * chance * (1 - chance))
    assert all(abs(count - draws * chance) < spread for count in counts)
    assert abs(pairs - draws * chance**2) < 4 * math.sqrt(draws * chance**2 * (1 - chance**2))  # independent


def test_default_chance_is_a_half():
    blocks = chain(1)
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(1000):
        with drop_blocks(blocks, generator=generator) as skipped:
            hits += skipped[0]
    assert abs(hits - 500) < 70


def test_draws_by_generator():
    blocks = chain(20)

    def draw(generator=None):
        with drop_blocks(blocks, generator=generator) as skipped:
            return skipped

    state = torch.get_rng_state()
    assert draw(torch.Generator().manual_seed(1)) == draw(torch.Generator().manual_seed(1))
    assert draw(torch.Generator().manual_seed(1)) != draw(torch.Generator().manual_seed(2))
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        first = draw()
        torch.manual_seed(4)
        assert draw() == first


def test_blocks_are_saved_as_ever_while_skipped():
    blocks = chain()
    state = snapshot(blocks)
    with drop_blocks(blocks, chance=1.0):
        assert_same(snapshot(blocks), state)


@pytest.mark.parametrize(
    ("blocks", "keywords", "error", "message"),
    [
        ([nn.ReLU(), len], {}, TypeError, r"`blocks\[1\]`: expected a torch.nn.Module, got builtin_function_or_method"),
        ([nn.ReLU()], {"chance": "1"}, TypeError, "`chance`: expected a number, got str"),
        ([nn.ReLU()], {"chance": 1.5}, ValueError, r"`chance`: expected a value in \[0.0, 1.0\], got 1.5"),
        ([nn.ReLU()], {"chance": -0.5}, ValueError, "`chance`: expected a value in"),
        ([nn.ReLU()] * 2, {"chance": 1.0}, ValueError, r"`blocks\[1\]`: expected each block once"),
    ],
)
def test_raises(blocks, keywords, error, message):
    with pytest.raises(error, match=message), drop_blocks(blocks, **keywords):
        pass
    assert not any("forward" in vars(block) for block in blocks if isinstance(block, nn.Module))


def test_a_block_is_skipped_once():
    blocks, x = chain(2), batch()
    with drop_blocks(blocks, chance=1.0):
        with (
            pytest.raises(ValueError, match=r"`blocks\[0\]`: expected a block that is neither compiled nor skipped"),
            drop_blocks(blocks),
        ):
            pass
        assert torch.equal(through(blocks, x), x)  # the outer one still holds
    assert not torch.equal(through(blocks, x), x)


def test_one_module_is_not_several():
    with (
        pytest.raises(TypeError, match="`blocks`: expected several modules, got one Linear"),
        drop_blocks(nn.Linear(2, 2)),
    ):
        pass
