"""What every loss must do, whatever it computes."""

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

from selftrain_seg import losses
from tests.helpers import layouts, never_waits
from tests.losses.cases import (
    CASES,
    every_loss,
    loss_and_gradient,
    loss_with_hard_labels,
    losses_where,
    make_labels,
    make_logits,
    recording,
    together,
    variants,
)

SHAPES = [(2, 4, 3, 5), (1, 2, 2, 3), (3, 2, 1, 1), (1, 19, 5, 3)]


def numpy(value):
    return value.numpy() if isinstance(value, torch.Tensor) else value


def expected(case, inputs, settings):
    values = {name: numpy(value) for name, value in settings.items() if name != "reduction"}
    arrays = [inputs[0].double().numpy(), *(numpy(tensor) for tensor in inputs[1:])]
    return case.oracle(*arrays, **values)[settings.get("reduction", "mean")]


@every_loss
@pytest.mark.parametrize("shape", SHAPES)
def test_oracle(case, shape):
    inputs = case.inputs(shape)
    for settings in variants(case, shape):
        loss = case.function(*inputs, **settings)
        assert loss.dtype == torch.float64
        np.testing.assert_allclose(loss.numpy(), expected(case, inputs, settings), rtol=1e-6, atol=1e-12)


@loss_with_hard_labels
@pytest.mark.parametrize("ignore_index", [-100, 200])
def test_oracle_with_another_ignore_index(case, ignore_index):
    logits, target, *rest = case.inputs()
    target = target.where(target != 255, ignore_index)
    settings = {**case.settings, "ignore_index": ignore_index}
    loss = case.function(logits, target, *rest, **settings)
    np.testing.assert_allclose(loss, expected(case, (logits, target, *rest), settings), rtol=1e-6)


@every_loss
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-3), (torch.float16, 1e-3)])
def test_oracle_in_low_precision(case, dtype, rtol):
    # The oracle gets the values the function gets, already rounded; statistics are float32 all the same.
    shape = (2, 19, 6, 5)
    inputs = case.inputs(shape, dtype)
    for settings in variants(case, shape):
        loss = case.function(*inputs, **settings)
        assert loss.dtype == torch.float32
        np.testing.assert_allclose(loss.numpy(), expected(case, inputs, settings), rtol=rtol, atol=1e-5)


# The dynamic losses' detached weights make their gradient differ from the numerical one: see test_identities.
@losses_where(lambda case: not case.name.startswith("dynamic"))
def test_gradients_once_and_twice(case):
    shape = (2, 3, 2, 2)
    logits, *rest = case.inputs(shape)
    for settings in variants(case, shape):

        def loss(leaf, settings=settings):
            return case.function(leaf, *rest, **settings)

        leaf = logits.clone().requires_grad_()
        assert torch.autograd.gradcheck(loss, leaf)
        assert torch.autograd.gradgradcheck(loss, leaf)


@every_loss
def test_fused_gradient_equals_plain_ones(case):
    shape = (2, 5, 40, 300)  # more than one block an image, the last one smaller
    logits, *rest = case.inputs(shape, torch.float32)
    for settings in variants(case, shape):
        leaf, exact_leaf = (logits.to(dtype).requires_grad_() for dtype in (torch.float32, torch.float64))
        loss, exact = (case.function(z, *rest, **settings) for z in (leaf, exact_leaf))
        torch.testing.assert_close(loss.double(), exact, rtol=2e-6, atol=2e-6 * exact.abs().max().item())
        scale = make_logits(shape)[:, 0] if loss.ndim else torch.tensor(1.5)
        (fused,) = torch.autograd.grad(loss, leaf, scale.float(), retain_graph=True)
        (plain,) = torch.autograd.grad(loss, leaf, scale.float(), create_graph=True)
        (gradient,) = torch.autograd.grad(exact, exact_leaf, scale.float().double())
        assert not fused.requires_grad
        for ours in (fused, plain.detach()):
            torch.testing.assert_close(ours.double(), gradient, rtol=0, atol=2e-6 * gradient.abs().max().item())


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_in_low_precision(case, dtype):
    logits, *rest = case.inputs((2, 19, 6, 5), dtype)
    _, gradient = loss_and_gradient(case, logits, *rest)
    _, exact = loss_and_gradient(case, logits.double(), *rest)
    assert gradient.dtype == dtype
    rtol = 1e-4 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(gradient.double(), exact, rtol=rtol, atol=rtol * exact.abs().max().item())


