"""Statistics of a set against NumPy, and what must not change while they are estimated."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from selftrain_seg.batchnorm import (
    add_domain,
    estimate_statistics,
    freeze_batchnorm,
    get_statistics,
    set_statistics,
    use_domain,
)
from selftrain_seg.teachers import predict_in_parts
from tests.batchnorm.nets import Pixels, assert_state, state, target, trained
from tests.oracles import batchnorm as oracle


def by_numpy(net, batches, passes):
    weights = [conv.weight.detach().flatten(1).numpy() for conv in net.convs]
    affine = [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in net.norms]
    pixels = [batch.movedim(1, -1).flatten(0, -2).double().numpy() for batch in batches]
    found = oracle.statistics(pixels, weights, passes=passes, affine=affine)
    return {
        f"norms.{k}.{entry}": torch.from_numpy(values)
        for k, layer in enumerate(found)
        for entry, values in zip(("running_mean", "running_var"), layer, strict=True)
    }


def assert_close(found, expected, **tolerance):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].to(tensor), tensor, **tolerance, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("passes", [1, 2, 3, 4])
def test_against_numpy(passes):
    net, batches = trained().double(), [batch.double() for batch in target()]
    expected = by_numpy(net, batches, passes)
    assert_close(estimate_statistics(net, batches, passes=passes), expected, rtol=1e-12, atol=1e-12)
    found = estimate_statistics(net.float(), [batch.float() for batch in batches], passes=passes)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert_close(found, expected, rtol=2e-5, atol=2e-6)


def test_one_batch_is_what_torch_finds():
    net, (batch,) = trained(dropout=0.0), target((4,))
    found = estimate_statistics(net, [batch])
    update_bn([batch], net)
    assert_close(found, get_statistics(net), rtol=1e-5, atol=1e-6)


def test_with_as_many_passes_as_layers_batches_do_not_matter():
    net, images = trained().double(), torch.cat(target((7,))).double()
    whole = estimate_statistics(net, [images], passes=3)
    assert_close(estimate_statistics(net, [images], passes=5), whole, rtol=1e-10, atol=1e-12)
    for sizes in ([1] * 7, [3, 4], [2, 2, 3]):
        parts = images.split(sizes)
        assert_close(estimate_statistics(net, parts, passes=3), whole, rtol=1e-10, atol=1e-12)
        two = estimate_statistics(net, parts, passes=2)
        assert not torch.allclose(two["norms.2.running_var"], whole["norms.2.running_var"], rtol=1e-6)
        assert torch.allclose(two["norms.1.running_var"], whole["norms.1.running_var"], rtol=1e-10)


def test_the_spread_between_batches_counts_where_torch_loses_it():
    norm, images = nn.BatchNorm2d(1), [torch.full((1, 1, 2, 2), value) for value in (0.0, 4.0)]
    assert estimate_statistics(norm, images)["running_var"].item() == pytest.approx(4 * 8 / 7)
    update_bn(images, norm)
    assert norm.running_var.item() == 0


def test_large_values_with_a_small_spread():
    """The sums of squares would drown it in float32."""
    values = torch.randn(6, 1, 50, 50, generator=torch.Generator().manual_seed(0)) + 3000
    found = estimate_statistics(nn.BatchNorm2d(1), values.split(1))
    torch.testing.assert_close(found["running_var"].double(), values.double().var().view(1), rtol=1e-4, atol=0)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_dimensions(dims):
    norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims](4)
    shape = {1: (5,), 2: (5, 6), 3: (2, 3, 4)}[dims]
    batches = [torch.randn(size, 4, *shape, generator=torch.Generator().manual_seed(size)) for size in (1, 3)]
    found = estimate_statistics(norm, batches)
    values = torch.cat(batches).movedim(1, 0).flatten(1)
    torch.testing.assert_close(found["running_mean"], values.mean(1))
    torch.testing.assert_close(found["running_var"], values.var(1))


def test_vectors():
    values = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    found = estimate_statistics(nn.BatchNorm1d(4), values.split(3))  # the last is a single one
    torch.testing.assert_close(found["running_var"], values.var(0))


def test_sync_batchnorm_needs_neither_ranks_nor_a_gpu():
    net, batches = trained(), target()
    expected = estimate_statistics(net, batches)
    assert_close(estimate_statistics(nn.SyncBatchNorm.convert_sync_batchnorm(net), batches), expected, rtol=0, atol=0)


def test_a_layer_that_is_called_twice_sees_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = self.again = nn.BatchNorm2d(3)

        def forward(self, x):
            self.norm(x)
            return self.again(x + 2)

    batches = target()
    found = estimate_statistics(Twice(), batches)
    assert list(found) == ["norm.running_mean", "norm.running_var"]
    values = torch.cat([torch.cat([batch, batch + 2]) for batch in batches]).movedim(1, 0).flatten(1)
    torch.testing.assert_close(found["norm.running_mean"], values.mean(1))
    torch.testing.assert_close(found["norm.running_var"], values.var(1))


class Pooled(nn.Module):
    """The image's mean, normalised, as in ASPP; and a layer that is never called."""

    def __init__(self):
        super().__init__()
        self.norm, self.unused = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.after = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.after(x + self.norm(x.mean((2, 3), keepdim=True)))


