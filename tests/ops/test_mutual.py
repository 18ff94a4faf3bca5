"""The fused operator of the mutual loss; its values and gradients are compared with the oracle in ``tests/losses``."""

import pytest
import torch

from selftrain_seg import losses
from selftrain_seg.ops import mutual
from tests.helpers import layouts
from tests.losses.cases import make_labels, make_logits, make_map

SHAPE = (2, 4, 3, 5)
GAMMAS = torch.tensor([2.5, 0.5], dtype=torch.float64)


def inputs(dtype=torch.float32, layout="contiguous"):
    logits = layouts(make_logits(SHAPE, dtype))[layout]
    return logits, make_labels(SHAPE), make_map(SHAPE, seed=3).float()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("flip", [False, True])
def test_operator_is_as_the_compiler_expects(dtype, layout, flip):
    logits, labels, confidence = inputs(dtype, layout)
    for normalize, is_pseudo in (("labelled", None), ("none", torch.tensor([True, False]))):
        arguments = (labels, confidence, is_pseudo, GAMMAS, flip, normalize, 255)
        torch.library.opcheck(torch.ops.selftrain_seg.mutual_loss, (logits.detach().requires_grad_(), *arguments))


@pytest.mark.parametrize("flip", [False, True])
def test_labels_and_weights_make_it_a_weighted_loss(flip):
    logits, labels, confidence = inputs()
    loss, _, _, chosen, weight = mutual._forward(logits, labels, confidence, None, GAMMAS, flip, "labelled", 255)
    torch.testing.assert_close(losses.cross_entropy(logits, chosen, pixel_weight=weight), loss)
    assert torch.equal(chosen == 255, labels == 255)
    assert bool((chosen != labels).any()) == flip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("flip", [False, True])
def test_no_power_is_plain_cross_entropy(dtype, flip):
    logits, labels, confidence = inputs(dtype)
    for options in ({}, {"normalize": "all"}, {"reduction": "none"}):
        mine = losses.dynamic_mutual_loss(
            logits, labels, confidence, gamma_agree=0.0, gamma_disagree=0.0, flip=flip, **options
        )
        assert torch.equal(mine, losses.cross_entropy(logits, labels, **options))
