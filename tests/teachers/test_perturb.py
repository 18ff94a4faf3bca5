import copy
import math
from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torchvision
from scipy import stats
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from selftrain_seg.teachers import MeanTeacher, perturb_features
from tests.teachers.nets import assert_same, snapshot


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(size=3, channels=3, height=8, width=6):
    return torch.rand(size, channels, height, width, generator=generator(1))


class Net(nn.Module):
    """An encoder that returns two feature maps in a list, and a decoder that takes both."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.encoder = Encoder()
            self.decoder = nn.Conv2d(24, 2, 1)

    def forward(self, images):
        fine, coarse = self.encoder(images)
        return self.decoder(torch.cat([fine, nn.functional.interpolate(coarse, size=fine.shape[-2:])], 1))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 16, 2, 2)

    def forward(self, images):
        fine = self.norm(self.first(images)) + 1
        return [fine, self.second(fine)]


def dropped_by_loops(features, numbers, chance):
    """(B, D, h, w), from a number of each channel of each image."""
    out = np.zeros(features.shape)
    for b, d in np.ndindex(*features.shape[:2]):
        if numbers[b, d] >= chance:
            out[b, d] = features[b, d] / (1 - chance)
    return out


@pytest.mark.parametrize("chance", [0.0, 0.3, 0.5, 1.0])
def test_by_loops(chance):
    module, x = nn.Identity(), batch(4, 11).double()
    with perturb_features(module, chance=chance, generator=generator(3)):
        out = module(x)
    numbers = torch.rand(4, 11, generator=generator(3)).numpy()
    np.testing.assert_allclose(out.numpy(), dropped_by_loops(x.numpy(), numbers, chance), rtol=1e-15)
    assert torch.equal(module(x), x)


def test_the_law_of_dropout2d():
    module, x = nn.Identity(), torch.ones(500, 40, 1, 1)
    with perturb_features(module, chance=0.3, generator=generator()):
        out = module(x)
    kept = out[:, :, 0, 0] > 0
    factor = torch.nn.functional.dropout2d(x, 0.3).max()
    assert torch.equal(out[:, :, 0, 0], kept * factor)
    kept = kept.numpy()
    assert stats.binomtest(int(kept.sum()), kept.size, 0.7).pvalue > 1e-3
    for first, second in ((kept[0::2], kept[1::2]), (kept[:, 0::2], kept[:, 1::2])):  # images, channels
        pairs = np.bincount((first * 2 + second).ravel(), minlength=4)
        assert stats.chisquare(pairs, first.size * np.array([0.09, 0.21, 0.21, 0.49])).pvalue > 1e-3


def test_what_the_decoder_gets():
    """As UniMatch: each of the encoder's feature maps with a draw of its own, from what it was without."""
    net, x = Net().eval(), batch()
    got = []
    net.decoder.register_forward_pre_hook(lambda module, arguments: got.append(arguments[0]))
    clean = net(x)
    with perturb_features(net.encoder, generator=generator(5)):
        perturbed = net(x)
    source = generator(5)
    numbers = [torch.rand(3, channels, generator=source).numpy() for channels in (8, 16)]
    fine, coarse = got[0][:, :8].detach().numpy(), got[0][:, 8:].detach().numpy()
    expected = np.concatenate([dropped_by_loops(f, n, 0.5) for f, n in zip((fine, coarse), numbers, strict=True)], 1)
    np.testing.assert_allclose(got[1].detach().numpy(), expected, rtol=1e-6)
    assert not torch.allclose(clean, perturbed)
    assert torch.equal(net(x), clean)


def test_beside_is_one_pass_for_both():
    net, x, passes = Net(), batch(), []
    twin = copy.deepcopy(net)
    clean = twin(x)
    net.encoder.first.register_forward_hook(lambda *_: passes.append(1))
    with perturb_features(net.encoder, beside=True, generator=generator(5)):
        logits, perturbed = net(x).chunk(2)
    assert len(passes) == 1
    torch.testing.assert_close(logits, clean)
    assert_same(snapshot(net), snapshot(twin))  # BatchNorm of the encoder saw the images once
    with perturb_features(twin.encoder, generator=generator(5)):
        torch.testing.assert_close(perturbed, twin(x))
    perturbed.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_gradients_of_dropped_channels_are_zero():
    module, x = nn.Identity(), batch().requires_grad_()
    with perturb_features(module, generator=generator()):
        out = module(x)
    out.sum().backward()
    assert torch.equal(x.grad, (out.detach() > 0) * 2.0)


