"""Agreement of a network with itself on the mirror image."""

import math

import pytest
import torch
from torch import nn

from selftrain_seg.teachers import AgreementStatistics, flip_agreement


def images(batch=2):
    return torch.rand(batch, 3, 6, 9, generator=torch.Generator().manual_seed(0))


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Conv2d(3, 4, 3, padding=1)


def test_by_loops():
    net, batch, same = network(), images(), 0
    here, there = net(batch).argmax(1), net(batch.flip(-1)).argmax(1)
    for image in range(2):
        for row in range(6):
            for column in range(9):
                same += int(here[image, row, column] == there[image, row, 8 - column])
    assert 0 < same < 108
    assert flip_agreement(net, batch).item() == pytest.approx(same / 108)
    statistics = AgreementStatistics(4)
    statistics.update(net(batch), net(batch.flip(-1)).flip(-1))
    assert statistics.compute().share.item() == pytest.approx(same / 108)


def test_a_symmetric_network_agrees():
    net = network()
    with torch.no_grad():
        net.weight.copy_((net.weight + net.weight.flip(-1)) / 2)
    assert flip_agreement(net, images()) > 0.99  # but for rounding
    assert not flip_agreement(net, images()).requires_grad


def test_pixels_without_a_class_are_left_out():
    def spoilt(x):
        logits = network()(x)
        logits[..., 0] = torch.nan  # the left edge, which is the right one of the mirror image
        return {"out": logits}

    inner = flip_agreement(lambda x: network()(x)[..., 1:-1], images())
    assert flip_agreement(spoilt, images()) == inner
    assert flip_agreement(lambda x: network()(x) * math.nan, images()).isnan()
    assert flip_agreement(network(), images(0)).isnan()


def test_half_precision_and_errors():
    assert flip_agreement(network().bfloat16(), images().bfloat16()).dtype == torch.float32
    with pytest.raises(TypeError, match="`images`: expected a floating-point dtype"):
        flip_agreement(network(), images().byte())
    with pytest.raises(ValueError, match="expected at least two classes"):
        flip_agreement(lambda x: x[:, :1], images())
    with pytest.raises(TypeError, match="expected logits"):
        flip_agreement(lambda x: None, images())
