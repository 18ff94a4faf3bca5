"""The check without target labels, mixed BatchNorm, and the recommended trainer that uses both."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import re
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from selftrain_seg.restyle import ConfusionMatrix, match_moments
from tests.examples.trainers import EXAMPLES, assert_same_network, result, run, run_and_kill, source_run


@pytest.fixture
def common(monkeypatch):
    """Lets a test import what the examples share."""
    monkeypatch.syspath_prepend(EXAMPLES)


class Images(list):
    """A data set in memory that can be divided as ``Part``."""

    def only(self, indices):
        return Images(self[index] for index in indices)


def images(count, seed, *, low=0.0, high=1.0, labels=True):
    generator = torch.Generator().manual_seed(seed)
    made = Images()
    for place in range(count):
        image = low + (high - low) * torch.rand(3, 8, 12, generator=generator)
        made.append((image, (image[0] > image[1]).long() if labels else str(place)))
    return made


def bare_run(tmp_path, **changes):
    """What the functions under test read of a run."""
    settings = {"reestimate_bn": 0, "check": "restyled", "check_images": 64, "check_tolerance": 0.0, "init": None}
    settings |= {"tile": None, "overlap": 0.25, "workers": 0, "predict_batch": 2, "scales": (1.0,), "flip": False}
    settings |= {"data": "folders", "seed": 0, **changes}
    run = SimpleNamespace(settings=Namespace(**settings), out=tmp_path, rank=0, world=1, main=True, steps_done=0)
    run.device, run.autocast, run.told = torch.device("cpu"), contextlib.nullcontext, []
    run.say, run.average_buffers = run.told.append, lambda _: None
    return run


def data_of(source, target, held_out=None):
    from _data.opening import Data

    from selftrain_seg.datasets import LabelMap

    return Data(source, target, None, None, LabelMap.binary(), {"mIoU": (0, 1)}, False, held_out)


# Held-out images


@pytest.mark.parametrize("length", [2, 7, 8, 9, 16, 63, 64, 65, 511, 512, 513, 1000, 24966])
@pytest.mark.parametrize("most", [1, 5, 64])
def test_an_eighth_at_most_is_held_out_in_runs(common, length, most):
    from _data.held_out import held_out_places

    places = held_out_places(length, most)
    assert places == sorted(set(places))
    assert 0 <= places[0] <= places[-1] < length
    assert len(places) == max(1, min(most, length // 8))
    starts = sum(second != first + 1 for first, second in itertools.pairwise(places)) + 1
    assert starts <= -(-len(places) // 8)


def test_source_images_are_trained_on_or_held_out(common, tmp_path):
    from _data.held_out import hold_out

    source = images(20, 0)
    whole = data_of(source, images(3, 1, labels=False))
    assert hold_out(whole, bare_run(tmp_path, check="none")) is whole
    for changes in ({}, {"check": "none", "reestimate_bn": "auto"}):
        divided = hold_out(whole, bare_run(tmp_path, **changes))
        parts = [{id(item) for item in part} for part in (divided.source, divided.held_out)]
        assert [len(part) for part in parts] == [18, 2]
        assert set.union(*parts) == {id(item) for item in source}


def test_a_start_that_was_trained_on_the_held_out_images_is_told(common, tmp_path):
    from _data.held_out import hold_out

    data = data_of(images(20, 0), images(3, 1, labels=False))
    for check, count, expected in (("none", 64, 1), ("restyled", 64, 0), ("restyled", 32, 1)):
        begun = {"data": "folders", "check": check, "check_images": count, "reestimate_bn": 0}
        (tmp_path / "arguments.json").write_text(json.dumps(begun))
        for init in (tmp_path / "model.pt", tmp_path):
            run = bare_run(tmp_path, init=init)
            hold_out(data, run)
            assert sum("was trained on the held-out images" in text for text in run.told) == expected


def test_without_source_images_nothing_can_be_held_out(common, tmp_path):
    from _data.held_out import hold_out

    target_only = data_of(None, images(3, 1, labels=False))
    with pytest.raises(SystemExit, match="--check restyled: this trainer has no source images"):
        hold_out(target_only, bare_run(tmp_path))
    for share in ("auto", 0.3):
        with pytest.raises(SystemExit, match=f"--reestimate-bn {share}: this trainer has no source images: 0 or 1"):
            hold_out(target_only, bare_run(tmp_path, check="none", reestimate_bn=share))
    with pytest.raises(SystemExit, match="expected at least 2, got 1"):
        hold_out(data_of(images(1, 0), images(3, 1, labels=False)), bare_run(tmp_path))


# The score


def test_the_score_is_that_of_source_images_with_the_moments_of_target_images(common, tmp_path):
    from _common.evaluation import restyled_miou
    from _data.held_out import Restyled

    held_out, target = images(5, 0), images(4, 1, low=0.2, high=0.4, labels=False)
    net = nn.Conv2d(3, 2, 1)
    matrix = ConfusionMatrix(2)
    restyled = Restyled(held_out, target)
    assert Restyled(held_out, target).styles == restyled.styles
    assert len(set(restyled.styles)) > 1
    for place, (image, labels) in enumerate(held_out):
        style = target[restyled.styles[place]][0]
        expected = match_moments(image[None], style[None], space="lab", clip=True)
        torch.testing.assert_close(restyled[place][0], expected[0])
        torch.testing.assert_close(restyled[place][0].mean((1, 2)), style.mean((1, 2)), atol=0.05, rtol=0)
        matrix.update(net(expected), labels[None])
    data, run = data_of(images(3, 2), target, held_out), bare_run(tmp_path)
    found = restyled_miou(net, data, run)
    assert found == pytest.approx(100 * float(matrix.compute().miou))
    assert found == restyled_miou(net, data, run)


def test_channels_that_are_no_colours_are_restyled_by_themselves(common):
    from _data.held_out import Restyled

    four = [(torch.rand(4, 8, 12), torch.zeros(8, 12, dtype=torch.long))]
    style = [((60 + 40 * torch.rand(4, 8, 12)).byte(), "a")]
    (image, _), expected = Restyled(four, style)[0], style[0][0].float() / 255
    torch.testing.assert_close(image.mean((1, 2)), expected.mean((1, 2)))


# BatchNorm


def norm():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def test_shares_of_the_target_in_batchnorm(common, tmp_path):
    from _common.evaluation import ready_to_predict

    source, target = images(6, 0), images(6, 1, low=0.5, labels=False)
    data = data_of(source, target)
    means, found = {}, {}
    for name, part in (("source", source), ("target", target)):
        values = torch.cat([norm()[0](image[None]) for image, _ in part])
        means[name] = values.mean((0, 2, 3))
    for share in (0, 0.25, 0.5, 1):
        net = norm()
        ready_to_predict(net, data, bare_run(tmp_path, reestimate_bn=share))
        found[share] = net[1].running_mean.clone()
        ready_to_predict(net, data, bare_run(tmp_path, reestimate_bn=share))
        assert torch.equal(net[1].running_mean, found[share])  # and not mixed again
        assert not net.training
    assert torch.equal(found[0], norm()[1].running_mean)  # as the network came
    torch.testing.assert_close(found[1], means["target"])
    for share in (0.25, 0.5):
        torch.testing.assert_close(found[share], share * means["target"] + (1 - share) * means["source"])


def test_auto_takes_the_smallest_share_of_the_best(common, tmp_path, monkeypatch):
    from _common import evaluation

    data = data_of(images(6, 0), images(6, 1, low=0.5, labels=False), images(4, 2))
    means = {}
    for share in (0, 0.3, 1):
        net = norm()
        evaluation.reestimate_batchnorm(net, data, bare_run(tmp_path), share)
        means[share] = float(net[1].running_mean[0])
    monkeypatch.setattr(
        evaluation, "restyled_miou", lambda net, *_: -100 * abs(float(net[1].running_mean[0]) - means[0.3])
    )
    run = bare_run(tmp_path)
    assert evaluation.reestimate_batchnorm(net, data, run, "auto") == 0.3
    assert float(net[1].running_mean[0]) == pytest.approx(means[0.3])
    assert "BatchNorm: 0.3 of the target's statistics" in run.told[-1]
    careful = bare_run(tmp_path, check_tolerance=1000.0)
    assert evaluation.reestimate_batchnorm(net, data, careful, "auto") == 0


@pytest.mark.parametrize("share", ["-0.1", "1.5", "nan"])
def test_a_share_out_of_range_is_said(common, share):
    import cbst
    from _common.numbers import check
    from _common.settings import parse

    with pytest.raises(SystemExit, match=f"--reestimate-bn {share}: expected a share from 0 to 1, or auto"):
        check(parse(cbst.CBSTSettings, "", ["--reestimate-bn", share]))


def test_whole_shares_are_the_settings_they_were(common):
    """A run that was begun with 1 goes on with 1."""
    import cbst
    from _common.settings import parse

    assert parse(cbst.CBSTSettings, "", []).reestimate_bn == 1
    assert parse(cbst.CBSTSettings, "", ["--reestimate-bn", "1"]).reestimate_bn == 1
    assert parse(cbst.CBSTSettings, "", ["--reestimate-bn", "auto"]).reestimate_bn == "auto"


# The verdict


def notes(scores):
    """(name, step, score, before training) of a run; the network's weight is its place."""
    first = [("source only", 0, scores[0], True), ("BatchNorm re-estimated", 0, scores[1], True)]
    return [*first, *((f"round {place}", 10 * place, score, False) for place, score in enumerate(scores[2:], 1))]


