import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from selftrain_seg import value_checks
from selftrain_seg.views import StrongSettings, WeakStrongViews, replay, replay_inverse
from tests.helpers import never_waits
from tests.oracles.views import strong_by_loops

NEVER = StrongSettings(jitter_chance=0.0, grey_chance=0.0, blur_chance=0.0, cut_out_chance=0.0)
ALWAYS = StrongSettings(jitter_chance=1.0, grey_chance=1.0, blur_chance=1.0, cut_out_chance=1.0)
EACH = {
    "jitter": NEVER._replace(jitter_chance=1.0),
    "grey": NEVER._replace(grey_chance=1.0),
    "blur": NEVER._replace(blur_chance=1.0, blur_sigma_px=(0.5, 2.0)),
    "cut_out": NEVER._replace(cut_out_chance=1.0),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(batch=3, height=24, width=31, seed=0, dtype=torch.float32):
    return torch.rand(batch, 3, height, width, generator=generator(seed), dtype=dtype)


def drawn(views, batch=4000, size=(20, 30), seed=0):
    """Parameters of many images, which need no memory."""
    return views.draw(torch.zeros(1, 1, 1, 1).expand(batch, 3, *size), generator=generator(seed))


def uniform(values, low, high):
    assert low <= values.min()
    assert values.max() <= high
    return stats.kstest(values.double().numpy(), "uniform", (low, high - low)).pvalue > 1e-3


def share(flags, chance):
    return stats.binomtest(int(flags.sum()), len(flags), chance).pvalue > 1e-3


# Weak views


def test_the_weak_view_is_the_replay_of_the_images():
    images, views = pictures(), WeakStrongViews((17, 20), fill=0.25)
    weak, _, parameters = views(images, generator=generator(1))
    assert torch.equal(weak, replay(images, parameters, fill=0.25))
    assert weak.shape == (3, 3, 17, 20)


@settings(max_examples=40, deadline=None)
@given(*(st.integers(1, 15),) * 4, st.integers(0, 10**6))
def test_replay_of_labels_is_the_view_of_labels(height, width, h, w, seed):
    labels = torch.randint(0, 19, (3, height, width), generator=generator(seed))
    images = labels[:, None].expand(-1, 3, -1, -1).double()
    # Whole-number scales put nearest and bilinear apart; at scale 1 the view of the picture of the labels is exact.
    views = WeakStrongViews((h, w), scale=(1.0, 1.0), strong=NEVER, fill=255)
    weak, strong, parameters = views(images, generator=generator(seed))
    assert torch.equal(weak[:, 1].long(), replay(labels, parameters))
    assert torch.equal(strong, weak)
    # At any scale a pixel of the view whose neighbourhood has one label shows that label.
    views = WeakStrongViews((h, w), strong=NEVER, fill=255)
    weak, _, parameters = views(images, generator=generator(seed))
    replayed = replay(labels, parameters)
    one_hot = torch.nn.functional.one_hot(labels, 19).permute(0, 3, 1, 2).float()
    probs = replay(one_hot, parameters)
    pure = probs.amax(1) > 1 - 1e-6
    assert torch.equal(probs.argmax(1)[pure], replayed[pure])
    torch.testing.assert_close(weak[:, 0][pure], replayed[pure].double())
    # And back: the labels on the valid mask, from scale 1 up.
    restored, valid = replay_inverse(replayed, parameters)
    large = (parameters.scaled >= torch.tensor([height, width])).all(1)
    assert torch.equal(restored[large][valid[large]], labels[large][valid[large]])
    assert (restored[~valid] == 255).all()


def test_whole_image_as_it_is():
    images = pictures()
    views = WeakStrongViews((24, 31), scale=(1.0, 1.0), flip_chance=0.0, strong=NEVER)
    weak, strong, parameters = views(images)
    assert torch.equal(weak, images)
    assert torch.equal(strong, images)
    assert replay_inverse(weak, parameters)[1].all()


def test_weak_parameters_follow_the_law():
    parameters = drawn(WeakStrongViews((10, 12), scale=(0.5, 2.0), flip_chance=0.3), size=(200, 3000))
    assert parameters.image_size == (200, 3000)
    assert parameters.size == (10, 12)
    scale = parameters.scaled / torch.tensor([200, 3000])
    assert uniform(scale[:, 1], 0.5, 2.0)
    assert (scale[:, 0] - scale[:, 1]).abs().max() <= 0.5 / 200 + 0.5 / 3000 + 1e-6  # each rounded to the nearest
    assert share(parameters.flipped, 0.3)
    # Corners: uniform over the places inside. Share of the way, blurred by less than one place in 88.
    free = parameters.scaled - torch.tensor([10, 12])
    assert (parameters.corner >= 0).all()
    assert (parameters.corner <= free).all()
    for dim in (0, 1):
        jittered = parameters.corner[:, dim] + torch.rand(4000, generator=generator(9))
        assert uniform(jittered / (free[:, dim] + 1), 0.0, 1.0)
    assert abs(stats.pearsonr(parameters.corner[:, 0] / free[:, 0], parameters.corner[:, 1] / free[:, 1])[0]) < 0.06


def test_flips_and_turns_follow_the_law_and_change_nothing_else():
    views = WeakStrongViews((10, 30), vertical_flip_chance=0.3, quarter_turns=True)
    parameters, without = drawn(views, size=(200, 3000)), drawn(WeakStrongViews((10, 30)), size=(200, 3000))
    assert share(parameters.vertically_flipped, 0.3)
    assert stats.chisquare(torch.bincount(parameters.quarter_turns, minlength=4).numpy()).pvalue > 1e-3
    assert not without.vertically_flipped.any()
    assert not without.quarter_turns.any()
    for name in ("scaled", "flipped", "jitter", "grey", "blur_sigma_px", "cut_out"):
        assert torch.equal(getattr(parameters, name), getattr(without, name)), name
    turned = parameters.quarter_turns % 2 == 1
    window = torch.where(turned[:, None], torch.tensor([30, 10]), torch.tensor([10, 30]))
    free = parameters.scaled - window
    assert (parameters.corner <= free).all()  # a turned window lies inside, too
    for dim in (0, 1):
        jittered = parameters.corner[:, dim] + torch.rand(4000, generator=generator(9))
        assert uniform(jittered / (free[:, dim] + 1), 0.0, 1.0)


@pytest.mark.parametrize("size", [(16, 16), (11, 18)])
def test_turned_views_of_images_and_labels_fit_to_the_pixel_and_go_back(size):
    views = WeakStrongViews(
        size, scale=(1.0, 1.0), vertical_flip_chance=0.5, quarter_turns=True, strong=NEVER, fill=255
    )
    labels = torch.randint(0, 19, (40, 24, 31), generator=generator())
    images = labels[:, None].expand(-1, 3, -1, -1).float()
    weak, strong, parameters = views(images, generator=generator(1))
    assert len(set(zip(*(part.tolist() for part in parameters[4:7]), strict=True))) > 10  # of sixteen
    view = replay(labels, parameters)
    assert torch.equal(weak[:, 0].long(), view)
    assert torch.equal(strong, weak)
    restored, valid = replay_inverse(view, parameters)
    assert torch.equal(restored[valid], labels[valid])
    assert (valid.flatten(1).sum(1) == size[0] * size[1]).all()


def test_values_that_jitter_would_clip_are_refused():
    """Normalised and 8-bit images were clipped, and every strong view was of three colours."""
    images = pictures()
    for wrong in ((images - 0.45) / 0.22, images * 255, images.masked_fill(images > 0.999 * images.max(), math.nan)):
        views = WeakStrongViews((12, 12))
        strong = views(wrong).strong  # a look at values would make the host wait
        assert bool(strong.isnan().any()) == bool(wrong.isnan().any())
        with (
            value_checks(),
            pytest.raises(ValueError, match=r"`images`: expected RGB in \[0, 1\], as jitter clips"),
        ):
            views(wrong)
        parameters = WeakStrongViews((24, 31), strong=EACH["jitter"]).draw(wrong)
        with value_checks(), pytest.raises(ValueError, match=r"`weak`: expected RGB in \[0, 1\]"):
            views.strong(wrong, parameters)
    with value_checks():
        for fine in (images, images.bfloat16(), images[:0], images.round()):
            WeakStrongViews((12, 12))(fine)
        wrong = (images - 0.45) / 0.22
        _, strong, _ = WeakStrongViews((12, 12), scale=(1, 1), strong=EACH["blur"])(wrong)
        assert strong.min() < -0.5  # nothing is clipped where nothing is jittered
        with pytest.raises(ValueError, match=r"`weak`: expected RGB in \[0, 1\], as jitter clips .*got -9"):
            WeakStrongViews((90, 90), strong=EACH["jitter"], fill=-9.0)(images)


def test_a_blur_wider_than_the_window_is_refused():
    views, images = WeakStrongViews((24, 31), strong=EACH["blur"]), pictures()
    wide = views.draw(images)._replace(blur_sigma_px=torch.full((3,), 50.0))
    with value_checks(), pytest.raises(ValueError, match=r"`parameters.blur_sigma_px`: expected at most 2, .*got 50"):
        views.strong(images, wide)


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_other_channels_than_three_keep_their_colours(channels):
    images = torch.randn(3, channels, 24, 31, generator=generator())
    views = WeakStrongViews((12, 14), strong=ALWAYS._replace(cut_out_chance=0.0, blur_chance=0.0))
    with value_checks():
        weak, strong, _ = views(images, generator=generator(1))
    assert weak.shape == (3, channels, 12, 14)
    assert torch.equal(strong, weak)
    _, strong, parameters = WeakStrongViews((12, 14), strong=ALWAYS)(images, generator=generator(1))
    three = images[:, :1].expand(-1, 3, -1, -1)
    plain = parameters._replace(jitter=torch.tensor([1.0, 1.0, 1.0, 0.0]).expand(3, -1), grey=torch.zeros(3).bool())
    expected = WeakStrongViews((12, 14), strong=ALWAYS)(three, parameters=plain).strong  # blurred and cut out
    assert torch.equal(strong[:, :1], expected[:, :1])


def test_small_images_are_padded_at_the_bottom_and_on_the_right():
    parameters = drawn(WeakStrongViews((50, 70), scale=(0.5, 1.0)), size=(20, 30))
    assert (parameters.corner == 0).all()
    corners = WeakStrongViews((2, 2), scale=(1.0, 1.0)).draw(pictures(2000, 2, 4), generator=generator()).corner
    assert (corners[:, 0] == 0).all()
    assert stats.chisquare(torch.bincount(corners[:, 1], minlength=3).numpy()).pvalue > 1e-3
    views = WeakStrongViews((40, 40), scale=(0.01, 0.01), fill=0.5)  # at least one pixel is left
    weak, _, parameters = views(torch.ones(2, 3, 20, 30))
    assert (parameters.scaled == 1).all()
    assert (weak == 1).sum((1, 2, 3)).tolist() == [3, 3]
    assert (weak == 0.5).sum((1, 2, 3)).tolist() == [3 * 1599] * 2


# Strong views


def test_strong_parameters_follow_the_law():
    parameters = drawn(WeakStrongViews((40, 60)))
    jittered = (parameters.jitter != torch.tensor([1.0, 1.0, 1.0, 0.0])).any(1)
    assert share(jittered, 0.8)
    for k in range(3):
        assert uniform(parameters.jitter[jittered, k], 0.5, 1.5)
    assert uniform(parameters.jitter[jittered, 3], -0.25, 0.25)
    assert share(parameters.grey, 0.2)
    blurred = parameters.blur_sigma_px > 0
    assert share(blurred, 0.5)
    assert uniform(parameters.blur_sigma_px[blurred], 0.1, 2.0)
    wide = drawn(WeakStrongViews((40, 60), strong=StrongSettings(jitter=(2.0, 0.0, 0.0, 0.5), jitter_chance=1.0)))
    assert uniform(wide.jitter[:, 0], 0.0, 3.0)  # no factor below 0
    assert (wide.jitter[:, 1:3] == 1).all()


def test_cut_out_follows_the_law():
    parameters = drawn(WeakStrongViews((400, 300)), batch=3000)
    masks = parameters.cut_out
    rows, columns = masks.any(2), masks.any(1)
    assert torch.equal(masks, rows[:, :, None] & columns[:, None, :])
    some = masks.flatten(1).any(1)
    assert share(some, 0.5)
    height, width = rows[some].sum(1), columns[some].sum(1)
    top, left = rows[some].byte().argmax(1), columns[some].byte().argmax(1)
    assert (rows.byte().diff(dim=1) == 1).sum(1).max() <= 1  # one run
    fits = (height < 400) & (width < 300)  # those that are not cut to the view
    area = height * width / (400 * 300)
    assert area.min() > 0.019
    assert area.max() < 0.405
    aspect = (height / width)[fits]
    assert aspect.min() > 0.29
    assert aspect.max() < 1 / 0.29
    free = 400 - height[fits] + 1
    assert uniform((top[fits] + torch.rand(int(fits.sum()), generator=generator(3))) / free, 0.0, 1.0)
    free = 300 - width[fits] + 1
    assert uniform((left[fits] + torch.rand(int(fits.sum()), generator=generator(4))) / free, 0.0, 1.0)


def test_area_of_the_cut_out_is_uniform():
    settings_ = NEVER._replace(cut_out_area=(0.05, 0.25), cut_out_chance=1.0)  # in a square these always fit
    masks = drawn(WeakStrongViews((300, 300), strong=settings_), batch=1500).cut_out
    assert uniform(masks.float().mean((1, 2)).clamp(0.05, 0.25), 0.05, 0.25)
    aspect = masks.any(2).sum(1).double().log() - masks.any(1).sum(1).double().log()
    assert uniform(aspect.clamp(math.log(0.3), -math.log(0.3)), math.log(0.3), -math.log(0.3))


@pytest.mark.parametrize("name", [*EACH, "all"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_strong_by_loops(name, dtype):
    weak = pictures(4, 13, 17, dtype=torch.float64).to(dtype)
    settings_ = EACH.get(name, StrongSettings(*ALWAYS[:2], 0.5, *ALWAYS[3:]))
    views = WeakStrongViews((13, 17), strong=settings_, fill=0.25)
    parameters = views.draw(weak, generator=generator(2))
    strong = views.strong(weak, parameters)
    assert strong.dtype == dtype
    for b in range(4):
        expected = strong_by_loops(
            weak[b].double().numpy(),
            parameters.jitter[b].tolist(),
            bool(parameters.grey[b]),
            float(parameters.blur_sigma_px[b]),
            parameters.cut_out[b].numpy(),
            0.25,
        )
        # The library's window ends at three sigma or more: 0.3 % of the weight. Parameters are float32.
        tolerance = {torch.float64: 1e-6, torch.float32: 2e-6, torch.bfloat16: 4e-3}[dtype] + (
            5e-3 if name in ("blur", "all") else 0
        )
        np.testing.assert_allclose(strong[b].double().numpy(), expected, rtol=0, atol=tolerance)


def test_blur_of_one_point():
    # A point of light becomes the Gaussian, here of the largest sigma, in a window of 13.
    weak = torch.zeros(1, 3, 31, 31, dtype=torch.float64)
    weak[:, :, 15, 15] = 1
    views = WeakStrongViews((31, 31), strong=NEVER)
    parameters = views.draw(weak)._replace(blur_sigma_px=torch.tensor([2.0]))
    x = np.arange(-15, 16)
    line = np.where(abs(x) <= 6, np.exp(-(x**2) / 8), 0)
    line /= line.sum()
    expected = np.outer(line, line)
    np.testing.assert_allclose(views.strong(weak, parameters)[0, 0].numpy(), expected, atol=1e-12)


def test_autocast_changes_nothing():
    images, views = pictures(), WeakStrongViews((16, 18), strong=ALWAYS)
    parameters = views.draw(images, generator=generator())
    expected = views(images, parameters=parameters)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = views(images, parameters=parameters)
    assert torch.equal(made.weak, expected.weak)
    assert torch.equal(made.strong, expected.strong)


def test_each_part_is_its_own():
    images = pictures(40)
    for name, settings_ in EACH.items():
        weak, strong, parameters = WeakStrongViews((20, 20), strong=settings_)(images, generator=generator())
        changed = (weak != strong).flatten(1).any(1)
        assert changed.all(), name
        parts = {
            "jitter": (parameters.jitter != torch.tensor([1.0, 1.0, 1.0, 0.0])).any(1),
            "grey": parameters.grey,
            "blur": parameters.blur_sigma_px > 0,
            "cut_out": parameters.cut_out.flatten(1).any(1),
        }
        assert {part for part, flags in parts.items() if flags.any()} == {name}


def test_images_left_alone_are_bit_for_bit():
    images = pictures(64, 8, 8) * 3 - 1  # outside [0, 1] too
    weak, strong, parameters = WeakStrongViews((8, 8))(images, generator=generator())
    touched = (
        (parameters.jitter != torch.tensor([1.0, 1.0, 1.0, 0.0])).any(1)
        | parameters.grey
        | (parameters.blur_sigma_px > 0)
        | parameters.cut_out.flatten(1).any(1)
    )
    assert 0 < (~touched).sum() < 64
    assert torch.equal(weak[~touched], strong[~touched])
    half = WeakStrongViews((8, 8), strong=NEVER)(images.bfloat16())
    assert torch.equal(half.weak, half.strong)


def test_cut_out_is_what_it_says():
    weak, strong, parameters = WeakStrongViews((24, 31), strong=EACH["cut_out"], fill=-9.0)(pictures() + 1)
    mask = parameters.cut_out[:, None].expand_as(weak)
    assert (strong[mask] == -9).all()
    assert torch.equal(strong[~mask], weak[~mask])


def test_a_second_strong_view_of_the_same_weak_view():
    images, views = pictures(), WeakStrongViews((20, 20), strong=ALWAYS)
    first = views(images, generator=generator(1))
    second = views.draw(images, generator=generator(2))
    strong = views.strong(first.weak, second)
    assert not torch.equal(strong, first.strong)
    assert torch.equal((strong == 0).all(1) & second.cut_out, second.cut_out)


def test_images_are_drawn_independently():
    parameters = drawn(WeakStrongViews((10, 10), strong=ALWAYS), batch=50, size=(400, 500))
    for field in (
        parameters.scaled,
        parameters.corner,
        parameters.jitter,
        parameters.blur_sigma_px,
        parameters.cut_out,
    ):
        assert len(field.flatten(1 if field.ndim > 1 else 0).unique(dim=0)) > 40


def test_parameters_are_independent_of_each_other():
    settings_ = StrongSettings(jitter_chance=0.5, grey_chance=0.5, cut_out_area=(0.02, 0.2))  # boxes that always fit
    p = drawn(WeakStrongViews((60, 80), strong=settings_), size=(600, 800))
    free = p.scaled - torch.tensor([60, 80]) + 1
    jittered, blurred, box = p.jitter[:, 3] != 0, p.blur_sigma_px > 0, p.cut_out.flatten(1).any(1)
    rows, columns = p.cut_out.any(2), p.cut_out.any(1)
    sides = torch.stack([rows.sum(1), columns.sum(1)], 1)
    start = torch.stack([rows.byte().argmax(1), columns.byte().argmax(1)], 1)
    start = (start + torch.rand(start.shape, generator=generator(7))) / (torch.tensor([60, 80]) - sides + 1)

    def where(drawn, values):
        return torch.where(drawn[:, None], values.double(), math.nan)

    area_and_aspect = torch.stack([sides.prod(1), (sides[:, 0] / sides[:, 1]).log()], 1)
    values = torch.column_stack(
        [
            p.scaled[:, 1],
            p.corner / free,
            torch.stack([p.flipped, jittered, p.grey, blurred, box], 1),
            where(jittered, p.jitter),
            where(blurred, p.blur_sigma_px[:, None]),
            where(box, area_and_aspect),
            where(box, start),
        ]
    )
    compared = 0
    for one in range(values.shape[1]):
        for other in range(one):
            pair = values[:, [one, other]]
            pair = pair[~pair.isnan().any(1)]
            if pair.std(0).min() > 0:  # a value and whether it was drawn say nothing together
                compared += 1
                assert torch.corrcoef(pair.T)[0, 1].abs() * len(pair) ** 0.5 < 5, (one, other)
    assert compared == 17 * 16 // 2 - 9


@pytest.mark.parametrize("place", range(4))
def test_each_kind_of_jitter_is_applied_alone(place):
    images = pictures(8)
    jitter = tuple(0.5 if k == place else 0.0 for k in range(4))
    views = WeakStrongViews((20, 20), strong=NEVER._replace(jitter=jitter, jitter_chance=1.0))
    weak, strong, parameters = views(images, generator=generator())
    neutral = torch.tensor([1.0, 1.0, 1.0, 0.0])
    assert ((parameters.jitter != neutral).any(0) == torch.tensor([k == place for k in range(4)])).all()
    assert (weak != strong).flatten(1).any(1).all()


# Both


def test_generator_reproduces_and_leaves_the_global_state_alone():
    images, views = pictures(), WeakStrongViews((20, 20))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = views(images, generator=generator(5))
    assert torch.equal(torch.get_rng_state(), state)

    def same(one, other):
        return all(torch.equal(one[k], other[k]) for k in range(2))

    assert same(first, views(images, generator=generator(5)))
    assert not same(first, views(images, generator=generator(6)))
    assert same(first, views(images, parameters=first.parameters))
    assert torch.equal(torch.get_rng_state(), state)
    one = generator(5)
    assert same(first, views(images, generator=one))
    assert not same(first, views(images, generator=one))
    default = views(images)
    torch.manual_seed(1)
    assert same(default, views(images))
    assert not torch.equal(torch.get_rng_state(), state)


def test_every_argument_counts():
    images = pictures()
    usual = WeakStrongViews((20, 20))(images, generator=generator())
    for change in (
        {"scale": (1.0, 1.5)},
        {"flip_chance": 1.0},
        {"fill": 0.5},
        {"vertical_flip_chance": 1.0},
        {"quarter_turns": True},
    ):
        other = WeakStrongViews((20, 20), **change)(images, generator=generator())
        assert not torch.equal(other.weak, usual.weak), change
    for field, value in {
        "jitter": (0.1, 0.1, 0.1, 0.1),
        "jitter_chance": 0.1,
        "grey_chance": 1.0,
        "blur_sigma_px": (3.0, 4.0),
        "blur_chance": 1.0,
        "cut_out_area": (0.5, 0.6),
        "cut_out_chance": 1.0,
    }.items():
        changed = StrongSettings()._replace(**{field: value})
        other = WeakStrongViews((20, 20), strong=changed)(images, generator=generator())
        assert torch.equal(other.weak, usual.weak)
        assert not torch.equal(other.strong, usual.strong), field


def test_layouts_no_images_and_inputs_not_changed():
    images, views = pictures(), WeakStrongViews((20, 21), strong=ALWAYS)
    before, last = images.clone(), images.contiguous(memory_format=torch.channels_last)
    expected, out = views(images, generator=generator()), views(last, generator=generator())
    assert torch.equal(images, before)
    for ours, theirs in zip(out[:2], expected[:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        assert ours.is_contiguous(memory_format=torch.channels_last)
        assert theirs.is_contiguous()
    weak, strong, parameters = views(images[:0], generator=generator())
    assert weak.shape == strong.shape == (0, 3, 20, 21)
    assert parameters.cut_out.shape == (0, 20, 21)
    kept = [part.clone() for part in parameters[2:]]
    views.strong(weak, parameters)
    assert all(torch.equal(*pair) for pair in zip(kept, parameters[2:], strict=True))


def test_views_of_one_pixel():
    weak, strong, parameters = WeakStrongViews((1, 1), strong=ALWAYS)(pictures(3, 1, 1), generator=generator())
    assert weak.shape == strong.shape == (3, 3, 1, 1)
    assert parameters.cut_out.all()


def test_it_is_a_module_without_state():
    views = WeakStrongViews((20, 24), fill=0.5)
    assert views.state_dict() == {}
    assert "size=(20, 24), scale=(0.5, 2.0), flip_chance=0.5" in repr(views)
    assert "cut_out_chance=0.5" in repr(views)


def test_import_is_cheap():
    code = "import sys, selftrain_seg.views\nprint([m for m in ('kornia', 'torchvision') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.strip() == "[]"


def test_bad_settings():
    def fails(error, message, size=(4, 4), **arguments):
        with pytest.raises(error, match=message):
            WeakStrongViews(size, **arguments)

    for size in (3, (3,), (3, 3, 3), None):
        fails(ValueError, r"`size`: expected \(height, width\)", size=size)
    fails(ValueError, r"`size\[0\]`: expected at least 1, got 0", size=(0, 2))
    fails(TypeError, r"`size\[1\]`: expected an int, got float", size=(2, 2.0))
    for scale in (1.0, (1.0,), (1, 2, 3)):
        fails(ValueError, r"`scale`: expected \(low, high\)", scale=scale)
    fails(ValueError, r"`scale\[0\]`: expected a value in \(0.0, 100.0\], got 0", scale=(0, 1))
    fails(ValueError, r"`scale\[1\]`: expected a value in \[1.0, 100.0\], got 0.5", scale=(1.0, 0.5))
    fails(ValueError, r"`scale\[1\]`: expected a value in \[1.0, 100.0\], got inf", scale=(1.0, math.inf))
    fails(TypeError, r"`scale\[1\]`: expected a number, got str", scale=(1.0, "2"))
    fails(ValueError, r"`flip_chance`: expected a value in \[0.0, 1.0\], got 1.1", flip_chance=1.1)
    fails(TypeError, "`fill`: expected a number, got str", fill="0")
    fails(ValueError, "`vertical_flip_chance`: expected a value", vertical_flip_chance=1.5)
    fails(TypeError, "`quarter_turns`: expected a bool, got int", quarter_turns=1)
    fails(ValueError, "`fill`: expected a value", fill=math.nan)
    fails(TypeError, "`strong`: expected StrongSettings, got tuple", strong=tuple(StrongSettings()))

    def strong_fails(error, message, **change):
        fails(error, message, strong=StrongSettings(**change))

    strong_fails(ValueError, r"`strong.jitter`: expected four numbers", jitter=(0.5, 0.5, 0.5))
    strong_fails(ValueError, r"`strong.jitter\[1\]`: expected a value in", jitter=(0.5, -0.5, 0.5, 0.1))
    strong_fails(ValueError, r"`strong.jitter\[3\]`: expected a value in \[0.0, 0.5\]", jitter=(0.5, 0.5, 0.5, 0.6))
    strong_fails(TypeError, r"`strong.jitter\[0\]`: expected a number", jitter=("a", 0.5, 0.5, 0.6))
    for name in ("jitter_chance", "grey_chance", "blur_chance", "cut_out_chance"):
        strong_fails(ValueError, rf"`strong.{name}`: expected a value in \[0.0, 1.0\]", **{name: -0.1})
        strong_fails(TypeError, rf"`strong.{name}`: expected a number", **{name: None})
    strong_fails(ValueError, r"`strong.blur_sigma_px\[0\]`: expected a value", blur_sigma_px=(-1.0, 1.0))
    strong_fails(ValueError, r"`strong.blur_sigma_px\[1\]`: expected a value", blur_sigma_px=(2.0, 1.0))
    strong_fails(ValueError, r"`strong.cut_out_area`: expected \(low, high\)", cut_out_area=0.5)
    strong_fails(ValueError, r"`strong.cut_out_area\[1\]`: expected a value in \[0.5, 1.0\]", cut_out_area=(0.5, 1.5))


def test_bad_images():
    views, images = WeakStrongViews((4, 4)), pictures()
    parameters = views.draw(images)
    for call in (views, views.draw, lambda weak: views.strong(weak, parameters)):
        with pytest.raises(TypeError, match=r"expected a floating-point dtype, got torch.uint8; divide 8-bit"):
            call(images.byte())
        with pytest.raises(TypeError, match=r"expected a torch.Tensor, got list"):
            call([images])
        with pytest.raises(ValueError, match=r"expected \(B, D, H, W\)"):
            call(images[0])
        for shape in ((2, 0, 4, 4), (2, 3, 0, 4)):
            with pytest.raises(ValueError, match=r"expected \(B, D, H, W\) with at least one pixel, got"):
                call(torch.zeros(shape))
    for call in (views, views.draw):
        with pytest.raises(ValueError, match="`generator`: expected device meta, got cpu"):
            call(images.to("meta"), generator=generator())
    for other in (images[:2], pictures(3, 23, 31)):
        with pytest.raises(ValueError, match=r"`tensor`: expected \(B, …, H, W\) = \(3, …, 24, 31\)"):
            views(other, parameters=parameters)
    with pytest.raises(ValueError, match="`tensor`: expected device cpu, got meta"):
        views(images.to("meta"), parameters=parameters)
    with pytest.raises(TypeError, match="`parameters`: expected ViewParameters, got dict"):
        views(images, parameters={})
    with pytest.raises(TypeError, match="`parameters`: expected ViewParameters, got dict"):
        views.strong(images, {})
    with pytest.raises(
        ValueError, match=r"`parameters.cut_out`: expected \(B, H, W\) = \(3, 24, 31\), got \(3, 4, 4\)"
    ):
        views.strong(images, parameters)
    with pytest.raises(ValueError, match=r"`parameters.cut_out`: expected device meta, got cpu"):
        views.strong(torch.zeros(3, 3, 4, 4, device="meta"), parameters)


def test_drawing_and_the_weak_view_trace_to_one_graph():
    views, images = WeakStrongViews((9, 10)), pictures()

    def weak_view(images):
        parameters = views.draw(images)
        return replay(images, parameters), parameters.cut_out, parameters.jitter

    torch.compiler.reset()
    compiled = torch.compile(weak_view, fullgraph=True, backend="aot_eager")
    torch.manual_seed(3)
    expected = weak_view(images)
    torch.manual_seed(3)
    for ours, theirs in zip(compiled(images), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.compiler.reset()


@pytest.mark.gpu
def test_cuda_never_waits():
    images, labels = pictures(8, 64, 80).cuda(), torch.randint(0, 19, (8, 64, 80)).cuda()
    views, source = WeakStrongViews((48, 50), strong=ALWAYS), torch.Generator("cuda").manual_seed(0)
    views(images, generator=source)  # first launches may allocate
    with never_waits():
        weak, strong, parameters = views(images, generator=source)
        view = replay(labels, parameters)
        restored, valid = replay_inverse(view, parameters)
    here = parameters._replace(**{name: getattr(parameters, name).cpu() for name in parameters._fields[2:]})
    assert torch.equal(view.cpu(), replay(labels.cpu(), here))
    for ours, theirs in zip((restored, valid), replay_inverse(view.cpu(), here), strict=True):
        assert torch.equal(ours.cpu(), theirs)
    expected = views(images.cpu(), parameters=here)
    torch.testing.assert_close(weak.cpu(), expected.weak, rtol=0, atol=1e-5)
    torch.testing.assert_close(strong.cpu(), expected.strong, rtol=0, atol=1e-4)
