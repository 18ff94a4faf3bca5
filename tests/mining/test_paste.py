import numpy as np
import pytest
import torch
from scipy import stats

from selftrain_seg.mining import paste_classes
from tests.oracles import mixing as oracle


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# 12 × 14. Class 1: regions of 4 (touching at a corner), 5 and 1 pixels; class 2: 4 pixels touching those 5 of class 1,
# and 4 alone; class 3: 2 pixels; class 4: 2 × 2.
SCENE = torch.zeros(12, 14, dtype=torch.long)
SCENE[0:2, 0:2] = torch.tensor([[1, 1], [0, 1]])
SCENE[2, 2] = 1
SCENE[5, 3:8] = 1
SCENE[6, 4:8] = 2
SCENE[11, 0] = 1
SCENE[10, 9:13] = 2
SCENE[3, 12:14] = 3
SCENE[7:9, 11:13] = 4
SCENE[0, 13] = 255
WEIGHT = torch.tensor([0.0, 2.0, 1.0, 5.0, 0.5])


def paste(count=1, scene=SCENE, weight=WEIGHT, target=0, **keywords):
    """The scene as the source of ``count`` images all of one label; the source images hold the pixels' numbers."""
    source = torch.arange(scene.numel(), dtype=torch.float64).view(1, 1, *scene.shape).expand(count, -1, -1, -1)
    labels = torch.full((count, *scene.shape), target)
    keywords = {"min_pixels": 3, "min_class_pixels": 4, "generator": generator(), **keywords}
    return paste_classes(
        torch.full(source.shape, -1.0, dtype=torch.float64),
        labels,
        weight,
        source=(source, scene.expand(count, -1, -1)),
        **keywords,
    )


def pasted_pixels(mixed, width=14):
    """Of each image {where: from where} of the pixels that were pasted at scale 1, by the numbers of the source's."""
    for image, pasted in zip(mixed.images[:, 0].long(), mixed.pasted, strict=True):
        yield {(int(i), int(j)): divmod(int(image[i, j]), width) for i, j in pasted.nonzero()}


def moves(found, region):
    """By how far the region's pixels that are seen were moved."""
    return {(i - a, j - b) for (i, j), (a, b) in found.items() if (a, b) in region}


@pytest.mark.parametrize("companions", [{}, {1: [2]}, {2: (1,)}, {1: [2], 2: [1, 4]}])
def test_all_regions_of_the_drawn_class_by_the_law(companions):
    count = 1500
    mixed = paste(count, companions=companions, scale=(1, 1))
    law = oracle.paste_regions(SCENE.numpy(), WEIGHT.tolist(), companions, 4, 3)
    assert sorted(law) == [1, 2, 4]
    drawn, overlapped = dict.fromkeys(law, 0), 0
    for found, labels in zip(pasted_pixels(mixed), mixed.labels, strict=True):
        fits = []
        for c, (_, regions) in law.items():
            shown = [moves(found, set(region)) for region in regions]
            # Each region is at one place; one that is not seen at all lies below another.
            if all(len(each) <= 1 for each in shown) and set(found.values()) <= {p for r in regions for p in r}:
                placed = [(r, next(iter(each))) for r, each in zip(regions, shown, strict=True) if each]
                whole = oracle.laid_over((12, 14), placed)
                seen = {(i, j): w[1] for i, row in enumerate(whole) for j, w in enumerate(row) if w is not None}
                hidden = len(regions) - len(placed)
                if seen == found and (not hidden or len(placed) > 0):
                    fits.append(c)
                    overlapped += hidden > 0 or len(seen) < sum(len(region) for region in regions)
        assert fits, found
        # With companions two classes may have a region in common, but not all of them.
        drawn[max(fits, key=lambda c: sum(len(r) for r in law[c][1]))] += 1
        for here, there in found.items():
            assert labels[here] == SCENE[there]
    expected = [count * law[c][0] for c in drawn]
    assert stats.chisquare(list(drawn.values()), expected).pvalue > 1e-3
    assert overlapped > 20


