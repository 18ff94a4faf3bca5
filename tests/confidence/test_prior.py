import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

import selftrain_seg
from selftrain_seg.confidence import SpatialPrior, add_prior, top_confidence
from selftrain_seg.selectors import select_hard, select_reweighted
from selftrain_seg.thresholds import ClassBalancedThreshold
from tests.helpers import random_logits


def random_labels(*shape, classes=4, seed=0):
    labels = torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(seed))
    labels[torch.rand(shape, generator=torch.Generator().manual_seed(seed + 1)) < 0.1] = 255
    return labels


def oracle(maps, size, classes):
    """Share of each class in each cell of each map, averaged over nothing: loops over pixels."""
    total = np.zeros((classes, *size))
    for labels in maps:
        height, width = (max(a, b) for a, b in zip(labels.shape, size, strict=True))
        members = np.zeros(size)
        share = np.zeros((classes, *size))
        for i in range(height):
            for j in range(width):
                cell = i * size[0] // height, j * size[1] // width
                members[cell] += 1
                label = labels[i * labels.shape[0] // height, j * labels.shape[1] // width]
                if label < classes:
                    share[(label, *cell)] += 1
        total += share / members
    return total


@pytest.mark.parametrize("shape", [(8, 12), (16, 24), (17, 31), (5, 7), (4, 30)])
def test_counts_are_the_oracles_at_any_resolution(shape):
    prior = SpatialPrior(4, (8, 12), sigma_px=0)
    batches = [random_labels(2, *shape, seed=s) for s in range(2)]
    for labels in batches:
        prior.update(labels)
    expected = oracle([m.numpy() for labels in batches for m in labels], (8, 12), 4)
    np.testing.assert_allclose(prior.frequencies.numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(prior.compute().numpy(), expected / expected.mean((1, 2), keepdims=True), rtol=1e-6)


def test_smoothing_is_a_gaussian():
    prior = SpatialPrior(4, (20, 30), sigma_px=2.0, kernel_px=17)
    labels = random_labels(3, 20, 30)
    prior.update(labels)
    smooth = np.stack(
        [gaussian_filter(maps, 2.0, mode="nearest", radius=8) for maps in oracle(labels.numpy(), (20, 30), 4)]
    )
    np.testing.assert_allclose(prior.compute().numpy(), smooth / smooth.mean((1, 2), keepdims=True), rtol=1e-5)


def test_mean_is_one_after_resizing_and_absent_classes_are_zero():
    prior = SpatialPrior(5, (16, 16), sigma_px=3.0)
    prior.update(random_labels(2, 16, 16, classes=4))
    maps = prior.compute(size=(33, 21))
    assert maps.shape == (5, 33, 21)
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps.mean((1, 2)), torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]))


def test_window_may_be_larger_than_the_map():
    prior = SpatialPrior(2, (6, 8), sigma_px=70.0)
    prior.update(random_labels(1, 6, 8, classes=2))
    torch.testing.assert_close(prior.compute(), torch.ones(2, 6, 8), atol=0.05, rtol=0)  # all but flat


def test_through_thresholds_and_selector():
    """The prior moves labels to where a class belongs, and the portion is still met."""
    labels = torch.zeros(1, 40, 60, dtype=torch.int64)
    labels[:, 20:] = 1
    prior = SpatialPrior(3, (40, 60), sigma_px=4.0)
    prior.update(labels)
    maps, logits = prior.compute(), random_logits(2, 3, 40, 60, scale=1.0)
    kc = ClassBalancedThreshold(3, 0.3, prior=maps)
    kc.update(logits)
    result = select_reweighted(logits, kc.compute(), prior=maps)
    assert not (result.labels == 2).any()  # never seen in the source
    assert (result.predicted[:, :10] == 0).all()
    assert (result.predicted[:, -10:] == 1).all()
    share = (result.labels != 255).float().mean().item()
    assert share == pytest.approx(0.3, abs=0.01)


