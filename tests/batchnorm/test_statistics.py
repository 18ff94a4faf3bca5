"""Taking statistics out of a network, putting them in, mixing and choosing."""

import copy
import itertools

import pytest
import torch
from torch import nn

from selftrain_seg.batchnorm import (
    choose_alpha,
    estimate_statistics,
    freeze_batchnorm,
    get_statistics,
    mix_statistics,
    set_statistics,
)
from selftrain_seg.datasets import SyntheticStreets
from selftrain_seg.restyle import restyled_confusion
from tests.batchnorm.nets import Pixels, assert_state, state, target, trained

ALPHAS = (0.0, 0.1, 0.3, 0.5, 0.9, 1.0)


def two():
    net = trained()
    return net, get_statistics(net), estimate_statistics(net, target())


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_in_and_out():
    net, source, other = two()
    before = state(net)
    assert list(source) == [f"norms.{k}.{entry}" for k in range(3) for entry in ("running_mean", "running_var")]
    set_statistics(net, other)
    assert equal(get_statistics(net), other)
    assert_state(net, {**before, **other})  # nothing else
    assert net.norms[0].num_batches_tracked == 7
    set_statistics(net, source)
    assert_state(net, before)


def test_they_are_a_part_of_the_state_dict(tmp_path):
    net, _, other = two()
    torch.save(other, tmp_path / "target.pt")
    loaded = torch.load(tmp_path / "target.pt", weights_only=True)
    assert net.load_state_dict(loaded, strict=False).unexpected_keys == []
    assert equal(get_statistics(net), other)


@pytest.mark.parametrize("way", ["compiled", "parallel", "both"])
def test_wrapped_networks(way):
    net, source, other = two()
    wrapped = torch.compile(net, backend="eager") if way != "parallel" else net
    wrapped = nn.DataParallel(wrapped) if way != "compiled" else wrapped
    assert equal(get_statistics(wrapped), source)
    set_statistics(wrapped, other)
    assert equal(get_statistics(net), other)


def test_results_are_copies():
    net, source, _ = two()
    before = state(net)
    for tensor in get_statistics(net).values():
        tensor.zero_()
    assert_state(net, before)
    set_statistics(net, source)
    for tensor in source.values():
        tensor.zero_()
    assert_state(net, before)


def test_dtypes_are_those_of_the_network():
    net, _, other = two()
    set_statistics(net.half(), other)
    assert net.norms[0].running_var.dtype == torch.float16
    assert torch.equal(net.norms[0].running_var, other["norms.0.running_var"].half())


def test_networks_without_statistics_have_none():
    assert get_statistics(nn.GroupNorm(2, 4)) == {}
    assert get_statistics(nn.BatchNorm2d(4, track_running_stats=False)) == {}
    set_statistics(nn.GroupNorm(2, 4), {})


