import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from selftrain_seg.datasets import SyntheticStreets
from selftrain_seg.mining import crop, mine_crops, rare_classes
from tests.helpers import never_waits
from tests.oracles.mining import corner_distribution


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_labels(batch=2, height=9, width=11, classes=5, seed=0, dtype=torch.int64):
    labels = torch.randint(0, classes, (batch, height, width), generator=generator(seed))
    labels[torch.rand(batch, height, width, generator=generator(seed + 1)) < 0.1] = 255
    return labels.to(dtype)


def counts_per_image(labels, classes=5):
    return torch.stack([(labels == c).sum((1, 2)) for c in range(classes)], dim=1)


def test_by_hand():
    # One pixel of class 7 at (2, 5) of a 6×8 image, crop 4×4: centred, it lands at row 2 and column 2 of the
    # crop, so the corner is (0, 3). At (5, 7) the corner (3, 5) is shifted back to (2, 4). At (0, 0): (0, 0).
    labels = torch.zeros(3, 6, 8, dtype=torch.long)
    labels[0, 2, 5] = labels[1, 5, 7] = labels[2, 0, 0] = 7
    corners = mine_crops(labels, torch.tensor([7]), (4, 4), chance=1.0)
    assert corners.tolist() == [[0, 3], [2, 4], [0, 0]]
    assert corners.dtype == torch.int64


IMAGE = torch.tensor(
    [
        [0, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0, 2],
        [0, 1, 0, 0, 0, 0, 0],
        [3, 3, 3, 0, 255, 0, 0],
        [0, 3, 0, 0, 0, 0, 1],
        [0, 0, 0, 255, 255, 0, 2],
    ]
)


@pytest.mark.parametrize(
    ("classes", "fallback", "chance", "size"),
    [
        ([1, 2], None, 1.0, (2, 2)),  # uniform over classes, then over the pixels of the class
        ([1, 2, 3], None, 0.8, (3, 2)),
        ([3], None, 0.8, (1, 1)),  # the corner is the pixel
        ([0, 1, 2, 3], None, 0.5, (1, 1)),
        ([1, 2], None, 0.0, (3, 4)),  # uniform crops
        ([4, 9], None, 0.8, (3, 4)),  # none present: uniform crops
        ([255], None, 1.0, (2, 2)),  # the ignore label is never mined
        ([], None, 1.0, (2, 2)),
        ([1, 1, 1, 2], None, 1.0, (1, 1)),  # repeats count once
        ([1], [2, 3], 0.9, (1, 1)),  # the fallback only where none is present …
        ([4, 70000, -3], [2, 3], 0.9, (1, 1)),  # … as here
        ([], [2], 1.0, (1, 1)),
        ([1, 3], [2, 3, 1, 0], 1.0, (1, 1)),  # what is in both is preferred
        ([2], None, 0.8, (6, 3)),  # as high as the image
        ([2], None, 0.8, (8, 3)),  # higher than the image
    ],
)
@pytest.mark.parametrize(("dtype", "stored"), [(torch.int64, False), (torch.uint8, True)])
def test_corners_follow_the_law(classes, fallback, chance, size, dtype, stored):
    draws = 20000
    labels = IMAGE.to(dtype).expand(draws, *IMAGE.shape)
    corners = mine_crops(
        labels,
        torch.tensor(classes, dtype=torch.long),
        size,
        chance=chance,
        fallback=None if fallback is None else torch.tensor(fallback),
        image_counts=counts_per_image(IMAGE[None]).expand(draws, -1) if stored else None,
        generator=generator(3),
    )
    expected = draws * corner_distribution(IMAGE.numpy(), classes, size, chance=chance, fallback=fallback or ())
    observed = np.zeros_like(expected)
    np.add.at(observed, tuple(corners.numpy().T), 1)
    possible = expected > 0
    assert observed[~possible].sum() == 0
    assert observed.sum() == draws
    if possible.sum() > 1:
        assert expected[possible].min() > 5  # or the chi-square distribution does not apply
        assert stats.chisquare(observed[possible], expected[possible]).pvalue > 1e-3


