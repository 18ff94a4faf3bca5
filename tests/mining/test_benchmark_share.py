"""What mining does to the crops of the synthetic benchmark, against shares worked out exactly."""

import pytest
import torch

from selftrain_seg.datasets import SyntheticStreets
from selftrain_seg.mining import crop, mine_crops, rare_classes

IMAGES, DRAWS, SIZE = 120, 60, (32, 32)


@pytest.fixture(scope="module", params=[("source", 3), ("target", 3), ("target", 1)])
def benchmark_labels(request):
    domain, k = request.param
    streets = SyntheticStreets(domain, "train", length=IMAGES)
    labels = torch.stack([streets[index][1] for index in range(IMAGES)])
    counts = torch.bincount(labels[labels != streets.ignore_index], minlength=streets.num_classes)
    return labels, rare_classes(counts, k=k)


def uniform_shares(labels, classes):
    """(B,) float64: of all places of the crop in each image, the share with a pixel of the classes in it."""
    shown = torch.isin(labels, classes).double()[:, None]
    return torch.nn.functional.max_pool2d(shown, SIZE, stride=1).mean((1, 2, 3))


def hits(labels, classes, chance, seed=0):
    """(DRAWS, B) bool: whether each of many crops of each image shows a pixel of the classes."""
    generator, shown = torch.Generator().manual_seed(seed), []
    for _ in range(DRAWS):
        corners = mine_crops(labels, classes, SIZE, chance=chance, generator=generator)
        shown.append(torch.isin(crop(labels, corners, SIZE), classes).flatten(1).any(1))
    return torch.stack(shown)


def deviations(hits, probability):
    """How many standard deviations the number of hits lies above its mean, the images' chances being given."""
    mean, variance = hits.shape[0] * probability.sum(), hits.shape[0] * (probability * (1 - probability)).sum()
    return float((hits.sum() - mean) / variance.sqrt())


def test_share_of_crops_with_a_rare_class(benchmark_labels):
    # u_b: the share of image b's places that show one of its rare classes. Where an image shows any at all,
    # a mined crop always does and a uniform one with probability u_b: together chance + (1 - chance)·u_b. Where it
    # shows none, no crop can.
    labels, rare = benchmark_labels
    some = torch.isin(labels, rare).flatten(1).any(1)
    share = uniform_shares(labels, rare)
    assert some.sum() > IMAGES / 4  # all of them, or fewer with one class
    assert len(rare) > 1 or not some.all()
    assert (share[some] > 0).all()
    assert (share[~some] == 0).all()
    uniform = share[some].mean()
    assert 0.1 < uniform < 0.6  # far from both ends, or there is nothing to see

    for chance in (0.0, 0.5, 0.8):
        shown = hits(labels, rare, chance)
        assert not shown[:, ~some].any()
        assert abs(deviations(shown[:, some], chance + (1 - chance) * share[some])) < 4
        # In the words of the promise, over all crops of images with a rare class.
        error = 0.5 / shown[:, some].numel() ** 0.5
        assert shown[:, some].double().mean() > chance + (1 - chance) * uniform - 4 * error
    assert hits(labels, rare, 1.0)[:, some].all()


def test_the_rise_is_no_accident_of_the_classes(benchmark_labels):
    # Mining classes that are everywhere (road, building) leaves the share of the rare ones near the uniform one,
    # far below what mining them gives.
    labels, rare = benchmark_labels
    some = torch.isin(labels, rare).flatten(1).any(1)
    generator = torch.Generator().manual_seed(1)
    shown = []
    for _ in range(DRAWS):
        corners = mine_crops(labels, torch.tensor([0, 2]), SIZE, chance=0.8, generator=generator)
        shown.append(torch.isin(crop(labels, corners, SIZE), rare).flatten(1).any(1))
    uniform = uniform_shares(labels, rare)[some].mean()
    assert torch.stack(shown)[:, some].double().mean() < (0.8 + 0.2 * uniform + uniform) / 2


def test_uniform_shares_by_loops(benchmark_labels):
    labels, rare = benchmark_labels
    share = uniform_shares(labels[:2], rare)
    for b in range(2):
        places = [
            bool(torch.isin(labels[b, top : top + SIZE[0], left : left + SIZE[1]], rare).any())
            for top in range(labels.shape[1] - SIZE[0] + 1)
            for left in range(labels.shape[2] - SIZE[1] + 1)
        ]
        assert abs(float(share[b]) - sum(places) / len(places)) < 1e-12
