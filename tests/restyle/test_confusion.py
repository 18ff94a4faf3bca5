"""Counts, IoU, precision and recall of a whole set against loops; a network on restyled images."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import selftrain_seg
from selftrain_seg.restyle import ConfusionMatrix, match_moments, restyled_confusion, swap_amplitudes
from tests.helpers import layouts, never_waits, random_logits
from tests.oracles import restyle as oracle

C = 5


def labels(seed=0, batch=2, size=(7, 9)):
    drawn = torch.randint(-1, C, (batch, *size), generator=torch.Generator().manual_seed(seed))
    return torch.where(drawn < 0, 255, drawn)


def test_against_loops():
    matrix, expected = ConfusionMatrix(C), np.zeros((C, C + 1), dtype=np.int64)
    for seed in range(3):
        logits, truth = random_logits(classes=C, seed=seed), labels(seed)
        logits[:, 3] = -100  # never predicted
        truth = truth.masked_fill(truth == 4, 255)  # never true
        logits[0, 1, :2] = torch.nan
        matrix.update(logits, truth)
        predicted = logits.numpy().argmax(1)
        predicted[0, :2] = -1
        expected += oracle.confusion(predicted, truth.numpy(), C)
    summary = matrix.compute()
    assert summary.counts.tolist() == expected.tolist()
    for c, (iou, precision, recall) in enumerate(oracle.scores(expected)):
        for found, value in ((summary.iou, iou), (summary.precision, precision), (summary.recall, recall)):
            assert found[c].isnan() if value is None else found[c].item() == value
    assert summary.precision[3].isnan()
    assert summary.recall[4].isnan()
    assert summary.iou[3] == 0
    assert summary.miou == np.nanmean(summary.iou.numpy())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_dtypes_and_layouts(dtype):
    logits, truth = random_logits(classes=C), labels()
    expected = ConfusionMatrix(C)
    expected.update(logits, truth)
    for one in (*layouts(logits).values(), logits.bfloat16().float()):
        matrix = ConfusionMatrix(C)
        matrix.update(one, truth.to(dtype))
        if not torch.equal(one.argmax(1), logits.argmax(1)):
            continue
        assert torch.equal(matrix.counts, expected.counts)


def test_many_classes_in_uint8():
    """The row of class 200 is no number that a byte holds."""
    matrix, logits = ConfusionMatrix(201), torch.zeros(1, 201, 1, 1)
    logits[0, 3] = 1
    matrix.update(logits, torch.full((1, 1, 1), 200, dtype=torch.uint8))
    assert matrix.counts[200, 3] == 1
    assert matrix.counts.sum() == 1


def test_another_ignore_index():
    matrix = ConfusionMatrix(C, ignore_index=-1)
    matrix.update(random_logits(classes=C), torch.where(labels() == 255, -1, labels()))
    expected = ConfusionMatrix(C)
    expected.update(random_logits(classes=C), labels())
    assert torch.equal(matrix.counts, expected.counts)


def test_nothing_to_count():
    matrix = ConfusionMatrix(C)
    assert matrix.compute().miou.isnan()
    matrix.update(random_logits(0, C), labels(batch=0))
    matrix.update(random_logits(2, C), torch.full((2, 7, 9), 255))
    assert matrix.counts.sum() == 0
    assert matrix.compute().iou.isnan().all()


def test_results_are_no_view_of_the_state():
    matrix = ConfusionMatrix(C)
    matrix.update(random_logits(classes=C), labels())
    counts = matrix.compute().counts
    before = counts.clone()
    matrix.update(random_logits(classes=C), labels())
    assert torch.equal(counts, before)


def test_update_compiles():
    matrix, eager = ConfusionMatrix(C), ConfusionMatrix(C)
    torch.compile(matrix.update, fullgraph=True)(random_logits(classes=C), labels())
    eager.update(random_logits(classes=C), labels())
    assert torch.equal(matrix.counts, eager.counts)


def test_errors_of_the_matrix():
    with pytest.raises(ValueError, match="`num_classes`: expected at least 2, got 1"):
        ConfusionMatrix(1)
    with pytest.raises(ValueError, match="`ignore_index`: expected a value outside the classes"):
        ConfusionMatrix(C, ignore_index=2)
    matrix = ConfusionMatrix(C)
    with pytest.raises(ValueError, match="`logits`: expected 5 classes on dimension 1, got 4"):
        matrix.update(random_logits(classes=4), labels())
    with pytest.raises(ValueError, match=r"`labels`: expected \(B, H, W\) = \(2, 7, 9\)"):
        matrix.update(random_logits(classes=C), labels(size=(7, 8)))
    with pytest.raises(TypeError, match="`labels`: expected an integer dtype"):
        matrix.update(random_logits(classes=C), labels().float())
    with pytest.raises(ValueError, match="`logits`: expected device cpu"):
        matrix.update(random_logits(classes=C).to("meta"), labels().to("meta"))
    with selftrain_seg.value_checks(), pytest.raises(ValueError, match=r"`labels`: expected values in .* got 9"):
        matrix.update(random_logits(classes=C), torch.full((2, 7, 9), 9))


# On restyled images


class Threshold(nn.Module):
    """Class 1 where the mean of the channels is above a half; keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.5))
        self.seen = []

    def forward(self, images):
        assert not self.training
        assert not torch.is_grad_enabled()
        self.seen.append(images)
        grey = images.mean(1, keepdim=True)
        return {"out": torch.cat([self.level - grey, grey - self.level], 1)}