def test_images_are_drawn_independently():
    # Two equal images with two mined classes each: all four pairs of classes are equally likely.
    pair = torch.tensor([[[1, 2]], [[1, 2]]]).repeat(4000, 1, 1)
    columns = mine_crops(pair, torch.tensor([1, 2]), (1, 1), chance=1.0, generator=generator())[:, 1]
    table = torch.bincount(columns[0::2] * 2 + columns[1::2], minlength=4)
    assert stats.chisquare(table.numpy()).pvalue > 1e-3


def test_class_choice_does_not_depend_on_what_other_images_show():
    # Class 1 everywhere, class 2 in the second image only; mined class and chance are per image.
    labels = torch.tensor([[[1, 0]], [[1, 2]]]).repeat(3000, 1, 1)
    columns = mine_crops(labels, torch.tensor([1, 2]), (1, 1), chance=1.0, generator=generator())[:, 1]
    assert (columns[0::2] == 0).all()
    assert stats.binomtest(int(columns[1::2].sum()), 3000, 0.5).pvalue > 1e-3


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 14), st.integers(1, 14), st.integers(0, 10**6))
def test_crop_is_inside_and_holds_a_mined_pixel(height, width, h, w, seed):
    labels = random_labels(4, height, width, seed=seed)
    corners = mine_crops(labels, torch.tensor([2, 4]), (h, w), chance=1.0, generator=generator(seed))
    assert (corners >= 0).all()
    assert (corners[:, 0] <= max(0, height - h)).all()
    assert (corners[:, 1] <= max(0, width - w)).all()
    windows = crop(labels, corners, (h, w))
    mined = torch.tensor([2, 4])
    for image, window in zip(labels, windows, strict=True):
        if torch.isin(image, mined).any():
            assert torch.isin(window, mined).any()


def test_share_of_crops_with_a_rare_class():
    # One pixel in a 40×40 image, crop 10×10. Mined crops always hold it, uniform ones for the 10·10 of the
    # 31·31 places that cover it: chance + (1 - chance)·uniform.
    labels = torch.zeros(6000, 40, 40, dtype=torch.uint8)
    labels[:, 20, 20] = 1
    corners = mine_crops(labels, torch.tensor([1]), (10, 10), chance=0.8, generator=generator())
    hit = crop(labels, corners, (10, 10)).flatten(1).amax(1).sum()
    assert stats.binomtest(int(hit), 6000, 0.8 + 0.2 * 100 / 31**2).pvalue > 1e-3


def test_share_of_crops_with_a_rare_class_on_the_synthetic_benchmark():
    streets = SyntheticStreets("source", "train", length=60, seed=0)
    labels = torch.stack([streets[index][1] for index in range(60)])
    rare = rare_classes(torch.bincount(labels[labels != 255], minlength=len(streets.classes)), k=3)
    labels = labels[torch.isin(labels, rare).flatten(1).any(1)].repeat(50, 1, 1)

    def share(chance):
        corners = mine_crops(labels, rare, (32, 32), chance=chance, generator=generator(7))
        return torch.isin(crop(labels, corners, (32, 32)), rare).flatten(1).any(1).double().mean().item()

    uniform = share(0.0)
    assert uniform < 0.6
    expected = 0.8 + 0.2 * uniform
    deviation = (0.25 / len(labels)) ** 0.5
    assert abs(share(0.8) - expected) < 4 * deviation
    assert share(1.0) == 1.0


def test_chance_zero_never_mines(monkeypatch):
    # The smallest of all possible draws, which a chance above 0 would take for mining.
    monkeypatch.setattr(
        "selftrain_seg.mining.crops.uniform_integers", lambda b, n, device, source: torch.zeros(b, n).long()
    )
    labels = torch.tensor([[[0, 0, 1]]])
    assert mine_crops(labels, torch.tensor([1]), (1, 1), chance=0.0).tolist() == [[0, 0]]
    assert mine_crops(labels, torch.tensor([1]), (1, 1), chance=1e-6).tolist() == [[0, 2]]