def test_nothing_is_set_if_something_is_wrong():
    net, _, other = two()
    before = state(net)
    missing = {name: tensor for name, tensor in other.items() if name != "norms.2.running_var"}
    with pytest.raises(ValueError, match=r"of the layers of `net`; missing: norms\.2\.running_var; unexp"):
        set_statistics(net, missing)
    with pytest.raises(ValueError, match=r"missing: none; unexpected: more"):
        set_statistics(net, {**other, "more": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"expected shape \(4,\) for norms\.2\.running_var, got \(5,\)"):
        set_statistics(net, {**other, "norms.2.running_var": torch.zeros(5)})
    with pytest.raises(TypeError, match=r"`net`: expected a torch\.nn\.Module, got dict"):
        set_statistics({}, other)
    assert_state(net, before)


# Mixing


@pytest.mark.parametrize("variance", ["interpolated", "mixture"])
def test_the_ends_are_exact(variance):
    _, source, other = two()
    assert equal(mix_statistics(source, other, 0, variance=variance), source)
    assert equal(mix_statistics(source, other, 1.0, variance=variance), other)
    assert equal(mix_statistics(source, source, 0.3, variance=variance), source)


@pytest.mark.parametrize("alpha", [0.1, 0.25, 0.7])
def test_formula(alpha):
    _, source, other = two()
    plain, mixture = (mix_statistics(source, other, alpha, variance=way) for way in ("interpolated", "mixture"))
    for name in source:
        expected = [
            alpha * t + (1 - alpha) * s for s, t in zip(source[name].tolist(), other[name].tolist(), strict=True)
        ]
        assert plain[name].tolist() == pytest.approx(expected, rel=1e-6)
        if name.endswith("mean"):
            assert torch.equal(mixture[name], plain[name])
            continue
        mean = name.replace("var", "mean")
        apart = [(t - s) ** 2 for s, t in zip(source[mean].tolist(), other[mean].tolist(), strict=True)]
        total = [v + alpha * (1 - alpha) * d for v, d in zip(expected, apart, strict=True)]
        assert mixture[name].tolist() == pytest.approx(total, rel=1e-6)


def test_a_mixture_is_what_both_sets_have_together():
    """3 images of one domain and 1 of another: the statistics of the four are the mixture with alpha 1/4."""
    one, other = torch.randn(3, 2, 40, 40).double(), 3 * torch.randn(1, 2, 40, 40).double() + 2
    norm = nn.BatchNorm2d(2).double()
    each = [estimate_statistics(norm, [images]) for images in (one, other)]
    both = estimate_statistics(norm, [one, other])
    mixed = mix_statistics(*each, 0.25, variance="mixture")
    for name, tensor in both.items():
        torch.testing.assert_close(mixed[name], tensor, rtol=1e-3, atol=1e-6)  # N or N - 1
    assert not torch.allclose(mix_statistics(*each, 0.25)["running_var"], both["running_var"], rtol=0.1)


def test_arguments_stay_and_the_default_is_a_tenth():
    _, source, other = two()
    before = copy.deepcopy(source), copy.deepcopy(other)
    mixed = mix_statistics(source, other)
    assert equal(mixed, mix_statistics(source, other, 0.1))
    for tensor in (*mixed.values(), *mix_statistics(source, other, 0.0).values()):
        tensor.zero_()
    assert equal(source, before[0])
    assert equal(other, before[1])


def test_errors_of_mixing():
    _, source, other = two()
    with pytest.raises(ValueError, match=r"`alpha`: expected a value in \[0\.0, 1\.0\], got 1\.5"):
        mix_statistics(source, other, 1.5)
    with pytest.raises(TypeError, match="`alpha`: expected a number, got str"):
        mix_statistics(source, other, "0.1")
    with pytest.raises(ValueError, match="`variance`: expected one of 'interpolated', 'mixture', got 'sum'"):
        mix_statistics(source, other, 0.1, variance="sum")
    with pytest.raises(ValueError, match="`target`: expected exactly the running_mean and running_var of `source`"):
        mix_statistics(source, {}, 0.1)


# Choosing


def test_choose():
    net, source, other = two()
    before, seen = state(net), []

    def score(net):
        seen.append(get_statistics(net))
        return torch.tensor(-abs(len(seen) - 3.2))

    choice = choose_alpha(net, source, other, score, alphas=ALPHAS)
    assert choice.alpha == 0.3
    assert list(choice.scores) == list(ALPHAS)
    assert choice.scores[0.3] == pytest.approx(-0.2)
    assert all(equal(one, mix_statistics(source, other, a)) for one, a in zip(seen, ALPHAS, strict=True))
    assert_state(net, before)
    seen.clear()
    choose_alpha(net, source, other, score, alphas=[0.5], variance="mixture")
    assert equal(seen[0], mix_statistics(source, other, 0.5, variance="mixture"))


def scored(scores, **settings):
    net, source, other = two()
    values = iter(scores)
    return choose_alpha(net, source, other, lambda net: next(values), alphas=(0.0, 0.2, 0.5, 1.0), **settings).alpha


def test_the_smallest_of_equal_ones_and_a_margin():
    assert scored([1, 3, 3, 2]) == 0.2
    assert scored([40.1, 41.9, 42.7, 41.7], margin=1.0) == 0.2
    assert scored([40.1, 41.9, 42.7, 41.7], margin=0.5) == 0.5
    assert scored([40.1, 41.9, 42.7, 41.7], margin=9.0) == 0.0
    assert scored([float("nan"), 1.0, float("nan"), 2.0]) == 1.0
    assert scored([float("nan"), float("-inf"), float("nan"), float("-inf")]) == 0.2
    with pytest.raises(ValueError, match="`score`: expected a number for at least one alpha, got NaN for all"):
        scored([float("nan")] * 4)


def test_the_order_of_alphas_does_not_matter():
    net, source, other = two()
    choice = choose_alpha(net, source, other, lambda net: 1.0, alphas=(0.5, 0.1, 0.9))
    assert choice.alpha == 0.1


def test_after_an_error_the_network_is_as_it_was():
    net, source, other = two()
    before = state(net)

    def fails(net):
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        choose_alpha(net, source, other, fails)
    assert_state(net, before)


def test_errors_of_choosing():
    net, source, other = two()
    with pytest.raises(ValueError, match="`alphas`: expected at least one, got none"):
        choose_alpha(net, source, other, lambda net: 0.0, alphas=())
    with pytest.raises(ValueError, match="`alphas`: expected a value in"):
        choose_alpha(net, source, other, lambda net: 0.0, alphas=(0.1, 2))
    with pytest.raises(ValueError, match="`margin`: expected a value in"):
        choose_alpha(net, source, other, lambda net: 0.0, margin=-1)


# On the synthetic benchmark


def streets(domain, split, length):
    images, labels = zip(*SyntheticStreets(domain, split, size=(32, 64), length=length), strict=True)
    return torch.stack(images), torch.stack(labels)


@pytest.fixture(scope="module")
def adapted():
    """A small network trained on source streets, and its statistics of both domains."""
    images, labels = streets("source", "train", 48)
    others, _ = streets("target", "train", 32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.BatchNorm2d(24), nn.ReLU()),
            *(nn.Conv2d(24, 24, 3, padding=2, dilation=2), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 13, 1)),
            nn.Upsample(scale_factor=2, mode="bilinear"),
        )
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        for step in range(60):
            part = slice(step * 8 % 48, step * 8 % 48 + 8)
            loss = nn.functional.cross_entropy(net(images[part]), labels[part], ignore_index=255)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.eval()
    return net, get_statistics(net), estimate_statistics(net, others.split(8))