def pairs(count=3, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.rand(batch, 3, 6, 8, generator=generator), torch.randint(0, 2, (batch, 6, 8), generator=generator))
        for _ in range(count)
    ]


def styles(count=2, batch=3, seed=9):
    generator = torch.Generator().manual_seed(seed)
    return [0.3 * torch.rand(batch, 3, 5, 7, generator=generator) + 0.2 for _ in range(count)]


@pytest.mark.parametrize("restyle", [match_moments, partial(swap_amplitudes, beta=0.2)])
def test_the_network_sees_restyled_images(restyle):
    net, source, target = Threshold(), pairs(), styles()
    summary = restyled_confusion(net, source, target, num_classes=2, restyle=restyle)
    expected = np.zeros((2, 3), dtype=np.int64)
    for number, ((images, truth), seen) in enumerate(zip(source, net.seen, strict=True)):
        style = target[number % len(target)]  # begun again
        for image, shown in zip(images, seen, strict=True):
            options = [restyle(image[None], one[None])[0] for one in style]
            assert any(torch.allclose(shown, option, atol=1e-6) for option in options)
        predicted = (seen.mean(1) > 0.5).long().numpy()
        expected += oracle.confusion(predicted, truth.numpy(), 2)
    assert summary.counts.tolist() == expected.tolist()


def test_partners_are_random_and_the_same_at_each_call():
    one, two, three = Threshold(), Threshold(), Threshold()
    source, target = pairs(8, 4), styles(1, 20)
    restyled_confusion(one, source, target, num_classes=2)
    restyled_confusion(two, source, target, num_classes=2)
    restyled_confusion(three, source, target, num_classes=2, generator=torch.Generator().manual_seed(5))
    assert all(torch.equal(a, b) for a, b in zip(one.seen, two.seen, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one.seen, three.seen, strict=True))
    means = torch.cat([images.mean((1, 2, 3)) for images in one.seen])
    assert len(means.mul(1e4).round().unique()) > 8  # of 20 styles


def test_the_network_comes_back_as_it_was():
    net = Threshold().train()
    restyled_confusion(net, pairs(), styles(), num_classes=2)
    assert net.training

    def fails(images, style):
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        restyled_confusion(net, pairs(), styles(), num_classes=2, restyle=fails)
    assert net.training


def test_smaller_logits_are_enlarged():
    net = nn.Conv2d(3, 4, 2, stride=2)
    assert restyled_confusion(net, pairs(), styles(), num_classes=4).counts.sum() == 3 * 2 * 48


def test_a_network_without_parameters():
    class Fixed(nn.Module):
        def forward(self, images):
            return images

    assert restyled_confusion(Fixed(), pairs(), styles(), num_classes=3).counts.sum() == 3 * 2 * 48


def test_target_loaders_give_tuples_too():
    target = [(images, torch.zeros(1)) for images in styles()]
    found = restyled_confusion(Threshold(), pairs(), target, num_classes=2)
    assert torch.equal(found.counts, restyled_confusion(Threshold(), pairs(), styles(), num_classes=2).counts)


def test_empty_batches():
    source, target = [*pairs(), *pairs(1, 0)], [styles(1, 0)[0], *styles()]
    found = restyled_confusion(Threshold(), source, target, num_classes=2)
    assert torch.equal(found.counts, restyled_confusion(Threshold(), pairs(), styles(), num_classes=2).counts)
    assert restyled_confusion(Threshold(), [], styles(), num_classes=2).miou.isnan()


def test_errors_of_validation():
    net = Threshold()
    with pytest.raises(ValueError, match="`target`: expected batches with at least one image, got none"):
        restyled_confusion(net, pairs(), [], num_classes=2)
    with pytest.raises(ValueError, match="pass a list or a loader, which can be iterated again"):
        restyled_confusion(net, pairs(), iter(styles()), num_classes=2)
    with pytest.raises(TypeError, match=r"`source`: expected batches \(images, labels\), got Tensor"):
        restyled_confusion(net, styles(), styles(), num_classes=2)
    with pytest.raises(TypeError, match="`source`: expected a floating-point dtype"):
        restyled_confusion(net, [(images.byte(), truth) for images, truth in pairs()], styles(), num_classes=2)
    with pytest.raises(TypeError, match=r"`target`: expected a torch\.Tensor, got str"):
        restyled_confusion(net, pairs(), ["image.png"], num_classes=2)
    with pytest.raises(ValueError, match="`logits`: expected 3 classes on dimension 1, got 2"):
        restyled_confusion(net, pairs(), styles(), num_classes=3)


@pytest.mark.gpu
def test_counts_on_the_gpu():
    matrix, expected = ConfusionMatrix(C).cuda(), ConfusionMatrix(C)
    logits, truth = random_logits(classes=C), labels()
    with never_waits():
        matrix.update(logits.cuda(), truth.cuda())
    expected.update(logits, truth)
    assert torch.equal(matrix.counts.cpu(), expected.counts)
    found = restyled_confusion(Threshold().cuda(), pairs(), styles(), num_classes=2)  # loaders give host tensors
    assert found.counts.is_cuda
    assert found.counts.sum() == 3 * 2 * 48
