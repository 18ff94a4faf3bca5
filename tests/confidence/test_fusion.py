import pytest
import torch
from torch import nn
from torch.nn import functional as F

from selftrain_seg.confidence import fuse_views


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 3, padding=1)).eval()


@pytest.mark.parametrize("size", [(32, 64), (33, 65), (31, 17), (1, 1)])
@pytest.mark.parametrize("align_corners", [False, True])
def test_is_the_mean_of_the_views(model, size, align_corners):
    images = torch.rand(2, 3, *size)

    def resize(x, to):
        return F.interpolate(x, size=to, mode="bilinear", align_corners=align_corners)

    views = []
    for scale in (0.7, 1.0, 1.5):
        view = resize(images, [max(1, round(side * scale)) for side in size])
        with torch.no_grad():
            views.append(resize(model(view), size).softmax(1))
            views.append(resize(model(view.flip(3)).flip(3), size).softmax(1))
    fused = fuse_views(model, images, scales=(0.7, 1.0, 1.5), flip=True, align_corners=align_corners)
    assert fused.shape == (2, 5, *size)
    torch.testing.assert_close(fused, torch.stack(views).mean(0), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(fused.sum(1), torch.ones(2, *size))


@pytest.mark.parametrize("width", [64, 65])
def test_flipping_twice_is_the_identity(model, width):
    images = torch.rand(2, 3, 33, width)
    there_and_back = fuse_views(model, images.flip(3), scales=(0.8, 1.0)).flip(3)
    torch.testing.assert_close(there_and_back, fuse_views(model, images, scales=(0.8, 1.0)), atol=1e-6, rtol=0)


def test_one_view_is_the_plain_prediction(model):
    images = torch.rand(1, 3, 16, 16)
    same = nn.Conv2d(3, 4, 1)
    torch.testing.assert_close(fuse_views(same, images, flip=False), same(images).softmax(1).detach())


def test_every_argument_changes_the_result(model):
    images = torch.rand(1, 3, 33, 47)
    base = fuse_views(model, images)
    for options in ({"scales": (0.5,)}, {"flip": False}, {"align_corners": True}):
        assert not torch.allclose(fuse_views(model, images, **options), base)


def test_outputs_of_all_kinds(model):
    images = torch.rand(2, 1, 33, 47)  # of one channel
    grey = nn.Sequential(nn.Conv2d(1, 3, 1), model)
    base = fuse_views(grey, images, scales=(0.5, 1.0))
    for wrap in (lambda z: {"out": z}, lambda z: [z], lambda z: (z.mean(), z)):
        assert torch.equal(fuse_views(lambda x, wrap=wrap: wrap(grey(x)), images, scales=(0.5, 1.0)), base)


def test_mode_gradients_and_dtype(model):
    images = torch.rand(1, 3, 8, 8, requires_grad=True)
    model.train()
    result = fuse_views(model, images)
    assert model.training
    assert not result.requires_grad
    half = fuse_views(lambda x: model(x).bfloat16(), images)
    assert half.dtype == torch.float32
    assert fuse_views(model, torch.rand(0, 3, 8, 8)).shape == (0, 5, 8, 8)


def test_errors(model):
    images = torch.rand(1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"`images`: expected \(B, C, H, W\)"):
        fuse_views(model, images[0])
    with pytest.raises(TypeError, match="`images`"):
        fuse_views(model, images.byte())
    with pytest.raises(ValueError, match="`scales`: expected at least one"):
        fuse_views(model, images, scales=())
    with pytest.raises(ValueError, match="`scales`"):
        fuse_views(model, images, scales=(1.0, 0.0))
    with pytest.raises(TypeError, match="`scales`"):
        fuse_views(model, images, scales=("1",))
    with pytest.raises(TypeError, match=r"`model\(images\)`: expected logits.* got dict with 'aux'"):
        fuse_views(lambda x: {"aux": x}, images)
    with pytest.raises(ValueError, match=r"`model\(images\)`: expected at least two classes .*binary=True"):
        fuse_views(lambda x: x[:, :1], images)
    with pytest.raises(ValueError, match=r"`model\(images\)`: expected a batch of 1, got 2"):
        fuse_views(lambda x: torch.zeros(2, 3, 8, 8), images)
    with pytest.raises(ValueError, match=r"`model\(images\)`"):
        fuse_views(lambda x: x.mean(1), images)


def test_compiles_whole(model):
    images = torch.rand(1, 3, 16, 24)

    def fused(images):
        return fuse_views(model, images, scales=(0.75, 1.0))

    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")(images)
    torch.testing.assert_close(compiled, fused(images), atol=1e-5, rtol=1e-4)