def test_companions_come_along_one_way():
    only = {c: torch.nn.functional.one_hot(torch.tensor(c), 5).float() for c in (1, 2)}
    for found in pasted_pixels(paste(200, companions={1: [2]}, scale=(1, 1), weight=only[1])):
        taken = [int(SCENE[there]) for there in found.values()]
        assert taken.count(2) in range(1, 5)  # the 4 pixels below the 5 of class 1; some may be covered
        assert all(there[0] != 10 for there in found.values())  # never those of class 2 alone
    for found in pasted_pixels(paste(200, companions={1: [2]}, scale=(1, 1), weight=only[2])):
        assert {int(SCENE[there]) for there in found.values()} == {2}
        assert len({there[0] for there in found.values()} | {6, 10}) == 2


def test_which_donors_and_which_regions():
    scene = torch.zeros(12, 14, dtype=torch.long)
    scene[0, 0:4], scene[2, 0:3], scene[4, 0:2] = 1, 1, 1  # 9 pixels
    one = torch.tensor([0.0, 1.0])
    assert not paste(50, scene, one, scale=(1, 1), min_class_pixels=10, min_pixels=1).pasted.any()
    for least, rows in ((1, {0, 2, 4}), (3, {0, 2}), (4, {0}), (5, set())):
        mixed = paste(50, scene, one, scale=(1, 1), min_class_pixels=9, min_pixels=least)
        taken = [{there[0] for there in found.values()} for found in pasted_pixels(mixed)]
        assert set().union(*taken) == rows
        assert rows in taken


def test_what_does_not_fit_is_left_out():
    scene = torch.zeros(12, 14, dtype=torch.long)
    scene[0:5, 0:5] = 1
    scene[8, 8:11] = 1
    one = torch.tensor([0.0, 1.0])
    mixed = paste(50, scene, one, scale=(2.5, 2.5))  # 12 × 12 (12.5 to even) and 2 × 8
    assert (mixed.pasted.flatten(1).sum(1) >= 144).all()
    mixed = paste(50, scene, one, scale=(2.6, 2.6))  # 13 × 13 is too high; 3 × 8
    assert (mixed.pasted.flatten(1).sum(1) == 24).all()
    assert not paste(50, scene, one, scale=(5, 5)).pasted.any()  # 15 wide
    assert not paste(50, scene, one, scale=(30, 40)).pasted.any()


