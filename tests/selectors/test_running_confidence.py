import numpy as np
import pytest
import torch

from selftrain_seg.selectors import RunningConfidenceSelector
from tests.helpers import layouts, random_logits
from tests.oracles import adaptive as oracle

DT_ST = {"upper": 0.8, "lower": 0.2, "beta": 1e-3, "momentum": 0.9}
SAC = {"upper": 0.75, "lower": 0.2, "beta": 1e-3, "momentum": 0.99}


@pytest.mark.parametrize("options", [DT_ST, SAC, {"upper": 0.9, "lower": 0.3, "beta": 0.05, "momentum": 0.5}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_oracle_over_a_stream(options, dtype):
    selector = RunningConfidenceSelector(4, **options)
    r, seen = np.full(4, options["beta"]), np.zeros(4, bool)
    for seed, batch in enumerate((2, 1, 3)):
        logits = random_logits(batch, 4, 9, 7, seed=seed)
        logits[:, 3] -= 60 if seed == 0 else 5  # class 3 is seen only from the second batch on
        logits[0, 1, 0, 0] = float("nan")
        logits = logits.to(dtype)
        labels, r, seen = oracle.running_confidence(logits.double().numpy(), r, seen, **options)
        result = selector(logits)
        np.testing.assert_allclose(selector.running_confidence.numpy(), r, rtol=1e-6)
        assert np.array_equal(selector.seen.numpy(), seen)
        assert np.array_equal(result.labels.numpy(), labels)


def test_defaults_are_dt_sts():
    selector = RunningConfidenceSelector(2)
    assert {name: getattr(selector, name) for name in DT_ST} == DT_ST


def test_first_value_is_taken_even_when_it_equals_beta():
    """A flag, not a comparison with beta, tells whether a class was seen."""
    logits = torch.tensor([1 - 1e-3, 1e-3]).log().reshape(1, 2, 1, 1)
    selector = RunningConfidenceSelector(2, momentum=0.5)
    selector(logits)
    assert selector.seen.all()
    selector(torch.zeros(1, 2, 1, 1))
    assert selector.running_confidence[1].item() == pytest.approx(0.5 * 1e-3 + 0.5 * 0.5, rel=1e-6)


def test_eval_mode_empty_batch_and_all_nan_change_nothing():
    selector = RunningConfidenceSelector(3)
    selector(random_logits(1, 3, 5, 5))
    before = selector.running_confidence.clone()
    assert selector(torch.zeros(0, 3, 4, 4)).labels.shape == (0, 4, 4)
    assert (selector(torch.full((1, 3, 2, 2), float("nan"))).labels == 255).all()
    selector.eval()(random_logits(1, 3, 5, 5, seed=1))
    assert torch.equal(selector.running_confidence, before)


@pytest.mark.parametrize("layout", ["channels_last", "strided", "transposed"])
def test_layouts(layout):
    logits = random_logits(2, 4, 70, 300)
    a, b = RunningConfidenceSelector(4), RunningConfidenceSelector(4)
    assert torch.equal(a(logits).labels, b(layouts(logits)[layout]).labels)
    torch.testing.assert_close(a.running_confidence, b.running_confidence)


def test_state_dict_mid_stream(tmp_path):
    batches = [random_logits(2, 4, 6, 6, seed=s) for s in range(4)]
    straight, first, resumed = (RunningConfidenceSelector(4) for _ in range(3))
    for batch in batches:
        straight(batch)
    for batch in batches[:2]:
        first(batch)
    torch.save(first.state_dict(), tmp_path / "s.pt")
    resumed.load_state_dict(torch.load(tmp_path / "s.pt", weights_only=True))
    for batch in batches[2:]:
        resumed(batch)
    assert torch.equal(resumed.running_confidence, straight.running_confidence)
    resumed.reset()
    assert not resumed.seen.any()


def test_every_argument_changes_the_result():
    def run(**options):
        selector = RunningConfidenceSelector(3, **options)
        logits = random_logits(2, 3, 30, 30, scale=1.0)
        logits[:, 2] -= 4
        selector(logits)
        return selector(logits).labels

    labels = run()
    for options in ({"upper": 0.5}, {"lower": 0.95}, {"beta": 0.5}):
        assert not torch.equal(run(**options), labels)
    assert (run(ignore_index=7) == 7).any()


def test_momentum_weighs_the_old_value():
    selector = RunningConfidenceSelector(2, momentum=0.25)
    selector(torch.tensor([0.8, 0.2]).log().reshape(1, 2, 1, 1))
    selector(torch.tensor([0.4, 0.6]).log().reshape(1, 2, 1, 1))
    torch.testing.assert_close(selector.running_confidence, torch.tensor([0.5, 0.5], dtype=torch.float64))


@pytest.mark.gpu
def test_gpu_equals_cpu():
    logits = random_logits(3, 5, 33, 65)
    cpu, gpu = RunningConfidenceSelector(5), RunningConfidenceSelector(5).cuda()
    labels = cpu(logits).labels
    assert (gpu(logits.cuda()).labels.cpu() == labels).float().mean() > 0.999


def test_errors():
    for name, value in (("upper", 1.1), ("lower", -0.1), ("beta", 0.0), ("momentum", 1.5)):
        with pytest.raises(ValueError, match=f"`{name}`"):
            RunningConfidenceSelector(3, **{name: value})
    with pytest.raises(TypeError, match="`upper`"):
        RunningConfidenceSelector(3, upper=None)
    with pytest.raises(ValueError, match="`num_classes`"):
        RunningConfidenceSelector(0)
    with pytest.raises(ValueError, match="`logits`: expected 3 classes"):
        RunningConfidenceSelector(3)(random_logits())
    with pytest.raises(TypeError, match="`logits`"):
        RunningConfidenceSelector(3)(torch.zeros(1, 3, 2, 2, dtype=torch.int64))