def note(run, places, all_notes):
    from _common.scores import record_score

    for place in places:
        where, run.steps_done, score, before = all_notes[place]
        net = nn.Linear(1, 1)
        nn.init.constant_(net.weight, place)
        record_score(net, where, run, before=before, miou=None, restyled=score)


def kept(run):
    return int(torch.load(run.out / "kept.pt", weights_only=True)["weight"])


@pytest.mark.parametrize(
    ("scores", "place", "text"),
    [
        (
            [40, 44, 46, 47.5, 46.5],
            3,
            r"^kept: round 2, mIoU on restyled source 47\.5, \+3\.5 over BatchNorm re-estimated;",
        ),
        ([44, 40, 43, 42], 0, r"^adaptation is not helping here: keep the network before training \(source only\)"),
        (
            [40, 44, 44.9, 44.8],
            1,
            r"before training \(BatchNorm re-estimated\).* 44\.0, at best 44\.9 since \(round 1\)",
        ),
        ([44, 40, 45.1, 45.9], 3, r"^kept: round 2, .*, \+1\.9 over source only;"),
        ([44, 40, 45.0, 44.9], 0, r"^adaptation is not helping here"),  # 1.0 more is noise
        ([40, 44], 1, r"^kept: BatchNorm re-estimated, mIoU on restyled source 44\.0; weights in .*kept\.pt$"),
    ],
)
def test_verdicts(common, tmp_path, scores, place, text):
    from _common.scores import best_scores

    run = bare_run(tmp_path, check_tolerance=1.0)
    note(run, range(len(scores)), notes(scores))
    found = best_scores(run)
    assert kept(run) == place
    assert found["kept"] == notes(scores)[place][0]
    assert re.search(text, run.told[-1])
    assert run.told[-1].startswith(found["verdict"])