@every_loss
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided", "transposed"])
def test_layouts(case, layout):
    logits, *rest = case.inputs((2, 5, 70, 300), torch.float32)  # several blocks, the last one smaller
    reference, reference_gradient = loss_and_gradient(case, logits, *rest)
    other = [layouts(tensor)[layout] if tensor.ndim == 4 else tensor for tensor in rest]
    loss, gradient = loss_and_gradient(case, layouts(logits)[layout], *other)
    torch.testing.assert_close(loss, reference, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gradient, reference_gradient, rtol=1e-4, atol=1e-8)
    if layout == "channels_last" and case.name != "fairness_loss":  # a softmax of torch's, in torch's layout
        assert gradient.is_contiguous(memory_format=torch.channels_last)
    # Labels in another layout than the logits.
    mixed, _ = loss_and_gradient(case, logits, *other)
    torch.testing.assert_close(mixed, reference, rtol=1e-5, atol=1e-7)


@every_loss
def test_every_argument_changes_the_result(case):
    shape = (3, 4, 6, 5)
    inputs = case.inputs(shape)
    base = case.function(*inputs, **case.settings)
    keyword_only = {name for name, p in case.parameters.items() if p.kind == p.KEYWORD_ONLY}
    missing = {"ignore_index"} if case.target is not make_labels else set()
    assert set(case.other) == keyword_only - missing
    for name, value in case.other.items():
        if name != "ignore_index":  # see test_oracle_with_another_ignore_index
            changed = case.function(*inputs, **{**case.settings, name: value(shape)})
            assert not torch.allclose(changed, base), name
    for position, tensor in enumerate(inputs):
        other = -tensor if position == 0 else tensor.roll(1, -1)
        swapped = [*inputs[:position], other, *inputs[position + 1 :]]
        assert not torch.allclose(case.function(*swapped, **case.settings), base), position


@every_loss
def test_none_sums_to_sum(case):
    inputs = case.inputs()
    for name, value in case.other.items():
        if "reduction" in case.other and name not in ("reduction", "ignore_index"):
            settings = {**case.settings, name: value((2, 4, 3, 5))}
            whole = case.function(*inputs, **settings, reduction="none")
            assert whole.shape == (2, 3, 5)
            torch.testing.assert_close(whole.sum(), case.function(*inputs, **settings, reduction="sum"))


@every_loss
def test_inputs_are_not_mutated(case):
    shape = (2, 4, 3, 5)
    inputs = case.inputs(shape)
    settings = together(case, shape)
    tensors = [*inputs, *(value for value in settings.values() if isinstance(value, torch.Tensor))]
    before = [tensor.clone() for tensor in tensors]
    loss_and_gradient(case, *inputs, **settings)
    loss_and_gradient(case, inputs[0].float(), *inputs[1:], **settings)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, before, strict=True))


@every_loss
def test_gradients_reach_logits_only(case):
    inputs = [tensor.requires_grad_(tensor.is_floating_point()) for tensor in case.inputs()]
    case.function(*inputs, **case.settings).backward()
    assert inputs[0].grad is not None
    assert all(tensor.grad is None for tensor in inputs[1:])


@losses_where(lambda case: "pixel_weight" in case.other)
def test_gradient_reaches_pixel_weight(case):
    shape = (2, 4, 3, 5)
    weight = case.other["pixel_weight"](shape).requires_grad_()
    loss = case.function(*case.inputs(shape), **case.settings, pixel_weight=weight, reduction="sum")
    unweighted = case.function(*case.inputs(shape), **case.settings, reduction="none")
    torch.testing.assert_close(torch.autograd.grad(loss, weight)[0], unweighted)


