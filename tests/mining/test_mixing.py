import numpy as np
import pytest
import torch
from scipy import stats

from selftrain_seg.mining import MixedBatch, class_mix, cut_mix, paste_classes
from tests.helpers import never_waits
from tests.oracles import mixing as oracle

TAIL = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0])


def paste_some(images, labels, **keywords):
    return paste_classes(images, labels, TAIL, min_class_pixels=2, min_pixels=2, **keywords)


def paste_given(images, labels, **keywords):
    return class_mix(images, labels, classes=torch.tensor([4, 1]), **keywords)


MIXERS = [class_mix, cut_mix, paste_some, paste_given]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(size=3, height=7, width=9, seed=0, channels=3):
    """Images that say where every pixel came from, labels with ignored and out-of-range pixels, weights."""
    labels = torch.randint(0, 5, (size, height, width), generator=generator(seed))
    labels[torch.rand(labels.shape, generator=generator(seed + 1)) < 0.2] = 255
    labels[0, 0, :2] = torch.tensor([-1, 5000])
    images = torch.arange(size * channels * height * width, dtype=torch.float32).view(size, channels, height, width)
    return images + 1e5 * seed, labels, torch.rand(labels.shape, generator=generator(seed + 2))


@pytest.mark.parametrize("mix", MIXERS)
def test_compiles_for_batches_of_any_size(mix):
    torch.compiler.reset()
    compiled = torch.compile(lambda *parts: mix(*parts), fullgraph=True, backend="aot_eager", dynamic=True)
    for size, height in ((3, 8), (4, 9)):
        images, labels, _ = batch(size, height)
        mixed = compiled(images, labels)
        assert torch.equal(mixed.images, torch.where(mixed.pasted[:, None], mixed.images, images))
        assert mixed.labels.shape == labels.shape
    torch.compiler.reset()


def check_blend(mixed, ours, theirs):
    """Everywhere either the batch or the source, pixel by pixel, in image, label and weight."""
    for b, i, j in np.ndindex(*mixed.labels.shape):
        images, labels, weight = theirs if mixed.pasted[b, i, j] else ours
        assert torch.equal(mixed.images[b, :, i, j], images[b, :, i, j])
        assert mixed.labels[b, i, j] == labels[b, i, j]
        assert mixed.pixel_weight[b, i, j] == weight[b, i, j]


def shifted(ours):
    return [torch.cat([part[1:], part[:1]]) for part in ours]


# --- ClassMix


def test_class_mix_by_hand():
    # Image 1 shows class 1 at the odd columns and nothing else: "ceil" pastes it, "floor" pastes nothing.
    labels = torch.tensor([[[0, 0, 0, 0]], [[255, 1, 255, 1]]])
    images = torch.tensor([[10.0, 11, 12, 13], [20, 21, 22, 23]]).view(2, 1, 1, 4)
    mixed = class_mix(images, labels, rounding="ceil")
    assert mixed.labels.tolist() == [[[0, 1, 0, 1]], [[0, 0, 0, 0]]]
    assert mixed.images.flatten(1).tolist() == [[10, 21, 12, 23], [10, 11, 12, 13]]
    assert mixed.pixel_weight is None
    untouched = class_mix(images, labels)
    assert torch.equal(untouched.labels, labels)
    assert not untouched.pasted.any()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint16, torch.uint8])
@pytest.mark.parametrize("classes", [[], [3], [4, 1, 1], [0, 255], [1023, 255]])
def test_class_mix_pastes_all_pixels_of_given_classes(classes, dtype):
    ours, theirs = batch(), batch(seed=50)
    if dtype in (torch.uint8, torch.uint16):
        ours, theirs = ([i, y.clamp(0, 255), w] for i, y, w in (ours, theirs))
    ours, theirs = ([i, y.to(dtype), w] for i, y, w in (ours, theirs))
    options = {"pixel_weight": ours[2], "source": tuple(theirs), "classes": torch.tensor(classes, dtype=torch.int32)}
    before = torch.get_rng_state()
    mixed = class_mix(*ours[:2], **options)
    assert torch.equal(torch.get_rng_state(), before)  # nothing is drawn
    check_blend(mixed, ours, theirs)
    expected = sum(theirs[1].long() == number for number in classes if number != 255)
    assert torch.equal(mixed.pasted, torch.as_tensor(expected, dtype=torch.bool).expand(ours[1].shape))
    everything = class_mix(*ours[:2], **{**options, "classes": torch.arange(5), "ignore_index": 3})
    assert set(theirs[1].long()[everything.pasted].tolist()) == {0, 1, 2, 4}


