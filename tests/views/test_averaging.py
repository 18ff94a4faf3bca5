import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selftrain_seg.views import WeakStrongViews, average_views, replay
from tests.oracles.views import average_by_loops
from tests.views.test_geometry import geometries, identity, of_image, parameters_of


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def probabilities(parameters, classes=4, seed=0, dtype=torch.float64):
    shape = (len(parameters.scaled), classes, *parameters.size)
    return torch.randn(shape, generator=generator(seed), dtype=dtype).softmax(1)


def test_by_hand():
    # 1 × 3: the whole image, and its last two pixels mirrored. The first pixel has one view, the others two.
    whole = identity((1, 3), batch=1)
    part = parameters_of((1, 3), (1, 2), [[1, 3]], [[0, 1]], [True])
    first = torch.tensor([0.5, 0.25, 1.0]).view(1, 1, 1, 3)
    second = torch.tensor([0.0, 0.75]).view(1, 1, 1, 2)  # mirrored: 0.75 belongs to the middle, 0 to the last pixel
    average, seen = average_views([torch.cat([p, 1 - p], 1) for p in (first, second)], [whole, part])
    assert average[0, 0].tolist() == [[0.5, 0.5, 0.5]]
    assert average[0, 1].tolist() == [[0.5, 0.5, 0.5]]
    assert seen.all()
    average, seen = average_views([torch.cat([second, 1 - second], 1)], [part])
    assert average[0].tolist() == [[[0.0, 0.75, 0.0]], [[0.0, 0.25, 1.0]]]
    assert seen.tolist() == [[[False, True, True]]]


@settings(max_examples=30, deadline=None)
@given(st.data(), st.sampled_from(["bilinear", "nearest"]))
def test_by_loops(data, mode):
    first = data.draw(geometries())
    others = [data.draw(geometries()) for _ in range(2)]
    # The others are of the same images: their windows lie in images scaled as they say.
    views = [first, *(other._replace(image_size=first.image_size) for other in others)]
    said = [probabilities(view, seed=number) for number, view in enumerate(views)]
    average, seen = average_views(said, views, mode=mode)
    for b in range(3):
        expected, where = average_by_loops(
            [(p[b].numpy(), *of_image(view, b)) for p, view in zip(said, views, strict=True)], first.image_size, mode
        )
        assert np.array_equal(seen[b].numpy(), where)
        np.testing.assert_allclose(average[b].numpy(), expected, rtol=0, atol=1e-14)


def test_what_was_seen_sums_to_one_and_all_else_is_zero():
    images = torch.rand(4, 3, 40, 60, generator=generator())
    make = WeakStrongViews((24, 24), scale=(0.8, 1.6))
    views = [make.draw(images, generator=generator(seed)) for seed in range(3)]
    average, seen = average_views([probabilities(view, dtype=torch.float32) for view in views], views)
    assert average.dtype == torch.float32
    total = average.sum(1)
    torch.testing.assert_close(total[seen], torch.ones(int(seen.sum())))
    assert (total[~seen] == 0).all()
    assert seen.any()
    assert not seen.all()


def test_one_view_and_equal_views_change_nothing():
    whole = identity((7, 9), batch=3)
    said = probabilities(whole, dtype=torch.float32)
    for count in (1, 2, 4):
        average, seen = average_views([said] * count, [whole] * count)
        assert torch.equal(average, said)
        assert seen.all()
    mirrored = whole._replace(flipped=torch.ones(3, dtype=torch.bool))
    average, _ = average_views([said, replay(said, mirrored)], [whole, mirrored])
    assert torch.equal(average, said)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    whole = identity((5, 6), batch=2)
    said = [probabilities(whole, seed=seed).to(dtype) for seed in range(5)]
    average, _ = average_views(said, [whole] * 5)
    assert average.dtype == torch.float32
    torch.testing.assert_close(average, torch.stack(said).float().mean(0))


def test_gradients_and_inputs():
    whole = identity((5, 6), batch=2)
    said = [probabilities(whole, seed=seed).requires_grad_() for seed in range(2)]
    before = [p.detach().clone() for p in said]
    average_views(said, [whole] * 2)[0].sum().backward()
    assert all(torch.equal(p.grad, torch.full_like(p, 0.5)) for p in said)
    assert all(torch.equal(p, old) for p, old in zip(said, before, strict=True))
    assert average_views([p.detach()[:0] for p in said], [identity((5, 6), batch=0)] * 2)[0].shape == (0, 4, 5, 6)


def test_compiled_equals_eager():
    torch.compiler.reset()
    images = torch.rand(2, 3, 20, 30, generator=generator())
    views = [WeakStrongViews((12, 12)).draw(images, generator=generator(seed)) for seed in range(2)]
    said = [probabilities(view, dtype=torch.float32) for view in views]
    compiled = torch.compile(average_views, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(compiled(said, views), average_views(said, views), strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.compiler.reset()


def test_raises():
    whole = identity((5, 6), batch=2)
    said = probabilities(whole)

    def fails(error, message, probs, parameters):
        with pytest.raises(error, match=message):
            average_views(probs, parameters)

    fails(ValueError, "`probs`: expected one view at least and as many as `parameters`, got 0 and 0", [], [])
    fails(ValueError, "`probs`: expected .* got 1 and 2", [said], [whole, whole])
    fails(TypeError, "`probs`: expected a list with an entry for each view, got Tensor", said, [whole])
    fails(TypeError, "`parameters`: expected a list with an entry for each view, got ViewParameters", [said], whole)
    fails(TypeError, r"`parameters\[1\]`: expected ViewParameters, got int", [said] * 2, [whole, 3])
    fails(TypeError, r"`probs\[1\]`: expected a floating-point dtype", [said, said.long()], [whole] * 2)
    fails(ValueError, r"`probs\[1\]`: expected \(B, C\) = \(2, 4\) as of the", [said, said[:, :3]], [whole] * 2)
    other = identity((5, 7), batch=2)
    fails(ValueError, r"`parameters\[1\]`: expected an image size of \(5, 6\)", [said, said], [whole, other])
    fails(ValueError, r"`tensor`: expected .* = \(2, …, 5, 6\), got \(2, 4, 5, 5\)", [said[..., :5]], [whole])