Pair = namedtuple("Pair", "fine coarse")


@pytest.mark.parametrize(
    "shape",
    [
        lambda x: x,
        lambda x: [x, x],
        lambda x: (x, [x]),
        lambda x: {"out": x, "aux": x},
        lambda x: OrderedDict(out=x),
        lambda x: Pair(x, x),
        lambda x: [x, None, 3],
    ],
)
def test_whatever_modules_return(shape):
    class Module(nn.Module):
        def forward(self, x, *, scale):
            return shape(x * scale)

    module, x = Module(), torch.ones(2, 40, 2, 2)
    with perturb_features(module, generator=generator()):
        out = module(x, scale=3.0)
    expected = shape(x)
    assert type(out) is type(expected)
    tensors = [leaf for leaf in torch.utils._pytree.tree_leaves(out) if isinstance(leaf, torch.Tensor)]
    assert tensors
    for leaf in tensors:
        assert set(leaf.unique().tolist()) == {0.0, 6.0}
    others = [leaf for leaf in torch.utils._pytree.tree_leaves(out) if not isinstance(leaf, torch.Tensor)]
    assert others == [leaf for leaf in torch.utils._pytree.tree_leaves(expected) if not isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_and_layouts(dtype):
    module = nn.Identity()
    x = batch(4, 8).to(dtype).contiguous(memory_format=torch.channels_last)
    with perturb_features(module, generator=generator()):
        out = module(x)
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    with perturb_features(module, beside=True, generator=generator()):
        both = module(x)
    assert torch.equal(both, torch.cat([x, out]))
    with perturb_features(module):
        assert module(x[:0]).shape == (0, 8, 8, 6)


def test_under_autocast():
    net, x = Net(), batch()
    with perturb_features(net.encoder, beside=True), torch.autocast("cpu", dtype=torch.bfloat16):
        assert net(x).shape == (6, 2, 8, 6)


def test_random_numbers():
    net, x = Net().eval(), batch()

    def draw(source=None):
        with perturb_features(net.encoder, generator=source):
            return net(x)

    state = torch.get_rng_state()
    assert torch.equal(draw(generator(1)), draw(generator(1)))
    assert not torch.equal(draw(generator(1)), draw(generator(2)))
    assert torch.equal(torch.get_rng_state(), state)
    with perturb_features(net.encoder, generator=generator(1)):
        assert not torch.equal(net(x), net(x))  # another draw at each pass
    with torch.random.fork_rng():
        torch.manual_seed(4)
        first = draw()
        torch.manual_seed(4)
        assert torch.equal(draw(), first)


def test_modules_return_after_the_with_and_after_exceptions():
    net, x = Net().eval(), batch()
    clean = net(x)
    with pytest.raises(RuntimeError, match="stop"), perturb_features(net.encoder):
        raise RuntimeError("stop")
    assert torch.equal(net(x), clean)
    state = snapshot(net)
    with perturb_features(net.encoder):
        net(x)
        assert_same(snapshot(net), state)
        with pytest.raises(ValueError, match="outside of `drop_blocks` and `perturb_features`"):
            MeanTeacher(net)
    assert "forward" not in vars(net.encoder)
    MeanTeacher(net)


def test_several_modules():
    first, second, x = nn.Identity(), nn.Identity(), torch.ones(4, 50, 1, 1)
    with perturb_features(first, second, generator=generator()):
        one, other = first(x), second(x)
    assert not torch.equal(one, other)
    source = generator()
    for out in (one, other):
        assert torch.equal(out[:, :, 0, 0] > 0, torch.rand(4, 50, generator=source) >= 0.5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: perturb_features(), ValueError, "`modules`: expected at least one, got none"),
        (lambda: perturb_features("encoder"), TypeError, r"`modules\[0\]`: expected a torch.nn.Module, got str"),
        (lambda: perturb_features(*[nn.ReLU()] * 2), ValueError, r"`modules\[1\]`: expected each module once"),
        (lambda: perturb_features(nn.ReLU(), chance=1.5), ValueError, r"`chance`: expected a value in \[0.0, 1.0\]"),
        (lambda: perturb_features(nn.ReLU(), chance="1"), TypeError, "`chance`: expected a number, got str"),
        (
            lambda: perturb_features(torch.compile(nn.ReLU(), backend="eager")),
            ValueError,
            r"`modules\[0\]`: expected a module that is neither compiled nor perturbed already",
        ),
    ],
)
def test_raises(call, error, message):
    with pytest.raises(error, match=message), call():
        pass


