"""Fixed threshold, FreeMatch, FlexMatch and SoftMatch."""

import numpy as np
import pytest
import torch

from selftrain_seg.selectors import (
    FlexMatchSelector,
    FreeMatchSelector,
    InstanceAdaptiveSelector,
    RunningConfidenceSelector,
    SoftMatchSelector,
    select_fixed,
)
from tests.helpers import layouts, random_logits
from tests.oracles import adaptive as oracle
from tests.oracles.selection import confidence

MODULES = [
    pytest.param(lambda **o: FreeMatchSelector(4, **o), id="freematch"),
    pytest.param(lambda **o: FlexMatchSelector(4, **o), id="flexmatch"),
    pytest.param(lambda **o: SoftMatchSelector(4, **o), id="softmatch"),
    pytest.param(lambda **o: SoftMatchSelector(4, align=True, **o), id="softmatch-aligned"),
]
EACH = pytest.mark.parametrize("make", MODULES)


def stream(dtype=torch.float32):
    for seed, batch in enumerate((2, 1, 3)):
        logits = random_logits(batch, 4, 9, 7, seed=seed)
        logits[:, 3] -= 5
        logits[0, 1, 0, 0] = float("nan")
        yield logits.to(dtype)


@pytest.mark.parametrize("weigh_by", [None, "image", "batch"])
@pytest.mark.parametrize("threshold", [0.0, 0.7, 0.95, 1.0])
def test_fixed_oracle(weigh_by, threshold):
    logits = next(stream())
    result = select_fixed(logits, threshold=threshold, weigh_by=weigh_by, ignore_index=99)
    labels, m = confidence(logits.double().numpy())
    assert np.array_equal(result.predicted.numpy()[m > 0], labels[m > 0])
    if weigh_by is None:
        assert result.pixel_weight is None
        assert np.array_equal(result.labels.numpy(), np.where((m >= threshold) & (m > 0), labels, 99))
    else:
        assert np.array_equal(result.labels.numpy(), np.where(m > 0, labels, 99))
        expected = oracle.fixed_weight(logits.double().numpy(), threshold, weigh_by)
        np.testing.assert_allclose(result.pixel_weight.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("momentum", [0.999, 0.5])
def test_freematch_oracle(dtype, momentum):
    selector, state = FreeMatchSelector(4, momentum=momentum), (0.25, np.full(4, 0.25), np.full(4, 0.25))
    for logits in stream(dtype):
        labels, state = oracle.freematch(logits.double().numpy(), state, momentum)
        assert np.array_equal(selector(logits).labels.numpy(), labels)
        np.testing.assert_allclose(selector.global_threshold.numpy(), state[0], rtol=1e-6)
        np.testing.assert_allclose(selector.running_probs.numpy(), state[1], rtol=1e-6)
        np.testing.assert_allclose(selector.running_histogram.numpy(), state[2], rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("threshold", "momentum"), [(0.95, 0.999), (0.8, 0.2)])
def test_flexmatch_oracle(dtype, threshold, momentum):
    selector, sigma = FlexMatchSelector(4, threshold=threshold, momentum=momentum), np.zeros(4)
    for logits in stream(dtype):
        labels, sigma = oracle.flexmatch(logits.double().numpy(), sigma, threshold, momentum)
        assert np.array_equal(selector(logits).labels.numpy(), labels)
        np.testing.assert_allclose(selector.running_shares.numpy(), sigma, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize(("momentum", "sigmas"), [(0.999, 2.0), (0.3, 1.0)])
def test_softmatch_oracle(dtype, align, momentum, sigmas):
    options = {"momentum": momentum, "sigmas": sigmas, "align": align}
    selector, state = SoftMatchSelector(4, **options), (0.25, 1.0, np.full(4, 0.25))
    for logits in stream(dtype):
        weights, state = oracle.softmatch(logits.double().numpy(), state, **options)
        result = selector(logits)
        np.testing.assert_allclose(result.pixel_weight.numpy(), weights, rtol=2e-4, atol=1e-7)
        usable = ~logits.isnan().any(1)
        assert torch.equal(result.labels, torch.where(usable, result.predicted, 255))
        assert torch.equal(result.predicted[usable], logits.argmax(1)[usable])
        for buffer, expected in zip((selector.mean, selector.variance, selector.running_probs), state, strict=True):
            np.testing.assert_allclose(buffer.numpy(), expected, rtol=1e-5)


def test_softmatch_without_any_variance():
    selector = SoftMatchSelector(2, momentum=0.0)
    assert (selector(torch.tensor([3.0, 0.0]).reshape(1, 2, 1, 1).expand(1, 2, 3, 3)).pixel_weight == 1).all()


@EACH
def test_eval_empty_and_unusable_batches_change_nothing(make):
    selector = make(momentum=0.5)
    selector(random_logits(1, 4, 5, 5))
    before = {name: value.clone() for name, value in selector.state_dict().items()}
    assert selector(torch.zeros(0, 4, 3, 3)).labels.shape == (0, 3, 3)
    assert (selector(torch.full((1, 4, 2, 2), float("nan"))).labels == 255).all()
    selector.eval()(random_logits(1, 4, 5, 5, seed=1))
    assert all(torch.equal(value, before[name]) for name, value in selector.state_dict().items())
    selector.train()(random_logits(1, 4, 5, 5, seed=1))
    assert not all(torch.equal(value, before[name]) for name, value in selector.state_dict().items())


@EACH
@pytest.mark.parametrize("layout", ["channels_last", "strided", "transposed"])
def test_layouts(make, layout):
    logits = random_logits(2, 4, 70, 300)
    a, b = make(), make()
    x, y = a(logits), b(layouts(logits)[layout])
    assert torch.equal(x.labels, y.labels)
    if x.pixel_weight is not None:
        torch.testing.assert_close(x.pixel_weight, y.pixel_weight)


@pytest.mark.parametrize(
    "make",
    [*MODULES, pytest.param(lambda **o: RunningConfidenceSelector(4), id="running"),
     pytest.param(lambda **o: InstanceAdaptiveSelector(4), id="instance-adaptive")],
)  # fmt: skip
def test_autocast_half_precision_and_extreme_logits(make):
    logits = random_logits(2, 4, 16, 16, scale=60.0).clamp(-80, 80)
    a, b, c = make(), make(), make()
    plain = a(logits.half().float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(b(logits.half().float()).labels, plain.labels)
    assert torch.equal(c(logits.half()).labels, plain.labels)
    assert all(value.isfinite().all() for value in a.state_dict().values() if value.is_floating_point())
    assert plain.pixel_weight is None or plain.pixel_weight.isfinite().all()


@EACH
def test_state_dict_mid_stream_and_reset(make, tmp_path):
    batches = [random_logits(2, 4, 6, 6, seed=s) for s in range(4)]
    straight, first, resumed, fresh = (make() for _ in range(4))
    for batch in batches:
        straight(batch)
    for batch in batches[:2]:
        first(batch)
    torch.save(first.state_dict(), tmp_path / "s.pt")
    resumed.load_state_dict(torch.load(tmp_path / "s.pt", weights_only=True))
    for batch in batches[2:]:
        resumed(batch)
    for (name, a), b in zip(resumed.state_dict().items(), straight.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    resumed.reset()
    assert fresh.state_dict()
    assert all(
        torch.equal(a, b) for a, b in zip(resumed.state_dict().values(), fresh.state_dict().values(), strict=True)
    )


@EACH
def test_arguments_matter(make):
    logits = random_logits(2, 4, 20, 20, scale=1.0)
    assert (make(ignore_index=-7)(logits * float("nan")).labels == -7).all()

    def state(**options):
        selector = make(**options)
        selector(logits)
        return torch.cat([value.flatten() for value in selector.state_dict().values()])

    assert not torch.equal(state(momentum=0.1), state())


@EACH
def test_errors(make):
    with pytest.raises(ValueError, match="`momentum`"):
        make(momentum=1.5)
    with pytest.raises(TypeError, match="`momentum`"):
        make(momentum="0.9")
    with pytest.raises(ValueError, match="`logits`: expected 4 classes"):
        make()(random_logits())
    with pytest.raises(TypeError, match="`logits`"):
        make()(torch.zeros(1, 4, 2, 2, dtype=torch.int64))


def test_more_errors():
    with pytest.raises(ValueError, match="`threshold`"):
        select_fixed(random_logits(), threshold=1.1)
    with pytest.raises(TypeError, match="`threshold`"):
        select_fixed(random_logits(), threshold=None)
    with pytest.raises(ValueError, match="`weigh_by`: expected one of 'image', 'batch'"):
        select_fixed(random_logits(), weigh_by="pixel")
    with pytest.raises(ValueError, match=r"`logits`: expected \(B, C, H, W\)"):
        select_fixed(torch.zeros(3, 3))
    with pytest.raises(ValueError, match="`threshold`"):
        FlexMatchSelector(3, threshold=-0.1)
    with pytest.raises(ValueError, match="`sigmas`"):
        SoftMatchSelector(3, sigmas=0.0)
    for selector in (FreeMatchSelector, FlexMatchSelector, SoftMatchSelector):
        with pytest.raises(ValueError, match="`num_classes`"):
            selector(0)


def test_select_fixed_compiles_whole():
    logits = random_logits(2, 4, 20, 16)
    compiled = torch.compile(select_fixed, fullgraph=True)(logits, threshold=0.9, weigh_by="image")
    eager = select_fixed(logits, threshold=0.9, weigh_by="image")
    assert torch.equal(compiled.labels, eager.labels)
    torch.testing.assert_close(compiled.pixel_weight, eager.pixel_weight)


@pytest.mark.gpu
@EACH
def test_gpu_equals_cpu(make):
    logits = random_logits(3, 4, 33, 65)
    cpu, gpu = make(), make().cuda()
    assert (gpu(logits.cuda()).labels.cpu() == cpu(logits).labels).float().mean() > 0.999