def test_generator_reproduces_and_leaves_the_global_state_alone():
    labels, classes = random_labels(6), torch.tensor([1, 3])
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = mine_crops(labels, classes, (3, 3), generator=generator(5))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, mine_crops(labels, classes, (3, 3), generator=generator(5)))
    assert not torch.equal(first, mine_crops(labels, classes, (3, 3), generator=generator(6)))
    one = generator(5)
    assert torch.equal(first, mine_crops(labels, classes, (3, 3), generator=one))
    assert not torch.equal(first, mine_crops(labels, classes, (3, 3), generator=one))
    torch.manual_seed(1)
    default = mine_crops(labels, classes, (3, 3))
    torch.manual_seed(1)
    assert torch.equal(default, mine_crops(labels, classes, (3, 3)))


def test_classes_may_lie_on_another_device():
    corners = mine_crops(random_labels().to("meta"), torch.tensor([1, 2]), (3, 3), fallback=torch.tensor([3]))
    assert corners.device.type == "meta"


def test_stored_counts_change_nothing():
    labels = random_labels(50, dtype=torch.uint8)
    labels[::3][labels[::3] == 2] = 0
    for classes, fallback in (([2, 4], None), ([2], [3, 1]), ([2, 200, 255], [6])):
        arguments = {
            "classes": torch.tensor(classes),
            "fallback": None if fallback is None else torch.tensor(fallback),
            "size": (4, 3),
        }
        plain = mine_crops(labels, **arguments, generator=generator(1))
        counts = counts_per_image(labels)
        assert torch.equal(plain, mine_crops(labels, **arguments, image_counts=counts, generator=generator(1)))


def test_stored_counts_are_used():
    # They claim that class 1 is absent and that class 2 (of which there is no pixel) is present.
    labels = torch.tensor([[[0, 0, 0, 1]]]).expand(64, -1, -1)
    wrong = torch.tensor([[3, 0, 0]]).expand(64, -1)
    corners = mine_crops(labels, torch.tensor([1]), (1, 1), chance=1.0, image_counts=wrong, generator=generator())
    assert len(corners.unique(dim=0)) == 4  # uniform
    wrong = torch.tensor([[3, 0, 1]]).expand(64, -1)
    corners = mine_crops(labels, torch.tensor([2]), (1, 1), chance=1.0, image_counts=wrong, generator=generator())
    assert len(corners.unique(dim=0)) == 4


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32]
)
def test_label_dtypes(dtype):
    labels = torch.randint(0, 5, (8, 9, 11), generator=generator())
    classes = torch.tensor([1, 4, 9, 300])
    expected = mine_crops(labels, classes, (3, 4), generator=generator(2))
    assert torch.equal(mine_crops(labels.to(dtype), classes, (3, 4), generator=generator(2)), expected)
    assert torch.equal(mine_crops(labels, classes.int(), (3, 4), generator=generator(2)), expected)


def test_layouts():
    labels = random_labels(4, 64, 48)
    expected = mine_crops(labels, torch.tensor([3]), (5, 5), generator=generator(2))
    transposed = labels.transpose(1, 2).contiguous().transpose(1, 2)
    strided = labels.repeat_interleave(2, dim=2)[:, :, ::2]
    for version in (transposed, strided):
        assert not version.is_contiguous()
        assert torch.equal(mine_crops(version, torch.tensor([3]), (5, 5), generator=generator(2)), expected)


def test_values_out_of_range_are_never_mined():
    extremes = [-(2**63), -70000, -1, 65536, 70000, 2**63 - 1, 2**32 + 3, 65536 + 3]
    labels = torch.tensor([*extremes, 3]).expand(2000, 1, -1)
    classes = torch.tensor([*extremes, 3])
    corners = mine_crops(labels, classes, (1, 1), chance=1.0, generator=generator())
    assert (corners[:, 1] == len(extremes)).all()
    alone = torch.tensor([[[2**32 + 3, 65536 + 3, 4, 0]]]).expand(500, -1, -1)
    assert (mine_crops(alone, torch.tensor([3, 4]), (1, 1), chance=1.0)[:, 1] == 2).all()
    high = torch.tensor([[[65535, 0, 0, 0]]]).expand(50, -1, -1)
    assert (mine_crops(high, torch.tensor([65535]), (1, 1), chance=1.0) == 0).all()


