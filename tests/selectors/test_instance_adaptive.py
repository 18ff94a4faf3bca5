import numpy as np
import pytest
import torch

from selftrain_seg.selectors import InstanceAdaptiveSelector
from tests.helpers import layouts, random_logits
from tests.oracles import adaptive as oracle


def test_by_hand():
    # One class pixel of confidence 0.8 beside θ = 0.6; quantile at 1 - 0.25 · 0.6⁰ = 0.75 of {0.6, 0.8} is 0.75;
    # θ = 0.5 · 0.6 + 0.5 · 0.75 = 0.675 and 0.8 passes it.
    selector = InstanceAdaptiveSelector(2, portion=0.25, momentum=0.5, gamma=0.0, initial=0.6)
    result = selector(torch.tensor([0.8, 0.2]).log().reshape(1, 2, 1, 1))
    torch.testing.assert_close(selector.thresholds, torch.tensor([0.675, 0.6], dtype=torch.float64))
    assert result.labels.item() == 0


@pytest.mark.parametrize("per", ["image", "batch"])
@pytest.mark.parametrize(
    "options", [{"portion": 0.2, "momentum": 0.9, "gamma": 8.0}, {"portion": 0.7, "momentum": 0.3, "gamma": 1.0}]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_oracle_over_a_stream(per, options, dtype):
    selector, theta = InstanceAdaptiveSelector(4, per=per, initial=0.8, **options), np.full(4, 0.8)
    for seed, batch in enumerate((2, 1, 3)):
        logits = random_logits(batch, 4, 9, 7, seed=seed)
        logits[:, 3] -= 8  # hardly ever predicted
        logits[0, 1, 0, 0] = float("nan")
        logits = logits.to(dtype)
        labels, theta = oracle.instance_adaptive(logits.double().numpy(), theta, per=per, **options)
        result = selector(logits)
        np.testing.assert_allclose(selector.thresholds.numpy(), theta, rtol=1e-6)
        assert np.array_equal(result.labels.numpy(), labels)


def test_quantile_is_numpys_to_the_last_element():
    """α from 0 to 1 visits every order statistic, θ below, between and above the confidences."""
    logits = random_logits(1, 3, 8, 8)
    for initial in (0.0, 0.6, 0.999):
        for portion in np.linspace(0, 1, 23):
            options = {"portion": float(portion), "momentum": 0.0, "gamma": 0.5}
            selector = InstanceAdaptiveSelector(3, initial=initial, **options)
            selector(logits)
            _, theta = oracle.instance_adaptive(logits.double().numpy(), np.full(3, initial), **options)
            np.testing.assert_allclose(selector.thresholds.numpy(), theta, rtol=1e-6)


def test_a_threshold_of_1_becomes_0999_and_one_between_stays():
    selector = InstanceAdaptiveSelector(2, momentum=0.0)
    result = selector(torch.tensor([80.0, -80.0]).reshape(1, 2, 1, 1).expand(2, 2, 5, 5))
    assert selector.thresholds[0] == 0.999
    assert (result.labels == 0).all()
    selector.reset()
    result = selector(torch.tensor([8.0, 0.0]).reshape(1, 2, 1, 1).expand(1, 2, 5, 5))
    assert selector.thresholds[0].item() == pytest.approx(torch.tensor(8.0).sigmoid().item())
    assert (result.labels == 0).all()
    below = torch.tensor([7.5, 0.0]).reshape(1, 2, 1, 1)  # above 0.999, yet not sure enough
    assert selector.eval()(below).labels.item() == 255


def test_eval_mode_keeps_theta_and_labels_all_images_alike():
    selector = InstanceAdaptiveSelector(3).eval()
    logits = random_logits(2, 3, 6, 6)
    result = selector(logits)
    assert (selector.thresholds == 0.9).all()
    expected = torch.where(logits.softmax(1).amax(1) >= 0.9, logits.argmax(1), 255)
    assert torch.equal(result.labels, expected)


@pytest.mark.parametrize("per", ["image", "batch"])
@pytest.mark.parametrize("training", [True, False])
def test_empty_batch_one_class_all_nan(per, training):
    selector = InstanceAdaptiveSelector(3, per=per).train(training)
    assert selector(torch.zeros(0, 3, 4, 4)).labels.shape == (0, 4, 4)
    assert selector(torch.zeros(2, 3, 0, 5)).labels.shape == (2, 0, 5)
    assert (selector(torch.full((2, 3, 4, 4), float("nan"))).labels == 255).all()
    assert (selector.thresholds == 0.9).all()
    with pytest.raises(ValueError, match="`num_classes`: expected at least 2, got 1"):
        InstanceAdaptiveSelector(1, per=per)
    with pytest.raises(ValueError, match=r"`logits`: expected at least two classes .* got 1 .*binary=True"):
        selector(torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize("layout", ["channels_last", "strided", "transposed"])
def test_layouts(layout):
    logits = random_logits(2, 4, 20, 30)
    a, b = InstanceAdaptiveSelector(4), InstanceAdaptiveSelector(4)
    assert torch.equal(a(logits).labels, b(layouts(logits)[layout]).labels)
    torch.testing.assert_close(a.thresholds, b.thresholds)


def test_state_dict_mid_stream(tmp_path):
    batches = [random_logits(2, 4, 6, 6, seed=s) for s in range(4)]
    straight, first, resumed = (InstanceAdaptiveSelector(4) for _ in range(3))
    for batch in batches:
        straight(batch)
    for batch in batches[:2]:
        first(batch)
    torch.save(first.state_dict(), tmp_path / "s.pt")
    resumed.load_state_dict(torch.load(tmp_path / "s.pt", weights_only=True))
    for batch in batches[2:]:
        resumed(batch)
    assert torch.equal(resumed.thresholds, straight.thresholds)
    resumed.reset()
    assert (resumed.thresholds == 0.9).all()


def test_every_argument_changes_the_result():
    def theta(**options):
        selector = InstanceAdaptiveSelector(3, **{"momentum": 0.5, **options})
        selector(random_logits(3, 3, 8, 8))
        return selector.thresholds

    for options in ({"portion": 0.9}, {"momentum": 0.1}, {"gamma": 1.0}, {"initial": 0.5}, {"per": "batch"}):
        assert not torch.equal(theta(**options), theta())
    assert (InstanceAdaptiveSelector(3, ignore_index=-1)(random_logits(1, 3, 8, 8, scale=0.1)).labels == -1).any()


def test_detached_and_unmutated():
    logits = random_logits(2, 3, 4, 4).requires_grad_()
    before = logits.detach().clone()
    result = InstanceAdaptiveSelector(3)(logits)
    assert not result.confidence.requires_grad
    assert torch.equal(logits, before)


@pytest.mark.gpu
def test_gpu_equals_cpu():
    logits = random_logits(3, 5, 33, 65)
    cpu, gpu = InstanceAdaptiveSelector(5), InstanceAdaptiveSelector(5).cuda()
    labels = cpu(logits).labels
    assert (gpu(logits.cuda()).labels.cpu() == labels).float().mean() > 0.99
    torch.testing.assert_close(gpu.thresholds.cpu(), cpu.thresholds, rtol=0, atol=1e-3)  # which `ops.adapt` promises


def test_errors():
    for name, value in (
        ("portion", -0.1),
        ("portion", 1.1),
        ("momentum", 2.0),
        ("gamma", -1.0),
        ("initial", 1.5),
        ("per", "x"),
    ):
        with pytest.raises(ValueError, match=f"`{name}`"):
            InstanceAdaptiveSelector(3, **{name: value})
    with pytest.raises(TypeError, match="`portion`"):
        InstanceAdaptiveSelector(3, portion="a")
    with pytest.raises(ValueError, match="`num_classes`"):
        InstanceAdaptiveSelector(0)
    with pytest.raises(ValueError, match="`logits`: expected 3 classes"):
        InstanceAdaptiveSelector(3)(random_logits())
    with pytest.raises(TypeError, match="`logits`"):
        InstanceAdaptiveSelector(3)(torch.zeros(1, 3, 2, 2, dtype=torch.int64))