@pytest.mark.parametrize("most", [1, 2, 3, 4])
def test_of_many_regions_each_is_as_likely(most):
    scene = torch.zeros(12, 14, dtype=torch.long)
    scene[::3, 0:3] = 1  # four
    count = 900
    mixed = paste(count, scene, torch.tensor([0.0, 1.0]), scale=(1, 1), most=most)
    times = np.zeros(4)
    for found in pasted_pixels(mixed):
        rows = {there[0] // 3 for there in found.values()}
        assert 1 <= len(rows) <= most
        times[list(rows)] += 1
    if most == 1:
        assert times.sum() == count
    # Some are covered by others, so that only the order of magnitude is known where several are pasted.
    expected = times.sum() / 4
    assert (abs(times - expected) < 5 * (expected**0.5)).all() or most == 4


@pytest.mark.parametrize("scale", [(1, 1), (2, 2), (1.0, 2.5), (0.4, 0.8)])
def test_enlarged_by_loops(scale):
    weight = torch.tensor([0.0, 1.0, 1.0, 0, 1.0])
    mixed = paste(40, scale=scale, companions={1: [2], 2: [1]}, weight=weight, target=9, most=1)
    law = oracle.paste_regions(SCENE.numpy(), weight.tolist(), {1: [2], 2: [1]}, 4, 3)
    regions = [region for _, regions in law.values() for region in regions]
    values = np.arange(SCENE.numel()).reshape(SCENE.shape)
    for image, labels, pasted in zip(mixed.images[:, 0], mixed.labels, mixed.pasted.numpy(), strict=True):
        fits = 0
        for region in regions:
            height, width = (max(p[axis] for p in region) - min(p[axis] for p in region) + 1 for axis in (0, 1))
            # Every size that the factors allow, at every place: one of them is what was pasted.
            factors = np.linspace(scale[0], scale[1], 400)
            sizes = {(max(1, round(height * f)), max(1, round(width * f))) for f in factors}
            for size in sizes:
                for top in range(12 - size[0] + 1):
                    for left in range(14 - size[1] + 1):
                        window = np.zeros_like(pasted)
                        window[top : top + size[0], left : left + size[1]] = True
                        if (pasted & ~window).any() or not pasted.any():
                            continue
                        smooth, near, mask = oracle.enlarge_by_loops(values, region, size, (top, left), (12, 14))
                        if not np.array_equal(mask, pasted):
                            continue
                        expected = np.where(mask, SCENE.numpy().ravel()[near.astype(int)], 9)
                        fits += np.array_equal(labels.numpy(), expected) and np.allclose(
                            image.numpy(), np.where(mask, smooth, -1.0)
                        )
        assert fits or not pasted.any()
    assert mixed.pasted.flatten(1).any(1).float().mean() > 0.8


def test_factors_and_places_are_uniform():
    # One region of 2 × 2 in 41 × 41: with scale 2 it is 4 × 4, with 38 places along each side.
    scene = torch.zeros(41, 41, dtype=torch.long)
    scene[20:22, 30:32] = 1
    weight = torch.tensor([0.0, 1.0])
    pasted = paste(3000, scene, weight, scale=(2, 2)).pasted
    assert (pasted.flatten(1).sum(1) == 16).all()
    for dim in (1, 2):
        first = pasted.any(3 - dim).int().argmax(1)
        assert stats.chisquare(np.bincount(first.numpy(), minlength=38)).pvalue > 1e-3
    scene[:] = 0
    scene[0:10, 0:10] = 1
    side = paste(3000, scene, weight, scale=(1, 2.5)).pasted.any(2).sum(1).numpy()
    # Sides 10 … 25 from factors 1 … 2.5: the two at the ends have half the probability of the others.
    expected = np.full(16, 3000 / 15)
    expected[[0, -1]] /= 2
    assert stats.chisquare(np.bincount(side, minlength=26)[10:], expected).pvalue > 1e-3


def test_integer_images_and_weights_take_the_nearest_pixel():
    count, scene = 20, SCENE.to(torch.uint8)
    numbers = torch.arange(SCENE.numel()).view(1, 1, 12, 14).expand(count, 1, 12, 14)
    weight = numbers[:, 0].float()
    mixed = paste_classes(
        torch.full_like(numbers, -1),
        torch.zeros(count, 12, 14, dtype=torch.uint8),
        WEIGHT,
        pixel_weight=torch.full_like(weight, -1),
        source=(numbers, scene.expand(count, -1, -1), weight),
        min_class_pixels=3,
        min_pixels=3,
        generator=generator(),
    )
    assert torch.equal(mixed.images[:, 0].float(), mixed.pixel_weight)
    assert torch.equal(mixed.pixel_weight >= 0, mixed.pasted)
    came_from = scene.flatten()[mixed.images[:, 0].clamp(min=0)]
    assert torch.equal(mixed.labels[mixed.pasted], came_from[mixed.pasted])


def test_protected_labels_are_not_covered():
    target = torch.randint(0, 4, (12, 14), generator=generator(6))
    target[4:8] = 255

    def run(protected):
        images = torch.zeros(200, 1, 12, 14)
        scene = (torch.ones(200, 1, 12, 14), SCENE.expand(200, -1, -1))
        labels = target.expand(200, -1, -1)
        return paste_classes(
            images,
            labels,
            WEIGHT,
            source=scene,
            protected=protected,
            min_class_pixels=3,
            min_pixels=3,
            generator=generator(),
        )

    free, kept = run(()), run((2, 255))
    guarded = (target == 2) | (target == 255)
    assert free.pasted[:, guarded].any()
    assert torch.equal(kept.pasted, free.pasted & ~guarded)
    assert torch.equal(kept.labels[:, guarded], target[guarded].expand(200, -1))
    assert not kept.images[:, 0][:, guarded].any()


def test_nothing_to_paste():
    for weight in (torch.zeros(5), torch.full((5,), float("nan")), torch.full((5,), -1.0), torch.ones(1)):
        scene = torch.where(SCENE == 0, 255, SCENE)
        assert not paste(4, scene, weight).pasted.any()
    assert not paste(4, min_pixels=99, weight=WEIGHT).pasted.any()
    assert not paste(4, min_class_pixels=99, weight=WEIGHT).pasted.any()
    scattered = torch.zeros(12, 14, dtype=torch.long)
    scattered[::2, ::2] = 1  # enough pixels, but no region
    assert not paste(4, scattered, WEIGHT).pasted.any()
    assert paste(0).images.shape == (0, 1, 12, 14)


def test_defaults_are_the_papers():
    scene = torch.zeros(60, 60, dtype=torch.long)
    scene[0:4, 0:5] = 1  # 20 pixels
    scene[20:39, 3:4] = 1  # 19
    scene[50, 50:60] = 1  # 10: 49 in all
    images = torch.zeros(400, 1, 60, 60)
    labels = torch.zeros(400, 60, 60, dtype=torch.long)
    one = torch.tensor([0.0, 1.0])

    def run():
        source = (images, scene.expand(400, -1, -1))
        return paste_classes(images, labels, one, source=source, generator=generator())

    assert not run().pasted.any()
    scene[49, 50] = 1
    mixed = run()
    heights, widths = (mixed.pasted.any(dim).sum(1) for dim in (2, 1))
    assert (heights.min(), heights.max()) == (4, 10)
    assert widths.max() in (12, 13)
    assert (widths >= heights).all()  # never the column of 19


def test_class_weight_may_lie_on_another_device():
    images, labels = torch.zeros(2, 3, 4, 5, device="meta"), torch.zeros(2, 4, 5, dtype=torch.long, device="meta")
    mixed = paste_classes(images, labels, WEIGHT, companions={1: [2]}, protected=(0,))
    assert mixed.pasted.device.type == "meta"


def test_bad_arguments():
    images, labels = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5, dtype=torch.long)

    def fails(error, message, weight=WEIGHT, **keywords):
        with pytest.raises(error, match=message):
            paste_classes(images, labels, weight, **keywords)

    fails(TypeError, "`class_weight`: expected a torch.Tensor", [1.0])
    fails(TypeError, "`class_weight`: expected a floating-point dtype", torch.ones(3).long())
    fails(ValueError, r"`class_weight`: expected \(C,\), got \(1, 5\)", WEIGHT[None])
    fails(ValueError, r"`class_weight`: expected \(C,\), got \(0,\)", WEIGHT[:0])
    fails(ValueError, r"`companions`: expected classes in \[0, 5\), got 5", companions={1: [5]})
    fails(ValueError, r"`companions`: expected classes in \[0, 5\), got 7", companions={7: [1]})
    fails(ValueError, "`companions`: expected at least 0", companions={1: [-1]})
    fails(TypeError, "`companions`: expected an int", companions={1: [2.0]})
    fails(TypeError, r"`companions\[1\]`: expected a list of classes, got int", companions={1: 2})
    fails(TypeError, "`companions`: expected a mapping of classes to classes, got list", companions=[(1, 2)])
    fails(TypeError, "`protected`: expected an int", protected=(1.0,))
    fails(ValueError, r"`scale`: expected \(low, high\), got 2", scale=2)
    fails(TypeError, r"`scale\[0\]`", scale=("1", 2))
    fails(ValueError, r"`scale\[0\]`", scale=(0, 2))
    fails(ValueError, r"`scale\[1\]`", scale=(2, 1))
    fails(ValueError, r"`scale\[1\]`", scale=(2, float("inf")))
    fails(TypeError, "`min_pixels`", min_pixels=2.5)
    fails(ValueError, "`min_pixels`", min_pixels=0)
    fails(TypeError, "`min_class_pixels`", min_class_pixels="3")
    fails(ValueError, "`min_class_pixels`", min_class_pixels=0)
    fails(ValueError, "`most`", most=0)
    fails(ValueError, "`most`: expected at most 255, got 256", most=256)
    with pytest.raises(ValueError, match="`generator`: expected device meta"):
        paste_classes(images.to("meta"), labels.to("meta"), WEIGHT.to("meta"), generator=generator())