@pytest.mark.parametrize("rounding", ["floor", "ceil"])
@pytest.mark.parametrize("other", [False, True])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_class_mix_pastes_whole_classes(rounding, other, dtype):
    for seed in range(8):
        ours = batch(seed=seed)
        theirs = batch(seed=seed + 50) if other else shifted(ours)
        ours, theirs = ([i, y.to(dtype), w] for i, y, w in (ours, theirs))
        mixed = class_mix(
            ours[0],
            ours[1],
            pixel_weight=ours[2],
            source=tuple(theirs) if other else None,
            rounding=rounding,
            generator=generator(seed),
        )
        check_blend(mixed, ours, theirs)
        for pasted, labels in zip(mixed.pasted, theirs[1].clone(), strict=True):
            labels[(labels < 0) | (labels > 1023)] = 255
            taken = tuple(sorted(set(labels[pasted].tolist())))
            assert taken in oracle.class_sets(labels.numpy(), rounding)
            assert torch.equal(pasted, torch.isin(labels, torch.tensor(taken, dtype=dtype)))


@pytest.mark.parametrize(("rounding", "sets"), [("floor", 10), ("ceil", 10)])
def test_class_mix_draws_every_half_equally_often(rounding, sets):
    labels = torch.tensor([[[0, 3, 7, 255, 900, 4]]]).expand(6000, 1, 6)
    images = torch.zeros(6000, 1, 1, 6)
    mixed = class_mix(images, labels, source=(images, labels), rounding=rounding, generator=generator(1))
    patterns, counts = np.unique(mixed.pasted[:, 0].numpy() @ (1 << np.arange(6)), return_counts=True)
    assert len(patterns) == sets == len(oracle.class_sets(labels[0].numpy(), rounding))
    assert stats.chisquare(counts).pvalue > 1e-3
    pairs = mixed.pasted[0::2, 0, 0].int() * 2 + mixed.pasted[1::2, 0, 0]  # images are drawn independently
    p = 2 / 5 if rounding == "floor" else 3 / 5
    expected = 3000 * np.array([(1 - p) ** 2, p * (1 - p), p * (1 - p), p * p])
    assert stats.chisquare(np.bincount(pairs.numpy(), minlength=4), expected).pvalue > 1e-3


# --- CutMix


def box(pasted):
    """(top, left, height, width) of a mask that is a filled box."""
    rows, columns = pasted.any(1).nonzero()[:, 0], pasted.any(0).nonzero()[:, 0]
    if len(rows) == 0:
        return 0, 0, 0, 0
    top, left, height, width = int(rows[0]), int(columns[0]), len(rows), len(columns)
    assert pasted.sum() == height * width
    assert pasted[top : top + height, left : left + width].all()
    return top, left, height, width


def test_cut_mix_by_hand():
    # A quarter of 6 × 8 is 3 × 4; images without labels keep their box out.
    labels = torch.zeros(2, 6, 8, dtype=torch.long)
    labels[1] = 1
    mixed = cut_mix(torch.zeros(2, 1, 6, 8), labels, area=(0.25, 0.25))
    assert box(mixed.pasted[0])[2:] == (3, 4)
    assert mixed.labels.flatten(1).sum(1).tolist() == [12, 36]


@pytest.mark.parametrize("paste_ignored", [False, True])
@pytest.mark.parametrize("other", [False, True])
def test_cut_mix_pastes_boxes(paste_ignored, other):
    for seed in range(8):
        ours = batch(seed=seed)
        theirs = batch(seed=seed + 50) if other else shifted(ours)
        mixed = cut_mix(
            ours[0],
            ours[1],
            pixel_weight=ours[2],
            source=tuple(theirs) if other else None,
            paste_ignored=paste_ignored,
            generator=generator(seed),
        )
        check_blend(mixed, ours, theirs)
        whole = cut_mix(ours[0], ours[1], paste_ignored=True, generator=generator(seed)).pasted
        for pasted, everything, labels in zip(mixed.pasted, whole, theirs[1], strict=True):
            box(everything)
            assert torch.equal(pasted, everything if paste_ignored else everything & (labels != 255))


