import pytest
import torch
from torch import nn

from selftrain_seg.selectors import select_fixed
from selftrain_seg.teachers import MeanTeacher, MutualLabels, mutual_labels
from selftrain_seg.types import PseudoLabels
from tests.teachers.nets import Net, assert_same, images, snapshot


class Silent(nn.Module):
    def forward(self, images):
        return {}


def take(logits):
    confidence, labels = logits.softmax(1).max(1)
    return PseudoLabels(labels, confidence)


def assert_labels(labels, logits):
    assert torch.equal(labels.labels, take(logits).labels)
    assert torch.equal(labels.confidence, take(logits).confidence)


@torch.no_grad()
def test_each_labels_for_the_other():
    first, second = Net(0), Net(1)
    made = mutual_labels(first, second, images(), take)
    assert isinstance(made, MutualLabels)
    own = [net.eval()(images()) for net in (first, second)]
    assert not torch.equal(own[0].argmax(1), own[1].argmax(1))
    assert_labels(made.for_first, own[1])
    assert_labels(made.for_second, own[0])


def test_a_pair_of_functions():
    first, second = Net(0), Net(1)
    made = mutual_labels(
        first, second, images(), (lambda z: select_fixed(z, threshold=0.0), lambda z: select_fixed(z, threshold=1.0))
    )
    assert (made.for_second.labels != 255).all()  # the first student's function labels for the second
    assert (made.for_first.labels == 255).all()


def test_modes_gradients_statistics_and_random_numbers_stay():
    first, second = Net(0).train(), Net(1).eval()
    second.dropout.train()
    before = snapshot(first), snapshot(second)
    modes = [[module.training for module in net.modules()] for net in (first, second)]
    state = torch.get_rng_state()
    made = mutual_labels(first, second, images().requires_grad_(), take)
    assert not made.for_first.confidence.requires_grad
    assert [[module.training for module in net.modules()] for net in (first, second)] == modes
    assert torch.equal(torch.get_rng_state(), state)
    for net, old in zip((first, second), before, strict=True):
        assert_same(snapshot(net), old)


def test_modes_return_when_selection_fails():
    first, second = Net(0).train(), Net(1).train()

    def broken(logits):
        raise RuntimeError("no labels")

    with pytest.raises(RuntimeError, match="no labels"):
        mutual_labels(first, second, images(), broken)
    assert all(module.training for net in (first, second) for module in net.modules())


def test_teachers_and_any_output():
    class Dicts(Net):
        def forward(self, images):
            return {"out": super().forward(images)}

    teacher = MeanTeacher(Dicts(1))
    made = mutual_labels(Dicts(0), teacher, images(), take)
    assert_labels(made.for_second, Net(0).eval()(images()))
    assert_labels(made.for_first, teacher(images()))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((len, Net(), take), TypeError, "`first`: expected a torch.nn.Module, got builtin_function_or_method"),
        ((Net(), "net", take), TypeError, "`second`: expected a torch.nn.Module, got str"),
        ((Net(), Net(), (take,)), ValueError, "`select`: expected one function or a pair, got 1"),
        ((Net(), Net(), (take, take, take)), ValueError, "`select`: expected one function or a pair, got 3"),
        ((nn.LogSoftmax(1), Silent(), take), TypeError, r"`model\(images\)`: expected logits.* got dict"),
    ],
)
def test_raises(arguments, error, message):
    first, second, select = arguments
    with pytest.raises(error, match=message):
        mutual_labels(first, second, images(), select)