def test_a_single_value_a_channel():
    net, images = Pooled(), torch.cat(target((6,)))
    net.norm.running_mean.fill_(0.3)
    net.unused.running_mean.fill_(9)
    found = estimate_statistics(net, images.split(1))
    pooled = images.mean((2, 3))
    torch.testing.assert_close(found["norm.running_mean"], pooled.mean(0))
    torch.testing.assert_close(found["norm.running_var"], pooled.var(0))
    seen = images + (pooled[..., None, None] - 0.3) / math.sqrt(1 + 1e-5)  # normalised by what it had
    torch.testing.assert_close(found["after.running_mean"], seen.mean((0, 2, 3)))
    assert found["unused.running_mean"].tolist() == [9, 9, 9]
    update = copy.deepcopy(net)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        update_bn(images.split(1), update)
    # One value in the whole set is no variance.
    assert estimate_statistics(net, [images[:1]])["norm.running_var"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_in_half_precision(dtype):
    net, batches = trained().to(dtype), [batch.to(dtype) for batch in target()]
    found = estimate_statistics(net, batches)
    assert {tensor.dtype for tensor in found.values()} == {dtype}
    assert_close(found, estimate_statistics(net.float(), [batch.float() for batch in batches]), rtol=0.03, atol=0.02)
    many = [torch.rand(1, 1, 300, 300, generator=torch.Generator().manual_seed(k)).to(dtype) for k in range(4)]
    exact = torch.cat(many).double()
    found = estimate_statistics(nn.BatchNorm2d(1).to(dtype), many)  # more values than the dtype can count
    assert found["running_mean"].item() == exact.mean().to(dtype).item()
    assert found["running_var"].item() == pytest.approx(exact.var().item(), rel=2**-7)


def test_autocast():
    net, batches = trained(), target()
    expected = estimate_statistics(net, batches)
    with torch.autocast("cpu", torch.bfloat16):
        found = estimate_statistics(net, batches)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert_close(found, expected, rtol=0.03, atol=0.02)
    assert not torch.equal(found["norms.2.running_var"], expected["norms.2.running_var"])


def test_layouts():
    net, batches = trained(), target()
    others = [batch.contiguous(memory_format=torch.channels_last) for batch in batches]
    assert_close(estimate_statistics(net, others), estimate_statistics(net, batches), rtol=1e-5, atol=1e-6)


class Broken(Exception):
    pass


def breaks(batches):
    yield from batches
    raise Broken


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("error", [False, True])
def test_the_network_comes_back_as_it_was(training, error):
    net = trained().train(training)
    net.norms[1].eval()
    net.norms[2].momentum, net.dropout.training = None, True
    before, modes = state(net), [module.training for module in net.modules()]
    tensors, random = dict(net.named_buffers()), torch.get_rng_state()
    if error:
        with pytest.raises(Broken):
            estimate_statistics(net, breaks(target()))
        with pytest.raises(RuntimeError, match="channels"):
            estimate_statistics(net, [torch.ones(1, 7, 2, 2)])
    else:
        estimate_statistics(net, target(), passes=2)
    assert_state(net, before)
    assert [module.training for module in net.modules()] == modes
    assert all(tensor is tensors[name] for name, tensor in net.named_buffers())
    assert torch.equal(torch.get_rng_state(), random)  # no dropout
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert net.norms[2].momentum is None
    assert all(layer.track_running_stats for layer in net.norms)


def test_an_interrupted_pass_leaves_the_network_as_it_was():
    def interrupted():
        yield from target()
        raise KeyboardInterrupt

    net = trained()
    before = state(net)
    with pytest.raises(KeyboardInterrupt):
        estimate_statistics(net, interrupted())
    assert_state(net, before)
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_dropout_is_off():
    net, batches = trained(), target()
    found = estimate_statistics(net.train(), batches)
    net.dropout.p = 0.0
    assert_close(estimate_statistics(net, batches), found, rtol=0, atol=0)


def test_hooks_of_others_are_called_and_stay():
    net, seen = trained(), []
    net.norms[0].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    net.norms[0].register_forward_hook(lambda module, args, output: seen.append(output))
    plain, batches = trained(), target()
    found = estimate_statistics(net, batches)
    expected = estimate_statistics(plain, batches)
    torch.testing.assert_close(found["norms.0.running_mean"], expected["norms.0.running_mean"] + 1)
    assert len(seen) == len(batches)
    assert len(net.norms[0]._forward_pre_hooks) == 1


@pytest.mark.parametrize("way", ["torch.compile", "in place", "a part", "forward"])
def test_compiled_networks(way):
    net, batches = trained(), target()
    expected = estimate_statistics(net, batches)
    forward = None
    if way == "torch.compile":
        compiled = torch.compile(net, backend="eager")
    elif way == "in place":
        net.compile(backend="eager")
        compiled = net
    elif way == "a part":
        net.norms[1] = torch.compile(net.norms[1], backend="eager")
        compiled = net
    else:
        compiled, forward = net, torch.compile(net, backend="eager")
    with torch.no_grad():
        compiled.eval()(batches[0])
        compiled.train()(batches[0])
        for k in range(3):
            net.norms[k].load_state_dict(trained().norms[k].state_dict()) if way != "a part" else None
        (compiled if forward is None else forward)(batches[0])
    before = state(compiled)
    found = estimate_statistics(compiled, batches, forward=forward)
    assert_close(found, expected, rtol=0, atol=0)
    assert_state(compiled, before)
    set_statistics(compiled, found)
    torch.testing.assert_close(compiled.eval()(batches[0]), copied(found)(batches[0]))


def copied(statistics):
    net = trained()
    set_statistics(net, statistics)
    return net.eval()


def test_frozen_layers_and_domains():
    net, batches = trained(), target()
    expected = estimate_statistics(net, batches)
    freeze_batchnorm(net)
    assert_close(estimate_statistics(net.train(), batches), expected, rtol=0, atol=0)
    add_domain(net, "target")
    with use_domain(net, "target"):
        set_statistics(net, estimate_statistics(net, batches))
    assert_close(get_statistics(net), get_statistics(trained()), rtol=0, atol=0)
    with use_domain(net, "target"):
        assert_close(get_statistics(net), expected, rtol=0, atol=0)


def test_in_parts():
    """Windows that cover the image give each layer the same pixels."""
    net, images = trained(), torch.cat(target((4,), height=8, width=8))
    found = estimate_statistics(net, [images], forward=lambda x: predict_in_parts(net, x, window=(8, 4)))
    whole = estimate_statistics(net, [images[..., :4], images[..., 4:]])
    assert_close(found, whole, rtol=1e-6, atol=1e-6)


def test_batches_of_a_loader():
    net, batches = trained(), target()
    expected = estimate_statistics(net, batches)
    assert_close(estimate_statistics(net, [(batch, None) for batch in batches]), expected, rtol=0, atol=0)
    assert_close(estimate_statistics(net, iter(batches)), expected, rtol=0, atol=0)
    assert_close(estimate_statistics(net, [*batches, batches[0][:0]]), expected, rtol=0, atol=0)


def test_a_group_norm_beside_stays_alone():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.BatchNorm2d(4), nn.InstanceNorm2d(4))
    assert list(estimate_statistics(net, target())) == ["2.running_mean", "2.running_var"]