@pytest.mark.parametrize(
    ("alpha", "area"), [(1.0, None), (0.2, None), (4.0, None), (1.0, (0.1, 0.4)), (1.0, (0.3, 0.3))]
)
def test_cut_mix_area_law(alpha, area):
    count, side = 3000, 400
    labels = torch.zeros(count, side, 1, dtype=torch.uint8)  # one column: its height is the root of the share
    pasted = cut_mix(
        torch.zeros(count, 1, side, 1), labels, alpha=alpha, area=area, paste_ignored=True, generator=generator(2)
    ).pasted
    heights = pasted.any(2).sum(1).double() / side
    # The column is one pixel wide; it is missing where the root of the share is below a half.
    shares = (heights**2).numpy()
    law = stats.beta(alpha, alpha) if area is None else stats.uniform(area[0], max(area[1] - area[0], 1e-9))
    shown = heights >= 0.5
    low = law.cdf(0.25)
    if area == (0.3, 0.3):
        assert np.abs(shares - 0.3).max() < 2 / side
        return
    assert abs(1 - shown.double().mean() - low) < 4 * np.sqrt(low * (1 - low) / count) + 4 / side
    steps = np.linspace(0.3, 0.99, 12)
    for step in steps:
        expected = law.cdf(step)
        observed = ((shares <= step) | ~shown.numpy()).mean()
        assert abs(observed - expected) < 4 * np.sqrt(max(expected * (1 - expected), 1e-3) / count) + 4 / side