@pytest.mark.parametrize(
    ("scores", "place", "text"),
    [
        ([44, 40, 43.5, 43.2], 2, r"^kept: round 1, .* 43\.5, -0\.5 over source only;"),
        ([44, 40, 43.2, 43.6], 3, r"^kept: round 2,"),
        ([44, 40, 43.0, 42.0], 0, r"^adaptation is not helping here.* at best 43\.0 .* it may fall by less than 1;"),
        ([44, 40, 45.0, 44.0], 2, r"^kept: round 1, .* \+1\.0 over source only;"),
    ],
)
def test_a_tolerance_below_0_lets_the_score_fall(common, tmp_path, scores, place, text):
    from _common.scores import best_scores

    run = bare_run(tmp_path, check_tolerance=-1.0)
    note(run, range(len(scores)), notes(scores))
    best_scores(run)
    assert kept(run) == place
    assert re.search(text, run.told[-1]), run.told[-1]


@pytest.mark.parametrize("seed", range(20))
def test_an_interrupted_run_comes_to_the_same_verdict(common, tmp_path, seed):
    from _common.scores import best_scores

    drawn = random.Random(seed)  # noqa: S311
    scores = [drawn.uniform(40, 50) for _ in range(8)]
    folders = [tmp_path / name for name in ("whole", "killed")]
    whole, killed = (bare_run(folder, check_tolerance=1.0) for folder in folders)
    note(whole, range(8), notes(scores))
    last = drawn.randrange(3, 8)
    note(killed, range(last), notes(scores))
    note(killed, range(drawn.randrange(2, last), 8), notes(scores))  # from the last checkpoint
    assert kept(whole) == kept(killed)
    assert (folders[0] / "scores.json").read_text() == (folders[1] / "scores.json").read_text()
    assert {**best_scores(whole), "verdict": ""} == {**best_scores(killed), "verdict": ""}
    start, best = max(scores[:2]), max(scores[2:])
    assert kept(whole) == scores.index(best if best > start + 1 else start)