def test_what_is_never_called_is_no_feature():
    """A ModuleList, the teacher's encoder, a branch that is not taken: nothing would be perturbed, and nobody know."""
    net, x = Net(), batch()
    for module in (nn.ModuleList([nn.ReLU()]), Net().encoder):
        with (
            pytest.raises(ValueError, match=r"`modules\[1\]`: expected a module that is called in the block, got one"),
            perturb_features(net.encoder, module),
        ):
            net(x)
        assert "forward" not in vars(module)
    with (
        pytest.raises(ValueError, match=r"`modules\[0\]`: expected a module that is neither compiled nor perturbed"),
        perturb_features(net.encoder),
        perturb_features(net.encoder),
    ):
        pass
    assert "forward" not in vars(net.encoder)


@pytest.mark.parametrize("features", [torch.zeros(2, 7, 5), torch.zeros(2, 3, 4, 4, dtype=torch.long), torch.zeros(())])
def test_what_is_no_feature_map(features):
    module = nn.Identity()
    with (
        pytest.raises(ValueError, match=r"`modules\[0\]`: expected it to return floating-point feature maps \(B, D, h"),
        perturb_features(module),
    ):
        module(features)


# In networks of libraries, and inside wrappers


def test_torchvision():
    net = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
    net.eval()
    x = batch(2, 3, 64, 64)
    clean = net(x)["out"]
    with perturb_features(net.backbone, beside=True, generator=generator()):
        logits, perturbed = net(x)["out"].chunk(2)
    torch.testing.assert_close(logits, clean)
    assert not torch.allclose(perturbed, clean)


def test_segmentation_models():
    smp = pytest.importorskip("segmentation_models_pytorch")
    net = smp.Unet("resnet18", encoder_weights=None, classes=4).eval()
    x = batch(2, 3, 64, 64)
    clean = net(x)
    with perturb_features(net.encoder, beside=True, generator=generator()):
        logits, perturbed = net(x).chunk(2)
    torch.testing.assert_close(logits, clean, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(perturbed, clean)


def test_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(num_labels=4, hidden_sizes=[8, 16, 24, 32], depths=[1] * 4)
    net = transformers.SegformerForSemanticSegmentation(config).eval()
    x = batch(2, 3, 64, 64)
    clean = net(x).logits
    with perturb_features(net.segformer, beside=True, generator=generator()):
        logits, perturbed = net(x).logits.chunk(2)
    torch.testing.assert_close(logits, clean, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(perturbed, clean)


@pytest.mark.parametrize("source", [None, 0])
def test_inside_a_compiled_network(source):
    from torch._dynamo.testing import CompileCounter

    torch.compiler.reset()
    net, x, counter = Net().eval(), batch(), CompileCounter()
    fast, clean = torch.compile(net, backend=counter), net(x)
    source = source if source is None else generator(source)
    counts = []
    for _ in range(4):
        torch.testing.assert_close(fast(x), clean)
        with perturb_features(net.encoder, beside=True, generator=source):
            logits, perturbed = fast(x).chunk(2)
        torch.testing.assert_close(logits, clean)
        assert not torch.allclose(perturbed, clean)
        counts.append(counter.frame_count)
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 14):  # 2.9 compiles anew, those between are untried
        assert counts[1] == counts[3], counts  # not anew at each entrance
        assert source is not None or counts[3] == 2  # once without, once with
    torch.compiler.reset()
    whole = torch.compile(net, backend="aot_eager", fullgraph=True)
    with perturb_features(net.encoder, beside=True):
        assert whole(x).shape == (6, 2, 8, 6)
    torch.compiler.reset()


def test_inside_ddp():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        net, x = Net(), batch()
        student = DistributedDataParallel(net)
        with perturb_features(net.encoder, beside=True):
            both = student(x)
        both.sum().backward()
        assert both.shape[0] == 6
        assert all(math.isfinite(float(p.grad.sum())) for p in net.parameters())
    finally:
        dist.destroy_process_group()


@pytest.mark.gpu
def test_on_a_gpu_the_host_never_waits():
    from tests.helpers import never_waits

    net, x = Net().cuda().eval(), batch().cuda()
    source = torch.Generator("cuda").manual_seed(0)
    for chosen in (None, source):
        with perturb_features(net.encoder, beside=True, generator=chosen):
            net(x)
            with never_waits():
                logits, perturbed = net(x).chunk(2)
        torch.testing.assert_close(logits, net(x))
        assert not torch.allclose(perturbed, logits)