def test_merge_by_state_reset_uint8_and_ignored():
    a, b = SpatialPrior(4, (8, 8), sigma_px=0), SpatialPrior(4, (8, 8), sigma_px=0)
    labels = random_labels(2, 8, 8)
    a.update(labels)
    b.update(labels.to(torch.uint8))
    assert torch.equal(a.frequencies, b.frequencies)
    c = SpatialPrior(4, (8, 8), sigma_px=0)
    c.load_state_dict(a.state_dict())
    assert torch.equal(c.compute(), a.compute())
    c.update(torch.full((1, 8, 8), 255))
    c.update(torch.zeros(0, 8, 8, dtype=torch.int64))
    assert torch.equal(c.compute(), a.compute())
    c.reset()
    assert (c.compute() == 0).all()


def test_errors():
    prior = SpatialPrior(2, (4, 4), sigma_px=1.0)
    with pytest.raises(ValueError, match=r"`labels`: expected \(B, H, W\), got \(4, 4\)"):
        prior.update(torch.zeros(4, 4, dtype=torch.int64))
    with pytest.raises(TypeError, match="`labels`: expected an integer dtype"):
        prior.update(torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match="at least 1"):
        prior.update(torch.zeros(1, 0, 4, dtype=torch.int64))
    with selftrain_seg.value_checks(), pytest.raises(ValueError, match="got 9"):
        prior.update(torch.full((1, 4, 4), 9))
    with pytest.raises(ValueError, match="`kernel_px`: expected an odd number, got 70"):
        SpatialPrior(2, (4, 4), sigma_px=1.0, kernel_px=70)
    with pytest.raises(ValueError, match="`sigma_px`"):
        SpatialPrior(2, (4, 4), sigma_px=-1.0)
    with pytest.raises(ValueError, match=r"`size\[0\]`: expected at least 1, got 0"):
        SpatialPrior(2, (0, 4), sigma_px=1.0)
    with pytest.raises(ValueError, match=r"`size`: expected \(height, width\), got 5"):
        SpatialPrior(2, 5, sigma_px=1.0)
    with pytest.raises(ValueError, match=r"`size`: expected \(height, width\), got 4"):
        prior.compute(size=4)
    with pytest.raises(ValueError, match=r"`size\[0\]`: expected at least 1, got 0"):
        prior.compute(size=(0, 4))
    with pytest.raises(ValueError, match="`num_classes`"):
        SpatialPrior(0, (4, 4), sigma_px=1.0)


