"""Online self-training, SAC, UniMatch and MIC, from exported folders: killed and resumed, two ranks, their options."""

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from selftrain_seg.store import PseudoLabelStore
from selftrain_seg.teachers import perturb_features
from tests.examples.trainers import EXAMPLES, assert_same_network, result, run, run_and_kill, source_run

pytestmark = pytest.mark.slow

RUNS = {
    "online": ["online.py", "--threshold", 0.3],
    "sac": ["sac.py", "--views", 2, "--teacher-every", 3, "--zoom", 1.0, 1.5],
    "unimatch": ["unimatch.py", "--threshold", 0.3],
    "mic": ["mic.py", "--momentum", 0.9, "--ignored-rows", 2, 5, "--jitter", 0.6],
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Options that all runs here share: a source model, and the data it was trained on."""
    return source_run(tmp_path_factory.mktemp("online"))


def losses(out):
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def labels(out):
    """The bytes of the labels by which SAC draws images."""
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.glob("pseudo-labels/**/*.png")}


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("name", RUNS)
def test_killed_and_restarted_gives_the_same_network(name, processes, begun, tmp_path):
    script, *options = RUNS[name]
    options += [*begun, "--batch", 2 * processes, "--predict-batch", 2, "--steps", 14 // processes]
    options += ["--accumulate", 2, "--amp", "bf16"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(script, whole, *options, processes=processes)
    moment = {"wait_for": "checkpoints/*-000004", "seed": len(name), "within": 0.1}
    run_and_kill(script, killed, *options, **moment, processes=processes)
    assert not (killed / "result.json").exists(), "killed too late to show anything"
    assert "continues after step" in run(script, killed, *options, processes=processes)
    assert_same_network(whole, killed)
    assert result(whole) == result(killed)
    assert labels(whole) == labels(killed)
    assert len(labels(whole)) == (12 if name == "sac" else 0)
    assert not list(killed.rglob("*.tmp"))


@pytest.mark.parametrize("name", RUNS)
def test_two_processes(name, begun, tmp_path):
    script, *options = RUNS[name]
    run(script, tmp_path, *begun, *options, "--batch", 4, processes=2)
    assert 0 <= result(tmp_path)["mIoU"] <= 100
    (folder,) = (tmp_path / "checkpoints").iterdir()
    first, second = (torch.load(path, weights_only=True) for path in sorted(folder.glob("rank*of2.pt")))
    assert ("selector" in first) == (name == "sac")
    for part in {"teacher", "selector"} & first.keys():
        for key, tensor in first[part].items():
            # In train mode the running statistics of the teacher's BatchNorm serve nothing.
            if isinstance(tensor, torch.Tensor) and "running_mean" not in key and "running_var" not in key:
                assert torch.equal(tensor, second[part][key]), (part, key)


def test_sac_draws_images_by_what_the_first_network_says(begun, tmp_path):
    output = run("sac.py", tmp_path, *begun, "--views", 1, "--log-every", 1)
    assert "100.0 % selected" in output
    stored = PseudoLabelStore(tmp_path / "pseudo-labels", 13).round(0)
    assert torch.equal(stored.counts.sum(1), stored.pixels.to(stored.counts.dtype))
    found = losses(tmp_path)
    assert 0 < found["selected"][-1] < 1
    assert found["target_loss"][-1] > 0


def test_parts_can_be_left_out(begun, tmp_path):
    for script, option, loss in (
        ("mic.py", "--mask-weight", "masked_loss"),
        ("unimatch.py", "--feature-weight", "feature_loss"),
    ):
        with_it, without = tmp_path / f"{script}-1", tmp_path / f"{script}-0"
        options = [*begun, "--threshold", 0.0, "--log-every", 1]
        run(script, with_it, *options)
        run(script, without, *options, option, 0)
        assert min(losses(with_it)[loss]) > 0
        assert set(losses(without)[loss]) == {0}


@pytest.mark.parametrize("name", ["small-unet", "lraspp_mobilenet_v3_large", "deeplabv2_resnet101", "Unet/resnet18"])
def test_unimatch_finds_the_features_of_a_network(name, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    from _networks.build import Scaled, build
    from _networks.settings import NetworkSettings
    from unimatch import features_of

    if "/" in name:
        pytest.importorskip("segmentation_models_pytorch")
    net = build(NetworkSettings(network=name, from_scratch=True), 4).eval()
    images = torch.rand(2, 3, 32, 64)
    with torch.no_grad():
        clean = net(images)
        with perturb_features(features_of(net)):
            perturbed = net(images)
    assert perturbed.shape == clean.shape == (2, 4, 32, 64)
    assert not torch.allclose(perturbed, clean)
    with pytest.raises(SystemExit, match=r"--network has no `backbone` or `encoder`.*: --feature-weight 0"):
        features_of(Scaled(torch.nn.Conv2d(3, 4, 1)))


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        (
            "unimatch.py",
            ["--batch", 1],
            "CutMix needs two images per process: expected a --batch of at least twice the processes",
        ),
        ("sac.py", ["--views", 0], "--views 0: expected at least 1"),
        ("mic.py", ["--patch", 0], "--patch 0: expected at least 1"),
    ],
)
def test_what_cannot_work_is_said(script, options, message, begun, tmp_path):
    with pytest.raises(AssertionError, match=message) as caught:
        run(script, tmp_path, *begun, *options)
    assert "Traceback" not in str(caught.value)
