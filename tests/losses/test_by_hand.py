"""Four pixels, two classes, results worked out by hand.

    p = (3/4, 1/4)  label 0        p = (1/4, 3/4)  label 0
    p = (1/2, 1/2)  label 1        p = (3/4, 1/4)  ignored

With A = ln 4/3, B = ln 4 and L = ln 2 the cross entropies are A, B and L; the cross entropies with uniform are
(A + B) / 2 but L in the third pixel; the entropies are E = 3/4 A + 1/4 B but L in the third.
"""

from math import log

import pytest
import torch

from selftrain_seg import losses

A, B, L = log(4 / 3), log(4), log(2)
E = 3 / 4 * A + 1 / 4 * B
CE = (A + B + L) / 3
P = torch.tensor([[[3.0, 1.0], [2.0, 3.0]], [[1.0, 3.0], [2.0, 1.0]]], dtype=torch.float64) / 4
LOGITS = P.log()[None]
LABELS = torch.tensor([[[0, 0], [1, 255]]])


def equals(loss, value):
    torch.testing.assert_close(loss, torch.tensor(value, dtype=torch.float64), rtol=1e-12, atol=1e-15)


def test_regularized():
    equals(losses.mrkld_loss(LOGITS, LABELS, reg_weight=0.5), CE + 0.5 * (A + B + L) / 3)
    equals(losses.mrent_loss(LOGITS, LABELS, reg_weight=0.5), CE - 0.5 * (2 * E + L) / 3)
    equals(losses.mrl2_loss(LOGITS, LABELS, reg_weight=0.5), CE + 0.5 * (10 / 16 + 10 / 16 + 1 / 2) / 3)


def test_regularized_counts():
    # Two images: the picture above and, all labelled 0, one of p = (1/2, 1/2) that is not regularised.
    logits = torch.cat([LOGITS, torch.zeros_like(LOGITS)])
    labels = torch.cat([LABELS, torch.zeros_like(LABELS)])
    image_weight = torch.tensor([2.0, 0.0])
    pixel_weight = torch.ones(2, 2, 2)
    pixel_weight[0, 0, 1] = 0.5
    ce, regulariser = A + B / 2 + L + 4 * L, (A + B) / 2 * 1.5 + L
    arguments = {"reg_weight": 0.5, "image_weight": image_weight, "pixel_weight": pixel_weight}
    # 7 pixels have a label, 3 of them in a regularised image; no weight changes either number.
    equals(losses.mrkld_loss(logits, labels, **arguments), ce / 7 + 0.5 * 2 * regulariser / 3)
    equals(losses.mrkld_loss(logits, labels, **arguments, reduction="sum"), ce + 0.5 * 2 * regulariser)
    whole = losses.mrkld_loss(logits, labels, **arguments, reduction="none")
    first = [A + (A + B) / 2, B / 2 + (A + B) / 4], [L + L, 0.0]
    torch.testing.assert_close(whole, torch.tensor([first, [[L, L], [L, L]]], dtype=torch.float64))


def test_soft():
    soft = torch.tensor([[[1.0, 0.5], [0.25, 0.0]], [[0.0, 0.5], [0.75, 0.0]]])[None]
    equals(losses.cross_entropy(LOGITS, soft), (A + (A + B) / 2 + L) / 3)
    equals(losses.mrkld_loss(LOGITS, soft, reg_weight=0.5), (A + (A + B) / 2 + L) / 3 + 0.5 * (A + B + L) / 3)
    # A row that does not sum to 1 is taken as it is: twice the labels, twice the loss over the same 3 pixels.
    equals(losses.cross_entropy(LOGITS, 2 * soft), 2 * (A + (A + B) / 2 + L) / 3)


def test_region_guided():
    weights = {"confident_weight": 0.5, "ignored_weight": 2.0}
    equals(losses.region_guided_loss(LOGITS, LABELS, **weights), CE + 0.5 * (A + B + L) / 6 + 2.0 * E / 2)
    equals(
        losses.region_guided_loss(LOGITS, LABELS, **weights, per_class=False),
        CE + 0.5 * (A + B + L) / 3 + 2.0 * E,
    )
    whole = losses.region_guided_loss(LOGITS, LABELS, **weights, reduction="none")
    expected = [[A + (A + B) / 4, B + (A + B) / 4], [L + L / 2, 2.0 * E]]
    torch.testing.assert_close(whole[0], torch.tensor(expected, dtype=torch.float64))


def test_region_guided_with_one_region_only():
    every = torch.zeros(1, 2, 2, dtype=torch.int64)
    equals(losses.region_guided_loss(LOGITS, every, confident_weight=0.0), (2 * A + B + L) / 4)
    none = torch.full((1, 2, 2), 255)
    equals(losses.region_guided_loss(LOGITS, none, ignored_weight=1.0, per_class=False), (3 * E + L) / 4)


def test_dynamic():
    equals(losses.dynamic_loss(LOGITS, LABELS, gamma=2.0), (9 / 16 * A + 1 / 16 * B + 1 / 4 * L) / 3)
    labelled = torch.tensor([False])
    equals(losses.dynamic_loss(LOGITS, LABELS, gamma=2.0, is_pseudo=labelled), CE)
    # A second, labelled image with CE: the count is 6.
    both = torch.tensor([True, False])
    equals(
        losses.dynamic_loss(LOGITS.repeat(2, 1, 1, 1), LABELS.repeat(2, 1, 1), gamma=2.0, is_pseudo=both),
        (9 / 16 * A + 1 / 16 * B + 1 / 4 * L + 3 * CE) / 6,
    )