def test_a_run_without_the_scores_before_training_is_refused(common, tmp_path):
    run = bare_run(tmp_path, check_tolerance=1.0)
    with pytest.raises(SystemExit, match=r"scores\.json: no score before training"):
        note(run, [2], notes([40, 44, 45]))  # resumed from a checkpoint, but somebody removed scores.json
    assert not (tmp_path / "kept.pt").exists()


class Killed(BaseException):
    """In place of SIGKILL: nothing in the code catches it."""


def killed_before(monkeypatch, operation):
    """Let no more than so many files be renamed or removed; returns what says how many would have been."""
    done = []

    def counted(original):
        def call(*arguments, **options):
            done.append(original)
            if len(done) > operation:
                raise Killed
            return original(*arguments, **options)

        return call

    for name in ("replace", "unlink"):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))
    return done


@pytest.mark.parametrize("seed", range(6))
def test_weights_kept_are_those_that_were_scored_whenever_a_run_is_killed(common, tmp_path, monkeypatch, seed):
    """Training is not repeated bit by bit: at the same place, another attempt has other weights and another score."""
    from _common.scores import SCORE, best_scores, record_score

    drawn = random.Random(seed)  # noqa: S311
    before = [drawn.uniform(40, 44) for _ in range(2)]
    scores = [[*before, *(drawn.uniform(40, 50) for _ in range(4))] for _ in range(2)]

    def go(run, attempt, places):
        net = nn.Linear(1, 1)
        for place in places:
            where, run.steps_done, score, first = notes(scores[attempt])[place]
            nn.init.constant_(net.weight, place + 100 * attempt)
            reached.append(place)
            record_score(net, where, run, before=first, miou=100 - score, restyled=score)

    for operation in itertools.count():
        run, reached = bare_run(tmp_path / str(operation), check_tolerance=1.0), []
        with monkeypatch.context() as patched:
            done = killed_before(patched, operation)
            with contextlib.suppress(Killed):
                go(run, 0, range(5))
        go(run, 1, range(drawn.randrange(len(reached)), 6))  # from a checkpoint before

        found = best_scores(run)
        noted = {entry["at"]: entry[SCORE] for entry in entries(run.out)}
        assert found["best mIoU"] == 100 - min(noted.values())  # the other way round, so the two files differ
        for name, at in (("kept.pt", found["kept"]), ("best.pt", found["best at"])):
            weight = int(torch.load(run.out / name, weights_only=True)["weight"])
            assert noted[at] == scores[weight // 100][weight % 100], (name, operation)
        assert sorted(path.name for path in run.out.glob("*.pt")) == ["best.pt", "kept.pt"]
        assert not list(run.out.glob(".*"))
        if len(done) <= operation:
            break
    assert operation > 10


def test_a_round_of_the_same_name_after_more_steps_is_another(common, tmp_path):
    """``iast.py --rounds 0`` scores the warm-up as round 1; with more rounds there is another."""
    run = bare_run(tmp_path)
    places = [*notes([40.0, 41.0]), ("round 1", 3, 42.0, False), ("round 1", 6, 43.0, False)]
    note(run, range(4), places)
    assert [(entry["at"], entry["step"]) for entry in entries(tmp_path)][2:] == [("round 1", 3), ("round 1", 6)]
    assert kept(run) == 3


def test_without_a_check_there_is_no_verdict(common, tmp_path):
    from _common.scores import best_scores

    assert best_scores(bare_run(tmp_path)) == {}


# Runs


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Options that all runs here share: a source model, and the data it was trained on."""
    return source_run(tmp_path_factory.mktemp("check"))


def entries(out):
    return json.loads((out / "scores.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_recommended_killed_and_restarted_keeps_the_same_weights(begun, tmp_path):
    options = [*begun, "--steps", 8, "--eval-every", 3, "--check-tolerance", 0, "--rare-temperature", 0.1]
    options += ["--reestimate-bn", 0.3, "--restyled-share", 0.5, "--rare-from-source", 0.1]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    output = run("recommended.py", whole, *options)
    assert "8 held-out source" in output
    moment = {"wait_for": "checkpoints/*-000004", "seed": 0, "within": 0.1}
    run_and_kill("recommended.py", killed, *options, **moment)
    assert not (killed / "result.json").exists(), "killed too late to show anything"
    assert "continues after step" in run("recommended.py", killed, *options)
    assert_same_network(whole, killed)
    assert result(whole) | {"verdict": ""} == result(killed) | {"verdict": ""}
    assert entries(whole) == entries(killed)
    steps = [(entry["at"], entry["step"]) for entry in entries(whole)]
    online = [("adaptation, step 3", 3), ("adaptation, step 6", 6)]
    assert steps == [("source only", 0), ("BatchNorm re-estimated", 0), *online, ("round 1", 8)]
    one, other = (torch.load(out / "kept.pt", weights_only=True) for out in (whole, killed))
    assert all(torch.equal(one[name], other[name]) for name in one)
    page = (whole / "report.html").read_text(encoding="utf-8")
    assert "mIoU on restyled source by step" in page
    assert result(whole)["verdict"] in page


@pytest.mark.slow
def test_recommended_on_two_processes(begun, tmp_path):
    options = [*begun, "--batch", 4, "--paste-from", "source", "--jitter", 4]
    run("recommended.py", tmp_path / "one", *options)
    run("recommended.py", tmp_path / "two", *options, processes=2)
    # Before training they do the same, but for the rounding of sums over processes.
    (source, mixed), (other_source, other_mixed) = (entries(tmp_path / name)[:2] for name in ("one", "two"))
    assert source == other_source
    assert [*mixed.values()][3:] == pytest.approx([*other_mixed.values()][3:], rel=1e-3)
    (folder,) = (tmp_path / "two" / "checkpoints").iterdir()
    states = [torch.load(path, weights_only=True)["teacher"] for path in sorted(folder.glob("rank*of2.pt"))]
    for name, tensor in states[0].items():
        if isinstance(tensor, torch.Tensor) and "running_" not in name:
            assert torch.equal(tensor, states[1][name]), name


@pytest.mark.slow
def test_the_teacher_is_what_is_saved_if_it_is_what_is_evaluated(begun, tmp_path):
    saved = {}
    for evaluated in ("student", "teacher"):
        out = tmp_path / evaluated
        run("recommended.py", out, *begun, "--evaluated", evaluated, "--check", "none", "--reestimate-bn", 0)
        saved[evaluated] = torch.load(out / "model.pt", weights_only=True)
        (state,) = out.glob("checkpoints/*/rank0of1.pt")
        teacher = torch.load(state, weights_only=True)["teacher"]
    weights = [name for name in saved["teacher"] if "running_" not in name and "num_batches" not in name]
    assert all(torch.equal(saved["teacher"][name], teacher[f"model.{name}"]) for name in weights)
    assert not all(torch.equal(saved["teacher"][name], saved["student"][name]) for name in weights)


def test_pixels_that_may_be_of_a_rare_class(common, monkeypatch):
    from recommended import may_be_of

    probs = torch.tensor([[0.97, 0.02, 0.01], [0.90, 0.04, 0.06], [0.92, 0.04, 0.04], [0.1, 0.9, 0.0]])
    logits = probs.log().T[None, :, None]
    assert may_be_of(logits, torch.tensor([1])).flatten().tolist() == [False, False, False, True]
    assert may_be_of(logits, torch.tensor([2, 1])).flatten().tolist() == [False, True, True, True]
    assert not may_be_of(logits, torch.tensor([], dtype=torch.long)).any()


@pytest.mark.slow
def test_parts_of_the_recipe_can_be_left_out(begun, tmp_path):
    options = [*begun, "--restyled-share", 0, "--paste-from", "none", "--jitter", 0, "--target-weight", 0]
    output = run("recommended.py", tmp_path, *options, "--check", "none")
    assert "held-out" not in output
    assert not (tmp_path / "kept.pt").exists()
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert {entry["mIoU on restyled source"] for entry in scores} == {None}


@pytest.mark.slow
def test_rounds_are_checked_and_the_kept_weights_are_of_one_of_them(begun, tmp_path):
    output = run("cbst.py", tmp_path, *begun, "--rounds", 2, "--check", "restyled", "--steps", 2)
    found = result(tmp_path)
    names = ["source only", "BatchNorm re-estimated", "round 1", "round 2"]
    assert [entry["at"] for entry in entries(tmp_path)] == names
    assert found["kept"] in names
    assert found["verdict"] in output
    weights, last = (torch.load(tmp_path / name, weights_only=True) for name in ("kept.pt", "model.pt"))
    assert all(torch.equal(weights[name], last[name]) for name in last) == (found["kept"] == "round 2")