def test_ignore_index_is_an_argument():
    labels = torch.tensor([[[0, 0, 7, 255]]]).expand(500, -1, -1)
    arguments = {"classes": torch.tensor([7, 255]), "size": (1, 1), "chance": 1.0, "generator": generator()}
    assert (mine_crops(labels, **arguments)[:, 1] == 2).all()
    assert (mine_crops(labels, **arguments, ignore_index=7)[:, 1] == 3).all()
    assert set(mine_crops(labels, **arguments, ignore_index=-1)[:, 1].tolist()) == {2, 3}


def test_nothing_but_ignore_is_uniform():
    labels = torch.full((4000, 3, 4), 255)
    corners = mine_crops(labels, torch.arange(19), (2, 3), chance=1.0, generator=generator())
    table = torch.bincount(corners[:, 0] * 2 + corners[:, 1], minlength=4)
    assert stats.chisquare(table.numpy()).pvalue > 1e-3


def test_many_classes():
    labels = torch.arange(400).view(1, 20, 20).expand(3000, -1, -1)
    corners = mine_crops(labels, torch.arange(100, 400), (1, 1), chance=1.0, generator=generator())
    value = corners[:, 0] * 20 + corners[:, 1]
    assert value.min() >= 100
    assert stats.chisquare(torch.bincount(value - 100, minlength=300).numpy()).pvalue > 1e-3


def test_one_of_many_classes():
    labels = torch.tensor([[[0, 200, 0, 0, 0]]]).expand(3000, -1, -1)
    assert (mine_crops(labels, torch.arange(100, 400), (1, 1), chance=1.0)[:, 1] == 1).all()


def test_no_images():
    corners = mine_crops(torch.zeros(0, 5, 6, dtype=torch.long), torch.tensor([1]), (2, 2))
    assert corners.shape == (0, 2)
    assert crop(torch.zeros(0, 3, 5, 6), corners, (2, 7)).shape == (0, 3, 2, 7)


def test_inputs_are_not_changed():
    labels, classes, fallback = random_labels(), torch.tensor([1, 1]), torch.tensor([2])
    before = [t.clone() for t in (labels, classes, fallback)]
    corners = mine_crops(labels, classes, (3, 3), fallback=fallback)
    kept = corners.clone()
    crop(labels, corners, (20, 3)).fill_(9)
    assert all(torch.equal(a, b) for a, b in zip(before, (labels, classes, fallback), strict=True))
    assert torch.equal(kept, corners)


def test_bad_arguments():
    labels, classes = random_labels(), torch.tensor([1])

    def fails(error, message, labels=labels, classes=classes, size=(2, 2), **arguments):
        with pytest.raises(error, match=message):
            mine_crops(labels, classes, size, **arguments)

    fails(TypeError, "`labels`: expected a torch.Tensor", labels=labels.numpy())
    fails(TypeError, "`labels`: expected an integer dtype", labels=labels.float())
    fails(ValueError, r"`labels`: expected \(B, H, W\), got \(9, 11\)", labels=labels[0])
    for empty in (labels[:, :0], labels[:, :, :0]):
        fails(ValueError, "`labels`: expected at least one pixel per image", labels=empty)
    for name in ("classes", "fallback"):
        fails(TypeError, f"`{name}`: expected a torch.Tensor, got list", **{name: [1]})
        fails(TypeError, f"`{name}`: expected an integer dtype", **{name: torch.tensor([1.0])})
        fails(ValueError, rf"`{name}`: expected \(K,\), got \(1, 1\)", **{name: torch.tensor([[1]])})
    fails(TypeError, "`image_counts`: expected an integer dtype", image_counts=torch.ones(2, 5))
    for shape in ((3, 5), (2,), (2, 0)):
        fails(ValueError, r"`image_counts`: expected \(B, C\) = \(2, C\)", image_counts=torch.ones(shape, dtype=int))
    fails(ValueError, "`image_counts`: expected device cpu", image_counts=torch.ones(2, 5, dtype=int).to("meta"))
    elsewhere = {"labels": labels.to("meta"), "classes": classes.to("meta"), "generator": generator()}
    fails(ValueError, "`generator`: expected device meta, got cpu", **elsewhere)
    for size in (3, (3,), (3, 3, 3), "33", None):
        fails(ValueError, r"`size`: expected \(height, width\)", size=size)
    fails(ValueError, r"`size\[0\]`: expected at least 1, got 0", size=(0, 2))
    fails(TypeError, r"`size\[1\]`: expected an int, got float", size=(2, 2.0))
    fails(TypeError, "`chance`: expected a number, got str", chance="often")
    for chance in (-0.1, 1.1, float("nan")):
        fails(ValueError, "`chance`: expected a value in", chance=chance)


