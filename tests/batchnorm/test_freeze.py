"""BatchNorm that stays as it is."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from selftrain_seg.batchnorm import freeze_batchnorm
from selftrain_seg.teachers import MeanTeacher
from tests.batchnorm.nets import assert_state, state, target, trained


def frozen(**settings):
    net = trained(dropout=0.0)
    freeze_batchnorm(net, **settings)
    return net


def test_training_leaves_statistics_and_weights():
    net, images = frozen(), target()[0]
    before, expected = state(net), trained(dropout=0.0).eval()(images)
    net.eval()
    net.train()
    net.norms.train()
    assert net.training
    assert net.norms.training
    torch.testing.assert_close(net(images), expected)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    net(images).square().mean().backward()
    optimizer.step()
    changed = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {*(f"convs.{k}.weight" for k in range(3)), "head.weight", "head.bias"}
    assert list(before) == list(trained().state_dict())


def test_it_computes_what_torchvision_does():
    net, other, images = frozen(), trained(dropout=0.0), target()[0]
    for k, layer in enumerate(other.norms):
        other.norms[k] = FrozenBatchNorm2d(4)
        other.norms[k].load_state_dict(layer.state_dict())
    torch.testing.assert_close(net.train()(images), other.train()(images))


def test_affine():
    net = frozen(affine=False)
    before = state(net)
    net.train()(target()[0]).square().mean().backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    assert not torch.equal(net.norms[0].weight, before["norms.0.weight"])
    assert torch.equal(net.norms[0].running_mean, before["norms.0.running_mean"])
    freeze_batchnorm(net)  # now weights, too
    assert not net.norms[0].weight.requires_grad
    assert net.train().norms[0].training is False
    assert net.norms[0].train(True) is net.norms[0]


@pytest.mark.parametrize("way", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net)),  # noqa: S301, our own
                                 lambda net: MeanTeacher(net).model])  # fmt: skip
def test_copies_are_frozen(way):
    net, images = frozen(), target()[0]
    other = way(net).train()
    before = state(net)
    other(images)
    assert_state(other, before)
    assert isinstance(other.norms[0], nn.BatchNorm2d)
    assert type(other.norms[0]) is type(net.norms[0])
    with torch.no_grad():
        other.norms[0].weight.add_(1)
    assert_state(net, before)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(3), nn.BatchNorm3d(3), nn.SyncBatchNorm(3)])
def test_kinds(layer):
    freeze_batchnorm(layer)
    images = torch.randn(2, 3, *(() if isinstance(layer, nn.BatchNorm1d) else (4, 4, 4)))
    torch.testing.assert_close(layer.train()(images), images / (1 + 1e-5) ** 0.5)
    assert type(layer).__name__.startswith("Frozen")
    assert "Frozen" in repr(layer)


def test_a_layer_with_an_activation():
    """As timm's: a subclass that does more than normalise."""

    class NormAct(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()

    net = nn.Sequential(nn.Conv2d(3, 4, 1), NormAct(4))
    freeze_batchnorm(net)
    assert net.train()(target()[0]).min() == 0
    assert net[1].num_batches_tracked == 0


def test_what_has_no_statistics_stays():
    net = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.GroupNorm(1, 3))
    freeze_batchnorm(net)
    assert net.train()[0].training
    assert net[0].weight.requires_grad
    with pytest.raises(TypeError, match=r"`net`: expected a torch\.nn\.Module"):
        freeze_batchnorm([net])


def test_compiles():
    net, images = frozen().train(), target()[0]
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), net(images))
    assert_state(net, state(frozen()))
