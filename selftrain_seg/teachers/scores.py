"""Scores of a network on images without labels, computed from its output."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from selftrain_seg import _checks, ops
from selftrain_seg.ops.random import uniform_integers
from selftrain_seg.ops.sampling import directions, distinct

__all__ = ["entropy_score", "soft_neighbourhood_density"]

# Up to this number of pixels, a permutation of all of them is cheap.
_FEW_PIXELS = 1 << 16


def soft_neighbourhood_density(
    logits: Tensor, *, samples: int = 100, temperature: float = 20.0, generator: torch.Generator | None = None
) -> Tensor:
    """Measure how densely pixels cluster in the network's output; higher is better.

    With f_i the L2-normalised probabilities of N random pixels and ``P_i = softmax_j(temperature · f_i · f_j)``, the
    score is ``-(1/N) Σ_i Σ_j P_ij log P_ij``. It is log N if all pixels are alike, and small if each is isolated.

    This is the form of DT-ST, which includes j = i; Saito et al. leave it out.

    Args:
        logits: (B, C, H, W), any floating-point dtype; detached. The pixels of all images are one population.
            Computed for the sampled pixels only, in float32 and their similarities in float64.
        samples: N, drawn without replacement; all pixels if there are fewer. DT-ST: 100.
        temperature: factor of the similarities, above 0. DT-ST: 20.
        generator: source of the random numbers, on the device of ``logits``; None for torch's default one.

    Returns:
        () float32 in [0, log N] in nats; 0 without pixels, NaN if a sampled pixel has a NaN logit.

    Raises:
        TypeError: ``logits`` is not a floating-point tensor; ``samples`` is not an int; ``temperature`` is not a
            number.
        ValueError: ``logits`` is not (B, C, H, W); ``samples`` or ``temperature`` is out of range.

    References:
        Saito et al., "Tune it the Right Way", ICCV 2021, arXiv:2108.10860, Eq. 1-3. Zhao et al., "Towards Better
        Stability and Adaptability: Improve Online Self-Training for Model Adaptation in Semantic Segmentation",
        CVPR 2023.

    Example:
        >>> import torch
        >>> alike = torch.zeros(1, 3, 2, 2)
        >>> alike[:, 0] = 9.0
        >>> soft_neighbourhood_density(alike)  # log 4
        tensor(1.3863)
        >>> halves = alike.clone()
        >>> halves[..., 1] = halves[..., 1].roll(1, dims=1)
        >>> soft_neighbourhood_density(halves)  # log 2
        tensor(0.6931)
    """
    _checks.check_logits(logits)
    _checks.check_count(samples, "samples")
    _checks.check_real(temperature, "temperature", 0.0, float("inf"), open_low=True)
    batch, _, height, width = logits.shape
    pixels = batch * height * width
    if pixels == 0:
        return logits.new_zeros((), dtype=torch.float32)
    chosen = _distinct(pixels, min(samples, pixels), logits.device, generator)
    vectors = directions(logits, chosen)  # float64, unaffected by autocast
    similar = torch.addmm(vectors.new_empty(()), vectors, vectors.T, beta=0, alpha=temperature)  # beta=0 ignores it
    total: Tensor = torch.special.entr(similar.softmax(dim=1)).sum(dtype=torch.float32)
    return total / len(chosen)


def entropy_score(logits: Tensor) -> Tensor:
    """Measure how certain the network is: the mean over pixels of ``1 + 2 m log2 m`` with m its confidence.

    Higher is better. A pixel scores 1 at m = 1, 0 at m = 1/2, and the minimum, -0.06, at m = 1/e.

    Args:
        logits: (B, C, H, W), any floating-point dtype; detached. Computed in float32 without saturation.

    Returns:
        () float32; 0 without pixels. Pixels with a NaN logit are left out.

    Raises:
        TypeError: ``logits`` is not a floating-point tensor.
        ValueError: ``logits`` is not (B, C, H, W).

    References:
        Zhao et al., CVPR 2023 (DT-ST), the variant ENT of the dynamic teacher update.

    Example:
        >>> import torch
        >>> entropy_score(torch.tensor([0.5, 0.5]).log().reshape(1, 2, 1, 1)).abs() < 1e-6
        tensor(True)
    """
    _checks.check_logits(logits)
    score = ops.read(logits.detach()).score
    usable = (score == score).sum()  # not NaN
    uncertain = torch.special.entr(score.sigmoid()).nansum(dtype=torch.float64)  # -m log m
    return (torch.sub(usable, uncertain, alpha=2 / math.log(2)) / usable.clamp(min=1)).float()


def _distinct(population: int, count: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """(count,) different integers in [0, population), every set equally likely."""
    if population <= max(_FEW_PIXELS, 4 * count):
        return torch.randperm(population, generator=generator, device=device)[:count]
    # Take the first distinct ones of twice as many draws. Too few distinct draws are very unlikely (1e-200 for a count
    # of 100); pixel 0 then fills the remaining places.
    return distinct(uniform_integers(1, 2 * count, device, generator)[0], population, count)
