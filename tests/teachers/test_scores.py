import math

import numpy as np
import pytest
import torch
from scipy import stats

from selftrain_seg.teachers import entropy_score, soft_neighbourhood_density
from selftrain_seg.teachers.scores import _FEW_PIXELS, _distinct
from tests.helpers import layouts, never_waits, random_logits, saturated_logits
from tests.oracles import teachers as oracle


def pixels_of(logits):
    return logits.double().permute(0, 2, 3, 1).flatten(0, 2).tolist()


def test_density_by_hand():
    # Two pixels with f = (1, 0) and (0, 1), temperature log 3: rows softmax(log 3, 0) = (3/4, 1/4).
    # Entropy 3/4 log 4/3 + 1/4 log 4 = log 4 - 3/4 log 3.
    logits = torch.tensor([[80.0, -80.0], [-80.0, 80.0]]).T.reshape(1, 2, 1, 2)
    score = soft_neighbourhood_density(logits, temperature=math.log(3))
    assert score.item() == pytest.approx(math.log(4) - 0.75 * math.log(3))


@pytest.mark.parametrize("shape", [(1, 2, 1, 1), (1, 5, 7, 9), (2, 19, 5, 3), (3, 3, 2, 2), (1, 4, 1, 6)])
@pytest.mark.parametrize("temperature", [0.5, 20.0, 200.0])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_density_by_loops(shape, temperature, scale):
    logits = random_logits(*shape, scale=scale)
    score = soft_neighbourhood_density(logits, samples=100, temperature=temperature)
    assert score.dtype == torch.float32
    assert score.shape == ()
    assert score.item() == pytest.approx(oracle.density_by_loops(pixels_of(logits), temperature), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_density_dtypes_and_layouts(layout, dtype):
    logits = random_logits(height=6, width=8).to(dtype)
    expected = oracle.density_by_loops(pixels_of(logits), 20.0)
    assert soft_neighbourhood_density(layouts(logits)[layout]).item() == pytest.approx(expected, rel=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert soft_neighbourhood_density(layouts(logits)[layout]).item() == pytest.approx(expected, rel=1e-4)


def test_density_takes_the_pixels_that_its_generator_draws():
    logits = random_logits(2, 5, 20, 30)
    scores = [soft_neighbourhood_density(logits, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert scores[0] == scores[1] != scores[2]
    torch.manual_seed(3)
    one, state = soft_neighbourhood_density(logits), torch.get_rng_state()
    torch.manual_seed(3)
    assert one == soft_neighbourhood_density(logits)
    assert torch.equal(torch.get_rng_state(), state)
    global_state = torch.get_rng_state()
    soft_neighbourhood_density(logits, generator=torch.Generator())
    assert torch.equal(torch.get_rng_state(), global_state)


@pytest.mark.parametrize(("height", "width"), [(40, 50), (300, 400)])
def test_density_of_a_sample_by_loops(height, width):
    """The same draws, then loops over the pixels they name: image, row and column are told apart."""
    logits = random_logits(2, 4, height, width)
    chosen = _distinct(2 * height * width, 60, logits.device, torch.Generator().manual_seed(4)).tolist()
    pixels = pixels_of(logits)
    expected = oracle.density_by_loops([pixels[index] for index in chosen], 20.0)
    score = soft_neighbourhood_density(logits, samples=60, generator=torch.Generator().manual_seed(4))
    assert score.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("population", "count"), [(12, 5), (12, 12), (1, 1), (100, 1)])
def test_sampling_without_replacement(population, count):
    generator = torch.Generator().manual_seed(0)
    hits = np.zeros(population)
    for _ in range(3000):
        chosen = _distinct(population, count, torch.device("cpu"), generator)
        assert len(set(chosen.tolist())) == count
        hits[chosen.numpy()] += 1
    assert hits.sum() == 3000 * count
    if count < population:
        assert stats.chisquare(hits).pvalue > 1e-3


def test_sampling_without_replacement_from_many():
    population, generator = _FEW_PIXELS + 4464, torch.Generator().manual_seed(0)
    hits = np.zeros(10)
    first = np.zeros(10)
    for count in (100, 3000, population // 4):  # the last has about as many repeated draws as there can be
        for _ in range(400 if count < 1000 else 20):
            chosen = _distinct(population, count, torch.device("cpu"), generator)
            assert len(set(chosen.tolist())) == count
            assert 0 <= int(chosen.min()) <= int(chosen.max()) < population
            if count == 100:
                hits += np.bincount(chosen.numpy() * 10 // population, minlength=10)
                first[int(chosen[0]) * 10 // population] += 1
    assert stats.chisquare(hits).pvalue > 1e-3
    assert stats.chisquare(first).pvalue > 1e-3


def test_density_extremes():
    alike = torch.zeros(1, 4, 10, 10)
    assert soft_neighbourhood_density(alike).item() == pytest.approx(math.log(100), rel=1e-5)
    assert soft_neighbourhood_density(alike, samples=7).item() == pytest.approx(math.log(7), rel=1e-5)
    apart = 80 * torch.eye(4).reshape(1, 4, 2, 2)
    assert 0 <= soft_neighbourhood_density(apart, temperature=1000.0).item() < 1e-6
    assert soft_neighbourhood_density(torch.zeros(2, 3, 0, 4)).item() == 0.0
    assert soft_neighbourhood_density(torch.zeros(0, 3, 4, 4)).item() == 0.0
    broken = alike.clone()
    broken[0, 1, 0, 0] = math.nan
    assert soft_neighbourhood_density(broken, samples=100).isnan()


def test_scores_take_no_gradient_and_change_nothing():
    logits = random_logits().requires_grad_()
    before = logits.detach().clone()
    for score in (soft_neighbourhood_density, entropy_score):
        assert not score(logits).requires_grad
        assert torch.equal(logits.detach(), before)


@pytest.mark.parametrize("shape", [(1, 2, 1, 1), (2, 5, 7, 9), (1, 19, 200, 150), (2, 2, 3, 2)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_entropy_by_loops(shape, dtype):
    logits = random_logits(*shape).to(dtype)
    score = entropy_score(logits)
    assert score.dtype == torch.float32
    assert score.item() == pytest.approx(oracle.entropy_by_loops(pixels_of(logits)), rel=1e-5, abs=1e-6)


def test_entropy_edges():
    assert entropy_score(torch.zeros(1, 2, 0, 0)).item() == 0.0
    logits = random_logits(1, 3, 4, 4)
    logits[0, 1, 2, 2] = math.nan
    assert entropy_score(logits).item() == pytest.approx(oracle.entropy_by_loops(pixels_of(logits)), rel=1e-5)
    assert entropy_score(torch.full((1, 3, 2, 2), math.nan)).item() == 0.0
    assert entropy_score(saturated_logits(32, 32)[:, :, :1, :1] * 50).item() == pytest.approx(1.0)
    lowest = torch.tensor([1 / math.e, (1 - 1 / math.e) / 2, (1 - 1 / math.e) / 2]).log().reshape(1, 3, 1, 1)
    assert entropy_score(lowest).item() == pytest.approx(1 - 2 / (math.e * math.log(2)), abs=1e-6)


@pytest.mark.parametrize("score", [soft_neighbourhood_density, entropy_score])
def test_scores_compile(score):
    logits = random_logits(height=5, width=4)
    fast = torch.compile(score, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(fast(logits), score(logits))


@pytest.mark.parametrize("score", [soft_neighbourhood_density, entropy_score])
@pytest.mark.parametrize(
    ("logits", "error", "message"),
    [
        (np.zeros((1, 2, 3, 3)), TypeError, "`logits`: expected a torch.Tensor, got ndarray"),
        (torch.zeros(1, 2, 3, 3, dtype=torch.int64), TypeError, "`logits`: expected a floating-point dtype"),
        (torch.zeros(2, 3, 3), ValueError, r"`logits`: expected \(B, C, H, W\), got \(2, 3, 3\)"),
    ],
)
def test_raises(score, logits, error, message):
    with pytest.raises(error, match=message):
        score(logits)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"samples": 0}, ValueError, "`samples`: expected at least 1, got 0"),
        ({"samples": 10.0}, TypeError, "`samples`: expected an int, got float"),
        ({"temperature": 0}, ValueError, "`temperature`: expected a value in"),
        ({"temperature": "hot"}, TypeError, "`temperature`: expected a number, got str"),
    ],
)
def test_density_raises(keywords, error, message):
    with pytest.raises(error, match=message):
        soft_neighbourhood_density(random_logits(), **keywords)


@pytest.mark.gpu
def test_scores_on_the_gpu():
    logits = random_logits(height=9, width=10).cuda()
    expected = oracle.density_by_loops(pixels_of(logits), 20.0)
    with never_waits():
        scores = soft_neighbourhood_density(logits, samples=1000), entropy_score(logits)
        many = soft_neighbourhood_density(torch.zeros(1, 3, 300, 400, device="cuda"))
    assert scores[0].item() == pytest.approx(expected, rel=1e-3)
    assert scores[1].item() == pytest.approx(oracle.entropy_by_loops(pixels_of(logits)), rel=1e-4)
    assert many.item() == pytest.approx(math.log(100), rel=1e-4)
