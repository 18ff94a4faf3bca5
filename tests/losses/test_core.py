"""What is special about the shared pass: what it keeps, that it compiles, its limits."""

import pytest
import torch
from torch.nn import functional as F

from selftrain_seg import losses
from tests.losses.cases import loss_and_gradient, losses_where, make_labels, make_logits, make_soft, recording


@pytest.mark.parametrize("soft_dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_soft_labels_of_another_dtype(dtype, soft_dtype):
    shape = (2, 4, 3, 5)
    soft = make_soft(shape, dtype=torch.bfloat16)  # values that every dtype holds
    logits = make_logits(shape, dtype).requires_grad_()
    loss = losses.mrkld_loss(logits, soft.to(soft_dtype))
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = losses.mrkld_loss(logits.double(), soft.double())
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)
    (fast,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (plain,) = torch.autograd.grad(loss, logits, create_graph=True)
    torch.testing.assert_close(fast, plain)
    torch._dynamo.reset()
    compiled = torch.compile(losses.mrkld_loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits, soft.to(soft_dtype)), loss)


@losses_where(lambda case: case.name != "fairness_loss")  # a small extra, written with a softmax
def test_only_inputs_and_maps_are_kept(case):
    shape = (2, 19, 32, 32)
    logits, *rest = case.inputs(shape, torch.float32)
    known = {tensor.data_ptr() for tensor in (logits, *rest)}
    kept = {}

    def keep(tensor):
        if tensor.data_ptr() not in known:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        case.function(logits.requires_grad_(), *rest, **case.settings)
    # A (B, H, W) float32 map is 1/19 of the logits. A softmax or a one-hot tensor would be 19 maps.
    assert sum(kept.values()) <= 6 * 4 * 2 * 32 * 32


def test_compiles_to_machine_code():
    shape = (2, 5, 17, 33)
    logits, labels = make_logits(shape, torch.float32), make_labels(shape)

    def step(logits, labels):
        guided = losses.region_guided_loss(logits, labels, ignored_weight=0.5)
        return losses.mrkld_loss(logits, labels) + guided + losses.mrl2_loss(logits, labels)

    eager = step(leaf := logits.clone().requires_grad_(), labels)
    (eager_gradient,) = torch.autograd.grad(eager, leaf)
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True)(leaf, labels)
    (gradient,) = torch.autograd.grad(compiled, leaf)
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gradient, eager_gradient, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_compiled_gradient_keeps_the_memory_format(layout):
    logits = make_logits((2, 5, 6, 7), torch.float32).contiguous(memory_format=layout).requires_grad_()
    torch._dynamo.reset()
    loss = torch.compile(losses.mrkld_loss, backend="aot_eager", fullgraph=True)(logits, make_labels((2, 5, 6, 7)))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.is_contiguous(memory_format=layout)


@losses_where(lambda case: not case.settings.get("is_pseudo"))
def test_compiles_for_any_size(case):
    graphs, recorder = recording()
    torch._dynamo.reset()
    compiled = torch.compile(case.function, backend=recorder, fullgraph=True, dynamic=True)
    for shape in [(2, 5, 6, 8), (3, 5, 10, 4), (4, 5, 7, 9)]:
        logits, *rest = case.inputs(shape, torch.float32)
        loss = compiled(leaf := logits.requires_grad_(), *rest, **case.settings)
        torch.testing.assert_close(
            (loss.detach(), *torch.autograd.grad(loss, leaf)),
            loss_and_gradient(case, logits, *rest),
            rtol=1e-5,
            atol=1e-7,
        )
    assert [len(graph) for graph in graphs] == [1, 1]


def test_float32_mean_over_millions_of_pixels():
    shape = (1, 2, 1500, 2000)
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    labels = make_labels(shape)
    loss = losses.mrkld_loss(logits, labels)
    exact = losses.mrkld_loss(logits.double(), labels)
    torch.testing.assert_close(loss.double(), exact, rtol=3e-7, atol=0)


def test_confident_pixels_do_not_cancel():
    # ln(1 + e^-12) = 6.1e-6 next to logits of 1000, whose spacing in float32 is 6.1e-5.
    logits = torch.tensor([1000.0, 988.0]).reshape(1, 2, 1, 1)
    loss = losses.mrkld_loss(logits, torch.zeros(1, 1, 1, dtype=torch.int64), reg_weight=0.0)
    torch.testing.assert_close(loss.item(), 6.1442e-6, rtol=1e-2, atol=0)


def test_third_derivative():
    logits = make_logits((1, 3, 1, 1)).requires_grad_()
    labels = torch.zeros(1, 1, 1, dtype=torch.int64)

    def third(function):
        value = function(logits)
        for _ in range(3):
            (gradient,) = torch.autograd.grad(value, logits, create_graph=True)
            value = (gradient * torch.arange(1.0, 4).reshape(1, 3, 1, 1)).sum()
        return value

    ours = third(lambda z: losses.mrent_loss(z, labels))
    plain = third(lambda z: F.cross_entropy(z, labels) + 0.1 * (z.softmax(1) * z.log_softmax(1)).sum())
    torch.testing.assert_close(ours, plain)