def test_results_are_no_part_of_the_network():
    net = trained()
    found = estimate_statistics(net, target())
    before = state(net)
    for tensor in found.values():
        tensor.zero_()
    assert_state(net, before)


def test_errors():
    with pytest.raises(TypeError, match=r"`net`: expected a torch\.nn\.Module, got str"):
        estimate_statistics("net", target())
    with pytest.raises(ValueError, match="`net`: expected BatchNorm layers with running statistics, found none in Co"):
        estimate_statistics(nn.Conv2d(3, 4, 1), target())
    with pytest.raises(ValueError, match="found none in BatchNorm2d"):
        estimate_statistics(nn.BatchNorm2d(3, track_running_stats=False), target())
    with pytest.raises(ValueError, match="`net`: expected initialised layers, got lazy layer 0; run `net` once first"):
        estimate_statistics(nn.Sequential(nn.LazyBatchNorm2d()), target())
    with pytest.raises(ValueError, match="`batches`: expected images on at least one rank, got none"):
        estimate_statistics(Pixels(), [])
    with pytest.raises(ValueError, match="got none"):
        estimate_statistics(Pixels(), target((0,)))
    with pytest.raises(ValueError, match="`batches`: expected a list or a loader for more than one pass"):
        estimate_statistics(Pixels(), iter(target()), passes=2)
    with pytest.raises(ValueError, match="`passes`: expected at least 1, got 0"):
        estimate_statistics(Pixels(), target(), passes=0)
    with pytest.raises(TypeError, match=r"`batches`: expected a torch\.Tensor, got dict"):
        estimate_statistics(Pixels(), [{"images": target()[0]}])
    with pytest.raises(TypeError, match=r"`batches`: expected a torch\.Tensor, got tuple"):
        estimate_statistics(Pixels(), [()])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_images_that_are_not_finite(bad):
    net, batches = trained(), target()
    batches[1][0, 0, 0, 0] = bad
    before = state(net)
    with pytest.raises(ValueError, match=r"got NaN or infinity at norms\.0; check that images and weights are finite"):
        estimate_statistics(net, batches)
    assert_state(net, before)


def test_the_oracle_knows_the_definition():
    """By hand: values 1, 1, 3, 7 have mean 3 and Σ (x - 3)² / 3 = 24 / 3."""
    ((mean, var),) = oracle.statistics([np.array([[1.0], [1.0], [3.0]]), np.array([[7.0]])], [np.eye(1)])
    assert (mean.item(), var.item()) == (3, 8)


@pytest.mark.gpu
@pytest.mark.parametrize("sync", [False, True])
def test_on_the_gpu(sync):
    net, batches = trained().double(), [batch.double() for batch in target()]
    expected = estimate_statistics(net, batches, passes=2)
    net = nn.SyncBatchNorm.convert_sync_batchnorm(net) if sync else net
    found = estimate_statistics(net.cuda(), batches, passes=2)  # loaders give host tensors
    assert all(tensor.is_cuda for tensor in found.values())
    assert_close({name: tensor.cpu() for name, tensor in found.items()}, expected, rtol=1e-10, atol=1e-12)