def mine_and_crop(labels, images, classes, fallback, size):
    corners = mine_crops(labels, classes, size, fallback=fallback)
    return corners, crop(labels, corners, size), crop(images, corners, size)


def compiled_equals_eager(backend, cases):
    torch.compiler.reset()
    compiled = torch.compile(mine_and_crop, fullgraph=True, backend=backend)
    with torch._inductor.config.patch(fallback_random=True):
        for labels, classes, fallback, size in cases:
            images = torch.rand(labels.shape[0], 2, *labels.shape[1:], generator=generator())
            torch.manual_seed(4)
            expected = mine_and_crop(labels, images, classes, fallback, size)
            torch.manual_seed(4)
            for ours, theirs in zip(compiled(labels, images, classes, fallback, size), expected, strict=True):
                assert torch.equal(ours, theirs)
    torch.compiler.reset()


CASES = [
    (random_labels(3, 20, 31), torch.tensor([2, 4]), None, (8, 9)),
    (random_labels(3, 20, 31, dtype=torch.uint8), torch.tensor([2, 4]), torch.tensor([1]), (4, 40)),
    # Other shapes: dynamic ones from here on.
    (random_labels(2, 17, 12), torch.tensor([9]), torch.tensor([3]), (20, 5)),
]


def test_traces_to_one_graph():
    compiled_equals_eager("aot_eager", CASES[::2])


@pytest.mark.slow
def test_compiled():
    compiled_equals_eager("inductor", CASES[:1])


@pytest.mark.gpu
def test_cuda_never_waits():
    labels, images = random_labels(8, 64, 64).cuda(), torch.rand(8, 3, 64, 64, device="cuda")
    classes, fallback = torch.tensor([1, 3]).cuda(), torch.tensor([2]).cuda()
    source = torch.Generator("cuda").manual_seed(0)
    mine_crops(labels, classes, (9, 9), generator=source)  # first launches may allocate
    with never_waits():
        corners = mine_crops(labels, classes, (9, 9), fallback=fallback, chance=1.0, generator=source)
        windows, parts = crop(labels, corners, (9, 9)), crop(images, corners, (9, 70))
    assert torch.isin(windows, classes).flatten(1).any(1).all()
    assert torch.equal(parts.cpu(), crop(images.cpu(), corners.cpu(), (9, 70)))


def test_negative_labels_are_no_byte():
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    labels[0, 7, 7] = -1  # 255 as a byte
    corners = mine_crops(labels.expand(400, 8, 8), torch.tensor([255]), (2, 2), chance=1.0, ignore_index=-1)
    assert len(corners.unique(dim=0)) > 1  # uniform: there is nothing to mine


def test_default_device_is_not_used():
    labels, counts = random_labels(), counts_per_image(random_labels())
    classes = torch.tensor([1, 3])
    expected = [mine_crops(labels, classes, (4, 4), generator=generator(1)) for _ in range(2)]
    torch.set_default_device("meta")
    try:
        found = [mine_crops(labels, classes, (4, 4), image_counts=n, generator=generator(1)) for n in (None, counts)]
    finally:
        torch.set_default_device(None)
    assert torch.equal(found[0], expected[0])
    assert found[1].device.type == "cpu"