@pytest.mark.parametrize(
    ("label", "confidence", "flip", "weight", "nll"),
    [
        (0, 0.1, False, 3 / 4, A),  # they agree: p_y^1
        (0, 0.9, True, 3 / 4, A),
        (1, 0.9, False, (1 / 4) ** 3, B),  # they do not, the other is surer: p_y^3
        (1, 0.9, True, (1 / 4) ** 3, B),
        (1, 0.6, False, 0.0, B),  # they do not, this one is surer
        (1, 0.6, True, 0.4**3, A),  # ... and teaches itself: (1 - m_B)^3
        (1, 0.75, True, (1 / 4) ** 3, B),  # equally sure counts as the other being surer
        (255, 0.6, True, 0.0, A),
    ],
)
def test_dynamic_mutual(label, confidence, flip, weight, nll):
    logits, labels = LOGITS[:, :, :1, :1], torch.full((1, 1, 1), label)
    confidence = torch.full((1, 1, 1), confidence, dtype=torch.float64)
    arguments = {"gamma_agree": 1.0, "gamma_disagree": 3.0, "flip": flip}
    equals(losses.dynamic_mutual_loss(logits, labels, confidence, **arguments), weight * nll)
    labelled = torch.tensor([False])
    truth = {0: A, 1: B, 255: 0.0}[label]
    equals(losses.dynamic_mutual_loss(logits, labels, confidence, is_pseudo=labelled, **arguments), truth)


def test_dynamic_mutual_counts_pixels_of_weight_zero():
    logits, labels = LOGITS[:, :, :1], torch.tensor([[[0, 0]]])
    confidence = torch.tensor([[[0.5, 0.5]]])
    loss = losses.dynamic_mutual_loss(logits, labels, confidence, gamma_agree=1.0, gamma_disagree=1.0)
    equals(loss, (3 / 4 * A + 0.0) / 2)


def test_negative():
    logits = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64).reshape(1, 3, 1, 1).repeat(1, 1, 1, 2)
    teacher = torch.tensor([[0.6, 0.1, 0.3], [0.2, 0.5, 0.3]]).T.reshape(1, 3, 1, 2)
    one, minus, zero = log(1 + torch.e), log(1 + 1 / torch.e), log(2)
    # Left: classes 1 and 2 are below 1/3. Right: classes 0 and 2.
    equals(losses.negative_loss(logits, teacher), 0.5 * (one + minus + zero + minus) / 4)
    weight = torch.tensor([[[1.0, 0.5]]])
    equals(losses.negative_loss(logits, teacher, pixel_weight=weight), 0.5 * (one + minus + (zero + minus) / 2) / 4)
    exactly = torch.full((1, 2, 1, 1), 0.5)  # a probability of exactly 1/C counts
    equals(losses.negative_loss(logits[:, :2, :, :1], exactly, loss_weight=1.0), (zero + one) / 2)


def test_class_weighted():
    weight = torch.tensor([1.0, 0.5])
    equals(losses.class_weighted_loss(LOGITS, LABELS, weight), (A + B + L / 2) / 3)
    equals(losses.class_weighted_loss(LOGITS, LABELS, weight, normalize="all"), (A + B + L / 2) / 4)
    equals(losses.class_weighted_loss(LOGITS, LABELS, weight, normalize="weights"), (A + B + L / 2) / 2.5)
    # Weights that sum to less than 1 still normalise.
    equals(losses.class_weighted_loss(LOGITS, LABELS, weight / 10, normalize="weights"), (A + B + L / 2) / 2.5)


def test_focal_class_weight():
    confidence = torch.tensor([0.0, 0.5, 1.0, 1.5, -0.5], requires_grad=True)  # clamped to [0, 1]
    weight = losses.focal_class_weight(confidence)
    assert weight.tolist() == [1.0, 0.125, 0.0, 0.0, 1.0]
    assert not weight.requires_grad
    assert losses.focal_class_weight(confidence, exponent=0.0).tolist() == [1.0] * 5


def test_symmetric():
    # Reverse cross entropies 4 · (1 - p_y): 4 · (1/4 + 3/4 + 1/2) / 3 = 2.
    equals(losses.symmetric_loss(LOGITS, LABELS), 0.1 * CE + 2.0)
    equals(losses.symmetric_loss(LOGITS, LABELS, alpha=1.0, beta=0.5, log_zero=-2.0), CE + 0.5)


def test_fairness():
    # The left column says (3/4, 1/4) and (1/2, 1/2), both class 0: p̄_s = (5/8, 3/8), h_s = (1, 0).
    left = torch.tensor([[[True, False], [True, False]]])
    uniform = torch.tensor([0.5, 0.5])
    equals(losses.fairness_loss(LOGITS, uniform, uniform, mask=left), 0.0)
    # All four: class 0 in three, p̄_s = (9/16, 7/16), h_s = (3/4, 1/4): ratios 3/4 and 7/4, scaled 3/10 and 7/10.
    # The running ratios 1 and 3, scaled 1/4 and 3/4.
    running = torch.tensor([0.25, 0.75]), torch.tensor([0.5, 0.5])
    value = 1 / 4 * log(3 / 10) + 3 / 4 * log(7 / 10)
    equals(losses.fairness_loss(LOGITS, *running, loss_weight=1.0), value)
    equals(losses.fairness_loss(LOGITS, *running), 0.01 * value)
    # Class 1 was never predicted so far: class 0 has the whole running distribution.
    absent = torch.tensor([0.25, 0.75]), torch.tensor([1.0, 0.0])
    equals(losses.fairness_loss(LOGITS, *absent, loss_weight=1.0), log(3 / 10))