def test_learning_pixel_weights_from_zero():
    # Second derivatives at a pixel whose weight, and so whose gradient, is exactly 0.
    logits, labels = make_logits((1, 3, 2, 2)).requires_grad_(), make_labels((1, 3, 2, 2), ignored=0.0)
    weight = torch.zeros(1, 2, 2, dtype=torch.float64, requires_grad=True)

    def outer(loss):
        (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
        return torch.autograd.grad((gradient * make_logits((1, 3, 2, 2), seed=7)).sum(), weight)[0]

    ours = outer(losses.mrkld_loss(logits, labels, reg_weight=0.0, pixel_weight=weight, reduction="sum"))
    plain = outer((weight * F.cross_entropy(logits, labels, reduction="none")).sum())
    assert (ours != 0).all()
    torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_no_gradient_asked_for(dtype):
    labels = make_labels((2, 4, 3, 5))
    expected = losses.mrkld_loss(make_logits(dtype=dtype), labels)
    assert not expected.requires_grad
    with torch.inference_mode():
        assert torch.equal(losses.mrkld_loss(make_logits(dtype=dtype), labels), expected)
    logits = make_logits(dtype=dtype).requires_grad_()
    with torch.no_grad():
        assert not losses.mrkld_loss(logits, labels).requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_backward_twice_through_the_same_graph(dtype):
    logits = make_logits(dtype=dtype).requires_grad_()
    loss = losses.mrkld_loss(logits, make_labels((2, 4, 3, 5)))
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (second,) = torch.autograd.grad(3 * loss, logits, retain_graph=True)
    (again,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(3 * first, second)
    assert torch.equal(first, again)
    with pytest.raises(RuntimeError, match="a second time"):
        torch.autograd.grad(loss, logits)


@losses_where(lambda case: case.name not in ("dynamic_mutual_loss", "fairness_loss"))  # they keep what they derive
@pytest.mark.parametrize("position", [0, 1])
def test_inputs_changed_before_backward_are_noticed(case, position):
    logits, *rest = case.inputs(dtype=torch.float32)
    leaf = logits.requires_grad_()
    inputs = [leaf.clone(), *rest]
    loss = case.function(*inputs, **case.settings)
    with torch.no_grad():
        inputs[position].fill_(0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", ["pixel_weight", "image_weight"])
def test_weights_changed_before_backward_are_noticed(name):
    logits, labels = make_logits(dtype=torch.float32).requires_grad_(), make_labels((2, 4, 3, 5))
    weight = torch.ones(2, 3, 5) if name == "pixel_weight" else torch.ones(2)
    loss = losses.mrkld_loss(logits, labels, **{name: weight})
    weight.fill_(0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_labels_out_of_range_are_an_error_without_value_checks_too(dtype):
    with pytest.raises(RuntimeError, match="out of bounds"):
        losses.mrkld_loss(make_logits(dtype=dtype), torch.full((2, 3, 5), 4))


class Loss(torch.nn.Module):
    def forward(self, logits, labels):
        return losses.mrkld_loss(logits, labels)


def test_exported_programs_contain_the_operator(tmp_path):
    logits, labels = make_logits((2, 5, 6, 7), torch.float32), make_labels((2, 5, 6, 7))
    batch, height, width = (torch.export.Dim(name, min=2, max=64) for name in ("batch", "height", "width"))
    sizes = {"logits": {0: batch, 2: height, 3: width}, "labels": {0: batch, 1: height, 2: width}}
    program = torch.export.export(Loss(), (logits, labels), dynamic_shapes=sizes)
    operators = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert operators.count("selftrain_seg.weighted_loss.default") == 1
    assert not any("softmax" in operator for operator in operators)
    torch.export.save(program, tmp_path / "loss.pt2")
    for run in (program.module(), torch.export.load(tmp_path / "loss.pt2").module()):
        for shape in ((2, 5, 6, 7), (3, 5, 8, 4)):
            logits, labels = make_logits(shape, torch.float32).requires_grad_(), make_labels(shape)
            torch.testing.assert_close(run(logits, labels), losses.mrkld_loss(logits, labels))
            (gradient,) = torch.autograd.grad(run(logits, labels), logits)
            torch.testing.assert_close(gradient, torch.autograd.grad(losses.mrkld_loss(logits, labels), logits)[0])


def test_compiled_transforms():
    logits, labels = make_logits((2, 5, 6, 7), torch.float32), make_labels((2, 5, 6, 7))

    def loss(z):
        return losses.mrkld_loss(z, labels)

    torch._dynamo.reset()
    compiled = torch.compile(torch.func.grad(loss), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits), torch.func.grad(loss)(logits))
    compiled = torch.compile(lambda z: torch.func.jvp(loss, (z,), (z,)), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits), torch.func.jvp(loss, (logits,), (logits,)))


def test_compiled_vmap():
    logits, labels = make_logits((2, 5, 6, 7), torch.float32), make_labels((2, 5, 6, 7))
    logits = torch.stack([logits, 2 * logits, -logits])
    mapped = torch.func.vmap(losses.mrkld_loss, in_dims=(0, None))
    torch._dynamo.reset()
    compiled = torch.compile(mapped, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits, labels), torch.stack([losses.mrkld_loss(z, labels) for z in logits]))


@pytest.mark.parametrize(
    "loss",
    [
        lambda z, y, weight: losses.mrkld_loss(z, y, reg_weight=weight),
        lambda z, y, weight: losses.region_guided_loss(z, y, ignored_weight=weight),
        lambda z, y, weight: losses.symmetric_loss(z, y, alpha=weight),
        lambda z, y, weight: losses.dynamic_loss(z, y, gamma=weight),
    ],
    ids=["mrkld", "region_guided", "symmetric", "dynamic"],
)
def test_a_ramped_number_is_not_compiled_anew_at_each_value(loss):
    logits, labels, graphs = make_logits((2, 4, 3, 5), torch.float32), make_labels((2, 4, 3, 5)), []

    def count(module, example_inputs):
        graphs.append(module)
        return module.forward

    torch._dynamo.reset()
    compiled = torch.compile(loss, backend=count, fullgraph=True)
    for step in range(1, 21):
        torch.testing.assert_close(compiled(logits, labels, step / 20), loss(logits, labels, step / 20))
    assert len(graphs) <= 2  # one for the first number, one for all others