@losses_where(lambda case: "image_weight" in case.other)
def test_gradient_reaches_image_weight(case):
    inputs = case.inputs()
    weight = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(case.function(*inputs, image_weight=weight, reduction="sum"), weight)
    only = torch.eye(2, dtype=torch.float64)
    each = [case.function(*inputs, image_weight=row, reduction="sum") for row in only]
    without = case.function(*inputs, reg_weight=0.0, reduction="sum")
    torch.testing.assert_close(gradient, torch.stack(each) - without)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_autocast_changes_nothing(case, dtype):
    inputs = case.inputs(dtype=dtype)
    outside = loss_and_gradient(case, *inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss_and_gradient(case, *inputs)
    assert inside[0].dtype == outside[0].dtype
    torch.testing.assert_close(inside, outside, rtol=1e-6, atol=1e-9)


@every_loss
def test_compiles_whole(case):
    # Captured and differentiated as one graph; test_core compiles it to machine code too.
    shape = (2, 4, 6, 8)
    inputs = case.inputs(shape, torch.float32)
    settings = together(case, shape)
    eager = loss_and_gradient(case, *inputs, **settings)
    graphs, recorder = recording()
    torch._dynamo.reset()
    compiled = torch.compile(case.function, backend=recorder, fullgraph=True)
    leaf = inputs[0].clone().requires_grad_()
    loss = compiled(leaf, *inputs[1:], **settings)
    (gradient,) = torch.autograd.grad(loss, leaf)
    torch.testing.assert_close((loss.detach(), gradient), eager, rtol=1e-5, atol=1e-7)
    # What runs both ways is the operator, not what it is in torch.
    forward = {name: name for name in ("fairness_loss", "negative_loss")} | {"dynamic_mutual_loss": "mutual_loss"}
    backward = forward | {"dynamic_mutual_loss": "weighted_loss"}
    for graph, names, suffix in zip(graphs, (forward, backward), ("", "_backward"), strict=True):
        (operators,) = graph
        name = names.get(case.name, "weighted_loss")
        ours = {operator for operator in operators if operator.startswith("selftrain_seg.")}
        assert ours == {f"selftrain_seg.{name}{suffix}"}
        assert not any("softmax" in operator for operator in operators)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_torch_func(case, dtype):
    inputs = case.inputs(dtype=dtype)
    _, gradient = loss_and_gradient(case, *inputs)
    with torch.no_grad():
        again = torch.func.grad(lambda logits: case.function(logits, *inputs[1:], **case.settings))(inputs[0])
    torch.testing.assert_close(again, gradient)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_of_many_outputs_at_once(case, dtype):
    logits, *rest = case.inputs(dtype=dtype)
    leaf = logits.requires_grad_()
    loss = case.function(leaf, *rest, **case.settings)
    many = torch.tensor([1.0, -2.0, 0.5], dtype=loss.dtype)
    (gradients,) = torch.autograd.grad(loss, leaf, many, retain_graph=True, is_grads_batched=True)
    (gradient,) = torch.autograd.grad(loss, leaf)
    torch.testing.assert_close(gradients, many.view(3, 1, 1, 1, 1) * gradient)


@losses_where(lambda case: not case.name.startswith("dynamic"))  # whose detached weights differences do not see
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_forward_mode(case, dtype):
    # Differentiated by torch, whatever the dtype: nothing is dropped on the way.
    inputs = case.inputs(dtype=dtype)
    tangent = make_logits(inputs[0].shape, dtype, seed=8)

    def loss(z):
        return case.function(z, *inputs[1:], **case.settings)

    value, derivative = torch.func.jvp(loss, (inputs[0],), (tangent,))
    expected, gradient = loss_and_gradient(case, inputs[0].double(), *inputs[1:])
    rtol = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(value.double(), expected, rtol=rtol, atol=0)
    torch.testing.assert_close(derivative.double(), (gradient * tangent.double()).sum(), rtol=rtol, atol=rtol * 1e-1)
    with forward_ad.dual_level():
        again = forward_ad.unpack_dual(loss(forward_ad.make_dual(inputs[0], tangent))).tangent
    torch.testing.assert_close(again, derivative, check_dtype=False)  # of jvp's tangent, float64


@every_loss
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_vmap(case, dtype):
    logits, *rest = case.inputs((3, 4, 3, 5), dtype)
    image = [tensor.ndim >= 3 for tensor in rest]  # one value an image, or one for all

    def loss(logits, *rest):
        rest = [tensor[None] if mapped else tensor for tensor, mapped in zip(rest, image, strict=True)]
        return case.function(logits[None], *rest, **case.settings)

    dims = (0, *(0 if mapped else None for mapped in image))
    mapped = torch.func.vmap(loss, in_dims=dims)(logits, *rest)
    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=dims)(logits, *rest)
    for b in range(3):
        single = [tensor[b] if mapped_ else tensor for tensor, mapped_ in zip(rest, image, strict=True)]
        torch.testing.assert_close(mapped[b], loss(logits[b], *single))
        torch.testing.assert_close(gradients[b], torch.func.grad(loss)(logits[b], *single))


def test_every_loss_is_a_case():
    assert set(losses.__all__) - {"focal_class_weight"} == {case.name for case in CASES}


@pytest.mark.gpu
@every_loss
def test_gpu_equals_cpu(case):
    shape = (2, 19, 33, 65)
    for name, value in {None: None, **case.other}.items():
        inputs = case.inputs(shape, torch.float32)
        settings = {**case.settings, **({name: value(shape)} if name else {})}
        if name in ("reduction", "ignore_index"):
            continue
        there = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in settings.items()}
        loss, gradient = loss_and_gradient(case, *(tensor.cuda() for tensor in inputs), **there)
        reference, reference_gradient = loss_and_gradient(case, *inputs, **settings)
        torch.testing.assert_close(loss.cpu(), reference, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient.cpu(), reference_gradient, rtol=1e-4, atol=1e-8)


@pytest.mark.gpu
@every_loss
def test_gpu_never_waits(case):
    inputs = [tensor.cuda() for tensor in case.inputs((2, 19, 33, 65), torch.float32)]
    with never_waits():
        loss_and_gradient(case, *inputs)