class TestWhatItIsRightFor:
    """Classes that are told apart by one number, and that lie more often here than there.

    Everything is integrated, nothing drawn. Along the width of the image, class c has the share π_c(x); the number f
    that a pixel shows is normal around the mean of its class.
    """

    WIDTH, MEANS = 24, (-1.2, 0.0, 1.2)

    @pytest.fixture
    def world(self):
        places = np.arange(self.WIDTH)
        shares = np.stack([np.exp(-(((places - middle) / 7.0) ** 2)) + 0.1 for middle in (3, 12, 20)])
        counts = np.round(200 * shares / shares.sum(0)).astype(int)
        counts[0] += 200 - counts.sum(0)  # 200 label maps of one row
        columns = [np.repeat(np.arange(3), column) for column in counts.T]
        prior = SpatialPrior(3, (1, self.WIDTH), sigma_px=0)
        prior.update(torch.from_numpy(np.stack(columns, axis=1))[:, None])
        shown = np.linspace(-6, 6, 400)
        likelihood = np.stack([np.exp(-((shown - mean) ** 2) / 2) for mean in self.MEANS])
        likelihood /= likelihood.sum(1, keepdims=True)
        return counts / 200, likelihood, prior.compute().expand(-1, len(shown), -1)

    @staticmethod
    def logits(shares, likelihood):
        return torch.from_numpy(np.log(shares)[:, None] + np.log(likelihood)[:, :, None])[None]

    @staticmethod
    def accuracy(labels, shares, likelihood):
        joint = shares[:, None] * likelihood[:, :, None] / shares.shape[1]
        return np.take_along_axis(joint, labels.numpy(), axis=0).sum()

    def test_a_network_that_does_not_know_where_pixels_lie_needs_it_once(self, world):
        shares, likelihood, prior = world
        blind = self.logits(np.broadcast_to(shares.mean(1, keepdims=True), shares.shape), likelihood)
        knows = self.logits(shares, likelihood)  # as the first one does once it has learnt from labels of blind · prior
        found = {
            "blind": top_confidence(blind).labels,
            "once": top_confidence(blind, prior=prior).labels,
            "knows": top_confidence(knows).labels,
            "twice": top_confidence(knows, prior=prior).labels,
            "three times": top_confidence(knows, prior=prior**2).labels,
        }
        assert torch.equal(found["once"], found["knows"])  # p(c | f) · q_c(x) is p(c | f, x), up to a factor a pixel
        score = {name: self.accuracy(labels, shares, likelihood) for name, labels in found.items()}
        assert score["once"] > score["blind"] + 0.02
        assert score["once"] > score["twice"] + 0.01
        assert score["twice"] > score["three times"] + 0.01

    def test_it_is_wrong_where_classes_lie_elsewhere(self, world):
        shares, likelihood, prior = world
        blind = self.logits(np.broadcast_to(shares.mean(1, keepdims=True), shares.shape), likelihood)
        with_it, without = (
            self.accuracy(top_confidence(blind, prior=q).labels, shares[:, ::-1], likelihood) for q in (prior, None)
        )
        assert with_it < without - 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probabilities_after_the_prior_sum_to_one(dtype):
    logits = random_logits(2, 4, 5, 6).to(dtype)
    prior = torch.rand(4, 5, 6, generator=torch.Generator().manual_seed(1))
    prior[2, :3] = 0
    product = np.exp(logits.double().numpy()) * prior.double().numpy()
    weighted = add_prior(logits, prior)
    assert weighted.dtype == torch.float32
    expected = product / product.sum(1, keepdims=True)
    np.testing.assert_allclose(weighted.softmax(1).numpy(), expected, rtol=1e-5, atol=1e-7)
    assert torch.equal(top_confidence(weighted).labels, top_confidence(logits, prior=prior).labels)


def test_renormalised_products_rank_pixels_by_confidence_and_not_by_place():
    # Class 0 has the left pixel to itself and is sure there; on the right it is in doubt, where both are frequent.
    logits = torch.tensor([[0.99, 0.6], [0.01, 0.4]]).log().reshape(1, 2, 1, 2)
    prior = torch.tensor([[0.5, 1.5], [0.5, 1.5]]).reshape(2, 1, 2)
    product, posterior = top_confidence(logits, prior=prior).log_confidence, top_confidence(add_prior(logits, prior))
    assert product[0, 0, 0] < product[0, 0, 1]
    assert posterior.log_confidence[0, 0, 0] > posterior.log_confidence[0, 0, 1]
    torch.testing.assert_close(posterior.log_confidence, top_confidence(logits).log_confidence)


def test_a_pixel_where_no_class_has_a_prior_is_never_selected():
    logits, prior = random_logits(1, 3, 2, 2), torch.ones(3, 2, 2)
    prior[:, 0, 0] = 0
    labels = select_hard(add_prior(logits, prior), 0.0).labels
    assert (labels == 255).nonzero().tolist() == [[0, 0, 0]]


def test_add_prior_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"`prior`: expected \(C, H, W\) = \(3, 2, 2\)"):
        add_prior(torch.zeros(1, 3, 2, 2), torch.ones(3, 2, 1))
    with pytest.raises(TypeError, match="`prior`"):
        add_prior(torch.zeros(1, 3, 2, 2), torch.ones(3, 2, 2, dtype=torch.int64))