@torch.no_grad()
def test_streets_the_ends(adapted):
    """alpha 0 predicts as the source network does, alpha 1 as the re-estimated one, to the bit."""
    net, source, other = adapted
    images, _ = streets("target", "val", 4)
    with_source = net(images)
    reestimated = copy.deepcopy(net)
    set_statistics(reestimated, other)
    for alpha, expected in ((0.0, with_source), (1.0, reestimated(images))):
        mixed = copy.deepcopy(net)
        set_statistics(mixed, mix_statistics(source, other, alpha))
        assert torch.equal(mixed(images), expected)
    assert not torch.allclose(with_source, reestimated(images), atol=0.1)


def distance(one, other):
    return sum((one[name] - other[name]).norm() for name in one)


@torch.no_grad()
def test_streets_statistics_move_straight(adapted):
    """The distance to the target's statistics shrinks in proportion; the first layer's output does so, too."""
    net, source, other = adapted
    images, _ = streets("target", "val", 4)
    first, apart, means = copy.deepcopy(net[:2]), [], []
    for alpha in ALPHAS:
        mixed = mix_statistics(source, other, alpha)
        apart.append(distance(mixed, other) / distance(source, other))
        set_statistics(first, {name: tensor for name, tensor in mixed.items() if name.startswith("1.")})
        shifted = (first(images) - first[1].bias.view(-1, 1, 1)) / first[1].weight.view(-1, 1, 1)
        means.append(shifted.mean((0, 2, 3)).abs().sum())
    assert [float(value) for value in apart] == pytest.approx([1 - alpha for alpha in ALPHAS], abs=1e-5)
    assert all(one > two for one, two in itertools.pairwise(means))


def test_streets_choice(adapted):
    """Validation on restyled source ranks the mixtures of a network from scratch as the target's labels do."""
    net, source, other = adapted
    val, target_val = streets("source", "val", 32), streets("target", "val", 32)
    styles = streets("target", "train", 32)[0]
    pairs = list(zip(*(part.split(8) for part in val), strict=True))

    def restyled(net):
        return restyled_confusion(net, pairs, styles.split(8), num_classes=13).miou

    def truth(net):
        pairs = zip(*(part.split(8) for part in target_val), strict=True)
        return restyled_confusion(net, pairs, styles.split(8), num_classes=13, restyle=lambda x, _: x).miou

    found, best = (choose_alpha(net, source, other, score, alphas=(0.0, 0.2, 0.5, 1.0)) for score in (restyled, truth))
    assert best.scores[found.alpha] > best.scores[0.0]
    assert found.scores[0.0] == min(found.scores.values())


def test_frozen_layers_take_statistics():
    net, _, other = two()
    freeze_batchnorm(net)
    set_statistics(net, other)
    assert equal(get_statistics(net), other)
    assert isinstance(net, Pixels)
