"""Which mode the layers are in, and what networks may return."""

import pytest
import torch
from torch import nn
from torchvision.models.segmentation import lraspp_mobilenet_v3_large
from torchvision.ops import StochasticDepth

from selftrain_seg.teachers import MeanTeacher
from tests.teachers.nets import Net, images, snapshot


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True)
        self.path = StochasticDepth(0.5, "row")
        self.block = nn.Sequential(nn.Dropout2d(0.5), nn.BatchNorm1d(5))

    def forward(self, x):
        return self.block(x + self.path(self.attention(x, x, x, need_weights=False)[0]))


def modes(teacher):
    return {name: module.training for name, module in teacher.model.named_modules()}


@pytest.mark.parametrize("train_mode", [False, True])
@pytest.mark.parametrize("dropout", [False, True])
def test_modes_are_fixed(train_mode, dropout):
    teacher = MeanTeacher(Net().train(), train_mode=train_mode, dropout=dropout)
    expected = {name: train_mode and dropout for name, _ in teacher.model.named_modules()}
    expected["norm"] = train_mode
    parent = nn.Module()
    parent.teacher = teacher
    for change in (lambda: None, parent.train, parent.eval, teacher.train, teacher.eval, lambda: teacher.train(False)):
        change()
        assert modes(teacher) == expected
    assert teacher.train() is teacher
    assert teacher.training
    assert not teacher.eval().training


def test_evaluation_mode_uses_running_statistics_and_is_deterministic():
    student = Net().train()
    teacher = MeanTeacher(student)
    student(images(1))  # running statistics move
    teacher.update(student)
    before = snapshot(teacher)
    assert torch.equal(teacher(images()), teacher(images()))
    assert torch.equal(teacher(images()), student.eval()(images()))
    assert all(torch.equal(value, before[name]) for name, value in snapshot(teacher).items())


def test_train_mode_uses_the_batch_statistics_without_dropout():
    student = Net()
    teacher = MeanTeacher(student, train_mode=True)
    expected = student.train()
    expected.dropout.eval()
    assert torch.equal(teacher(images()), expected(images()))
    assert torch.equal(teacher(images()), teacher(images()))
    student.eval()
    assert not torch.allclose(teacher(images()), student(images()))
    noisy = MeanTeacher(student, train_mode=True, dropout=True)
    assert not torch.equal(noisy(images()), noisy(images()))


def test_all_kinds_of_dropping_layers_are_off():
    x = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(0))
    teacher = MeanTeacher(Attention(), train_mode=True)
    state = torch.get_rng_state()
    first = teacher(x)
    assert torch.equal(first, teacher(x))
    assert torch.equal(torch.get_rng_state(), state)
    assert modes(teacher)["block.1"]  # BatchNorm stays on
    teacher = MeanTeacher(Attention(), train_mode=True, dropout=True)
    assert not torch.equal(teacher(x), teacher(x))


class Path(nn.Module):
    """As DropPath of timm and transformers, under any name; and as attention does it."""

    def forward(self, x):
        x = x * (torch.rand_like(x) > 0.5) if self.training else x
        return nn.functional.dropout(x, 0.5, training=self.training)


@pytest.mark.parametrize("layer", [Path(), nn.AlphaDropout(0.5), nn.FeatureAlphaDropout(0.5), nn.RReLU()])
def test_whatever_drops_is_off(layer):
    teacher = MeanTeacher(nn.Sequential(layer, nn.BatchNorm2d(3)), train_mode=True)
    assert torch.equal(teacher(images()), teacher(images()))
    assert modes(teacher) == {"": False, "0": False, "1": True}


def test_a_transformer_of_timm_drops_nothing():
    timm = pytest.importorskip("timm")
    student = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=2, depth=2, drop_path_rate=0.9)
    for block in student.blocks:
        block.attn.attn_drop = nn.Dropout(0.9)
    teacher = MeanTeacher(student, train_mode=True)
    batch = images(size=(32, 32))
    assert torch.equal(teacher(batch), teacher(batch))
    noisy = MeanTeacher(student, train_mode=True, dropout=True)
    assert not torch.equal(noisy(batch), noisy(batch))


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(3), nn.SyncBatchNorm(3), nn.InstanceNorm2d(3, track_running_stats=True)]
)
def test_layers_with_running_statistics_use_the_batch(norm):
    teacher = MeanTeacher(nn.Sequential(norm), train_mode=True)
    assert modes(teacher) == {"": False, "0": True}


def test_dicts_of_torchvision():
    student = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
    teacher = MeanTeacher(student, momentum=0.5, buffers="average")
    batch = images(size=(32, 48))
    logits = teacher(batch)
    assert torch.equal(logits, student.eval()(batch)["out"])
    assert logits.shape == (2, 4, 32, 48)
    student.train()(batch)
    teacher.update(student)
    assert teacher.model.backbone["0"][1].num_batches_tracked.item() == 1


class Answer:
    def __init__(self, logits):
        self.logits = logits


class Pair(tuple):
    """Like the named tuples that hold a loss first."""

    logits = property(lambda self: self[1])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda z: z,
        lambda z: {"out": z, "aux": z + 1},
        lambda z: {"loss": z.mean(), "logits": z},
        lambda z: (z, z.mean()),
        lambda z: [z],
        lambda z: Answer(z),
        lambda z: Pair((z.mean(), z)),
    ],
)
def test_outputs(wrap):
    class Wrapped(Net):
        def forward(self, images):
            return wrap(super().forward(images))

    assert torch.equal(MeanTeacher(Wrapped())(images()), Net().eval()(images()))


@pytest.mark.parametrize("output", [None, (), [], {}, {"aux": torch.ones(1)}, {"out": 1}, ("a",), Answer(3), 5.0])
def test_outputs_without_logits(output):
    class Silent(nn.Module):
        def forward(self, images):
            return output

    message = rf"`model\(images\)`: expected logits.*, got {type(output).__name__}"
    with pytest.raises(TypeError, match=message):
        MeanTeacher(Silent())(images())
