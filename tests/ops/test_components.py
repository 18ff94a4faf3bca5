import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from selftrain_seg.ops import components


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def numbered(mask):
    """Components by scipy, numbered by their first pixel."""
    out = np.arange(mask.size).reshape(mask.shape)
    found, count = ndimage.label(mask, np.ones((3, 3)))
    for c in range(1, count + 1):
        out[found == c] = out[found == c].min()
    return out


def winding(side):
    """One component as long as can be: a line that runs to and fro."""
    mask = np.zeros((side, side), bool)
    mask[::2] = True
    mask[1::4, -1] = True
    mask[3::4, 0] = True
    return mask


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 10**6))
def test_components(batch, height, width, density, seed):
    mask = torch.rand(batch, height, width, generator=generator(seed)) < density
    expected = np.stack([numbered(m) for m in mask.numpy()])
    for find in (components.connected_components, components._anywhere):  # the second is what a GPU runs
        assert np.array_equal(find(mask).numpy(), expected)


@pytest.mark.parametrize("side", [2, 17, 64, 201])
def test_long_components_need_few_rounds(side, monkeypatch):
    """Far fewer than are granted on a GPU, where nobody looks whether they suffice."""
    line = winding(side)
    masks = np.stack([line, line[::-1], line.T, line.T[::-1, ::-1], ~line])
    rounds, least = [], components._least_neighbour
    monkeypatch.setattr(components, "_least_neighbour", lambda *a: rounds.append(1) or least(*a))
    found = components.connected_components(torch.from_numpy(masks.copy()))
    assert np.array_equal(found.numpy(), np.stack([numbered(mask) for mask in masks]))
    assert len(rounds) < components._rounds(side, side) / 2


def test_components_of_nothing():
    assert components.connected_components(torch.ones(0, 3, 4, dtype=torch.bool)).shape == (0, 3, 4)
    nothing = torch.zeros(1, 2, 3, dtype=torch.bool)
    assert components.connected_components(nothing).flatten().tolist() == list(range(6))


def test_operator():
    mask = torch.rand(2, 9, 11, generator=generator()) < 0.5
    torch.library.opcheck(torch.ops.selftrain_seg.connected_components.default, (mask,))


def test_compiled():
    torch.compiler.reset()
    mask = torch.rand(2, 9, 11, generator=generator()) < 0.5
    compiled = torch.compile(components.connected_components, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(mask), components.connected_components(mask))
    torch.compiler.reset()