def test_cut_mix_beta_draws():
    from selftrain_seg.mining.cut_mix import _beta

    numbers = torch.rand(20000, 2, dtype=torch.float64, generator=generator())
    for alpha in (0.01, 0.1, 0.5, 1.0, 2.5, 100.0):
        drawn = _beta(numbers[:, 0], numbers[:, 1], alpha)
        assert drawn.isfinite().all()
        if alpha >= 0.1:  # below, float64 cannot tell the values from 0 and 1
            assert stats.kstest(drawn.numpy(), stats.beta(alpha, alpha).cdf).pvalue > 1e-3
    corners = torch.tensor([0.0, 0.25, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert _beta(*torch.cartesian_prod(corners, corners).unbind(1), 0.001).isfinite().all()


def test_cut_mix_places_are_uniform():
    count = 6000
    labels = torch.zeros(count, 4, 6, dtype=torch.uint8)
    pasted = cut_mix(torch.zeros(count, 1, 4, 6), labels, area=(0.25, 0.25), generator=generator(3)).pasted
    places = [box(p) for p in pasted]  # 2 × 3: three places down, four across
    table = np.zeros((3, 4))
    for top, left, height, width in places:
        assert (height, width) == (2, 3)
        table[top, left] += 1
    assert stats.chisquare(table.ravel()).pvalue > 1e-3


# --- all of them


@pytest.mark.parametrize("mix", MIXERS)
def test_edges(mix):
    images, labels, weight = batch()
    empty = mix(images[:0], labels[:0], pixel_weight=weight[:0])
    assert isinstance(empty, MixedBatch)
    assert [part.shape[0] for part in empty] == [0, 0, 0, 0]
    ignored = mix(images, torch.full_like(labels, 255))
    assert torch.equal(ignored.images, images)
    assert (ignored.labels == 255).all()
    assert not ignored.pasted.any()
    single = mix(images, torch.ones_like(labels))
    assert (single.labels == 1).all()
    if mix in (class_mix, cut_mix):  # with itself: nothing would change, and nobody would notice
        with pytest.raises(
            ValueError, match="`source`: expected another batch to paste from, as this one has a single"
        ):
            mix(images[:1], labels[:1])
    alone = mix(images[:1], labels[:1], source=(images[1:2], labels[1:2]))
    assert alone.images.shape == (1, 3, 7, 9)
    assert mix(torch.zeros(2, 0, 4, 4), labels[:2, :4, :4]).images.shape == (2, 0, 4, 4)
    assert mix(torch.rand(2, 1, 1, 1), torch.ones(2, 1, 1).byte()).labels.tolist() == [[[1]], [[1]]]


@pytest.mark.parametrize("mix", MIXERS)
def test_ignored_pixels_are_never_pasted(mix):
    for seed in range(20):
        images, labels, _ = batch(seed=seed)
        source = (torch.full_like(images, -1), torch.where(labels == 255, 7, 255))
        mixed = mix(images, torch.zeros_like(labels), source=source, generator=generator(seed))
        assert not (mixed.labels == 255).any()
        other = mix(images, labels, source=source, ignore_index=7, generator=generator(seed))
        assert not ((other.labels == 7) & (labels != 7)).any()


@pytest.mark.parametrize("mix", MIXERS)
def test_reproducible_and_pure(mix):
    images, labels, weight = batch()
    before = images.clone(), labels.clone(), weight.clone()
    state = torch.random.get_rng_state()
    first = mix(images, labels, pixel_weight=weight, generator=generator(4))
    assert torch.equal(state, torch.random.get_rng_state())
    again = mix(images, labels, pixel_weight=weight, generator=generator(4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    others = [mix(images, labels, generator=generator(seed)).pasted for seed in range(5, 15)]
    assert any(not torch.equal(first.pasted, other) for other in others) == (mix is not paste_given)  # it draws nothing
    torch.manual_seed(4)
    default = mix(images, labels)
    torch.manual_seed(4)
    assert torch.equal(mix(images, labels).pasted, default.pasted)
    for part, old in zip((images, labels, weight), before, strict=True):
        assert torch.equal(part, old)
    first.images.fill_(0)
    first.labels.fill_(0)
    assert torch.equal(images, before[0])


@pytest.mark.parametrize("mix", MIXERS)
def test_dtypes_layouts_and_gradients(mix):
    images, labels, weight = batch()
    expected = mix(images, labels, pixel_weight=weight, generator=generator(1))
    strided = torch.stack([images, images], -1)[..., 0]
    for other in (images.contiguous(memory_format=torch.channels_last), strided, images.double()):
        mixed = mix(other, labels, pixel_weight=weight, generator=generator(1))
        torch.testing.assert_close(mixed.images, expected.images.to(other.dtype))
        assert torch.equal(mixed.labels, expected.labels)
    small = torch.where((labels < 0) | (labels > 255), 255, labels)
    packed = mix(images.to(torch.uint8), small.to(torch.uint8), pixel_weight=weight.half(), generator=generator(1))
    assert (packed.images.dtype, packed.labels.dtype, packed.pixel_weight.dtype) == (
        torch.uint8,
        torch.uint8,
        torch.float16,
    )
    assert torch.equal(packed.pasted, expected.pasted)
    leaf = images.clone().requires_grad_()
    mix(leaf, labels, generator=generator(1)).images.sum().backward()
    assert leaf.grad.isfinite().all()
    assert leaf.grad.any()


@pytest.mark.parametrize("mix", MIXERS)
def test_weights_on_one_side(mix):
    images, labels, weight = batch()
    source = batch(seed=50)
    both = mix(images, labels, pixel_weight=weight, source=source, generator=generator(1))
    ours = mix(images, labels, pixel_weight=weight, source=source[:2], generator=generator(1))
    theirs = mix(images, labels, source=source, generator=generator(1))
    assert both.pasted.any()
    assert torch.equal(ours.pixel_weight, torch.where(both.pasted, 1.0, both.pixel_weight))
    assert torch.equal(theirs.pixel_weight, torch.where(both.pasted, both.pixel_weight, 1.0))
    assert mix(images, labels, source=(*source[:2], None)).pixel_weight is None


@pytest.mark.parametrize("mix", MIXERS)
def test_bad_batches(mix):
    images, labels, weight = batch()

    def fails(error, message, images=images, labels=labels, **keywords):
        with pytest.raises(error, match=message):
            mix(images, labels, **keywords)

    fails(TypeError, "`images`: expected a torch.Tensor", images.numpy())
    fails(ValueError, r"`images`: expected \(B, D, H, W\), got \(3, 7, 9\)", images[0])
    fails(TypeError, "`labels`: expected an integer dtype", labels=labels.float())
    fails(ValueError, r"`labels`: expected \(B, H, W\) = \(3, 7, 9\), got \(2, 7, 9\)", labels=labels[:2])
    fails(ValueError, "`labels`: expected device cpu", labels=labels.to("meta"))
    fails(ValueError, "`labels`: expected at least one pixel", images[..., :0], labels[..., :0])
    fails(TypeError, "`pixel_weight`: expected a floating-point dtype", pixel_weight=labels)
    fails(ValueError, r"`pixel_weight`: expected \(B, H, W\)", pixel_weight=weight[:, 1:])
    fails(ValueError, r"`source`: expected \(images, labels\) or .*, got Tensor", source=images)
    fails(ValueError, "`source`: .* got 1 values", source=(images,))
    fails(TypeError, "`source images`: expected a torch.Tensor", source=(None, labels))
    fails(ValueError, "`source labels`: expected", source=(images, labels[1:]))
    fails(TypeError, "`source labels`: expected an integer dtype", source=(images, weight))
    fails(ValueError, r"`source images`: expected \(3, 3, 7, 9\) torch.float32", source=(images[:2], labels[:2]))
    fails(ValueError, "`source images`: expected .* torch.float64", source=(images.double(), labels))
    fails(ValueError, "`source labels`: expected .* got .* torch.int32", source=(images, labels.int()))
    fails(TypeError, "`source pixel_weight`: expected a floating-point dtype", source=(images, labels, labels))
    fails(ValueError, "`source pixel_weight`: expected", source=(images, labels, weight[1:]))
    fails(ValueError, "`source images`: expected device", source=(images.to("meta"), labels.to("meta")))


def test_bad_options():
    images, labels, _ = batch()
    with pytest.raises(ValueError, match="`rounding`: expected one of 'floor', 'ceil', got 'half'"):
        class_mix(images, labels, rounding="half")
    with pytest.raises(TypeError, match="`classes`: expected an integer dtype"):
        class_mix(images, labels, classes=torch.ones(2))
    for wrong in (-1, 1024):
        with pytest.raises(ValueError, match=rf"`classes`: expected values in \[0, 1024\), got {wrong}"):
            class_mix(images, labels, classes=torch.tensor([1, wrong]))
    with pytest.raises(ValueError, match=r"`classes`: expected \(K,\), got \(2, 1\)"):
        class_mix(images, labels, classes=torch.ones(2, 1, dtype=torch.long))

    def fails(error, message, **keywords):
        with pytest.raises(error, match=message):
            cut_mix(images, labels, **keywords)

    fails(TypeError, "`alpha`", alpha="1")
    fails(ValueError, "`alpha`", alpha=0)
    fails(ValueError, r"`area`: expected \(low, high\)", area=0.5)
    fails(TypeError, r"`area\[0\]`", area=(None, 1))
    fails(ValueError, r"`area\[0\]`", area=(-0.1, 1))
    fails(ValueError, r"`area\[1\]`", area=(0.5, 0.4))
    fails(ValueError, r"`area\[1\]`", area=(0.5, 1.1))
    meta = torch.zeros(2, 1, 2, 2, device="meta"), torch.zeros(2, 2, 2, device="meta", dtype=torch.long)
    for mix in (class_mix, cut_mix):
        with pytest.raises(ValueError, match="`generator`: expected device meta, got cpu"):
            mix(*meta, generator=generator())


@pytest.mark.gpu
@pytest.mark.parametrize("mix", MIXERS)
def test_on_a_gpu(mix):
    images, labels, weight = (part.cuda() for part in batch(4, 33, 41))
    mix(images, labels, pixel_weight=weight)  # builds what it needs
    source = torch.Generator("cuda").manual_seed(0)
    with never_waits():
        mixed = mix(images, labels, pixel_weight=weight, generator=source)
    assert mixed.pasted.any()
    assert mixed.images.device == images.device
