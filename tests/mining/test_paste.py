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
    keywords = {"min_pixels": 3, "generator": generator(), **keywords}
    return paste_classes(
        torch.full(source.shape, -1.0, dtype=torch.float64),
        labels,
        weight,
        source=(source, scene.expand(count, -1, -1)),
        **keywords,
    )


@pytest.mark.parametrize("groups", [(), [(1, 2)], [(1, 2), (2, 4)]])
def test_classes_and_regions_follow_the_law(groups):
    count = 8000
    mixed = paste(count, groups=groups, scale=(1, 1))
    law = oracle.paste_regions(SCENE.numpy(), WEIGHT.tolist(), groups, 3)
    probability = {}
    for share, regions in law.values():
        for region in regions:
            key = tuple(region)
            probability[key] = probability.get(key, 0.0) + share / len(regions)
    counts = dict.fromkeys(probability, 0)
    for image, pasted in zip(mixed.images[:, 0].long(), mixed.pasted, strict=True):
        counts[tuple(sorted(divmod(int(n), 14) for n in image[pasted]))] += 1  # at scale 1: the pixels themselves
    expected = np.array([count * probability[key] for key in counts])
    assert expected.min() > 5
    assert stats.chisquare(list(counts.values()), expected).pvalue > 1e-3
    assert all(len(key) > 1 for key in counts)  # the lone pixel never


def test_groups_travel_together():
    mixed = paste(300, groups=[(1, 2)], scale=(1, 1), weight=torch.tensor([0.0, 1.0, 0, 0, 0]))
    sizes = mixed.pasted.flatten(1).sum(1)
    assert set(sizes.tolist()) == {4, 9}  # the corner region, and 5 pixels of class 1 with the 4 of class 2 below
    for labels, pasted in zip(mixed.labels, mixed.pasted, strict=True):
        taken = labels[pasted]
        assert (taken == 2).sum() == (4 if len(taken) == 9 else 0)
    alone = paste(300, groups=[(1, 2)], scale=(1, 1), weight=torch.tensor([0.0, 0, 1, 0, 0]))
    assert set(alone.pasted.flatten(1).sum(1).tolist()) == {4, 9}  # class 2 alone too, when it is what was drawn


@pytest.mark.parametrize("scale", [(1, 1), (2, 2), (1.0, 2.5), (0.4, 0.8), (30, 40)])
def test_enlarged_by_loops(scale):
    mixed = paste(40, scale=scale, groups=[(1, 2)], weight=torch.tensor([0.0, 1.0, 1.0, 0, 1.0]), target=9)
    law = oracle.paste_regions(SCENE.numpy(), [0, 1, 1, 0, 1], [(1, 2)], 3)
    regions = [region for _, regions in law.values() for region in regions]
    values = np.arange(SCENE.numel()).reshape(SCENE.shape)
    for image, labels, pasted in zip(mixed.images[:, 0], mixed.labels, mixed.pasted.numpy(), strict=True):
        fits = 0
        for region in regions:
            height, width = (max(p[axis] for p in region) - min(p[axis] for p in region) + 1 for axis in (0, 1))
            room = min(12 / height, 14 / width)
            # Every size that the factors allow, at every place: one of them is what was pasted.
            sizes = {
                (max(1, round(height * f)), max(1, round(width * f)))
                for f in np.minimum(np.linspace(scale[0], scale[1], 400), room)
            }
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
    if scale[0] >= 1:
        assert mixed.pasted.flatten(1).any(1).all()


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
            images, labels, WEIGHT, source=scene, protected=protected, min_pixels=3, generator=generator()
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
    scattered = torch.zeros(12, 14, dtype=torch.long)
    scattered[::2, ::2] = 1  # enough pixels, but no region
    assert not paste(4, scattered, WEIGHT).pasted.any()
    one = paste(500, weight=torch.tensor([0.0, 1, 0, 0, float("nan")]), min_pixels=1, scale=(1, 1))
    assert set(one.pasted.flatten(1).sum(1).tolist()) == {4, 5, 1}


def test_defaults_are_the_papers():
    scene = torch.zeros(40, 40, dtype=torch.long)
    scene[0:4, 0:5] = 1  # 20 pixels
    scene[20:39, 3:4] = 1  # 19
    images = torch.zeros(400, 1, 40, 40)
    labels = torch.zeros(400, 40, 40, dtype=torch.long)
    mixed = paste_classes(
        images, labels, torch.tensor([0.0, 1.0]), source=(images, scene.expand(400, -1, -1)), generator=generator()
    )
    heights, widths = (mixed.pasted.any(dim).sum(1) for dim in (2, 1))
    assert (heights.min(), heights.max()) == (4, 10)
    assert widths.max() in (12, 13)
    assert (widths >= heights).all()  # never the column of 19


def test_class_weight_may_lie_on_another_device():
    images, labels = torch.zeros(2, 3, 4, 5, device="meta"), torch.zeros(2, 4, 5, dtype=torch.long, device="meta")
    mixed = paste_classes(images, labels, WEIGHT, groups=[(1, 2)], protected=(0,))
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
    fails(ValueError, r"`groups`: expected classes in \[0, 5\), got 5", groups=[(1, 5)])
    fails(ValueError, "`groups`: expected at least 0", groups=[(1, -1)])
    fails(TypeError, "`groups`: expected an int", groups=[(1, 2.0)])
    fails(TypeError, "`protected`: expected an int", protected=(1.0,))
    fails(ValueError, r"`scale`: expected \(low, high\), got 2", scale=2)
    fails(TypeError, r"`scale\[0\]`", scale=("1", 2))
    fails(ValueError, r"`scale\[0\]`", scale=(0, 2))
    fails(ValueError, r"`scale\[1\]`", scale=(2, 1))
    fails(ValueError, r"`scale\[1\]`", scale=(2, float("inf")))
    fails(TypeError, "`min_pixels`", min_pixels=2.5)
    fails(ValueError, "`min_pixels`", min_pixels=0)
    with pytest.raises(ValueError, match="`generator`: expected device meta"):
        paste_classes(images.to("meta"), labels.to("meta"), WEIGHT.to("meta"), generator=generator())
