"""Every line of Raises that is not told elsewhere."""

import pytest
import torch

from selftrain_seg import PseudoLabels
from selftrain_seg.store import PseudoLabelDataset, PseudoLabelStore
from tests.store.cases import CLASSES, open_store, pseudo, tree, write_all


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (TypeError, "`num_classes`: expected an int", {"num_classes": 19.0}),
        (ValueError, "`num_classes`: expected at least 1", {"num_classes": 0}),
        (ValueError, "`num_classes`: expected at most 255 .labels are 8 bits., got 256", {"num_classes": 256}),
        (TypeError, "`ignore_index`: expected an int", {"ignore_index": None}),
        (ValueError, "`ignore_index`: expected at least 0, got -1", {"ignore_index": -1}),
        (ValueError, r"`ignore_index`: expected a value in \[0, 255\] .labels are 8 bits.", {"ignore_index": 256}),
        (ValueError, "`classes`: expected 3 names", {"classes": ["a", "b"]}),
        (ValueError, "`classes`: expected 3 names", {"classes": "abc"}),
        (ValueError, "`palette`: expected 3 colours, got 1", {"palette": [(0, 0, 0)]}),
        (
            ValueError,
            r"`palette`: expected colours of three values in \[0, 255\], got \(0, 256, 0\)",
            {"palette": [(0, 256, 0)] * 3},
        ),
        (ValueError, "`palette`: expected colours of three values", {"palette": [(0, 0)] * 3}),
        (
            ValueError,
            "`keep`: expected some of 'confidence', 'soft', 'pixel_weight', 'predicted'",
            {"keep": ["logits"]},
        ),
        (ValueError, "`keep`: expected some of", {"keep": "soft"}),
        (ValueError, "`keep`: expected some of", {"keep": ["soft", "soft"]}),
        (ValueError, "`top_k`: expected at least 1", {"top_k": 0}),
        (TypeError, "`top_k`: expected an int", {"top_k": 1.5}),
        (ValueError, "`threads`: expected at least 0", {"threads": -1}),
        (TypeError, "`threads`: expected an int", {"threads": "2"}),
    ],
)
def test_store(error, message, options):
    with pytest.raises(error, match=message):
        PseudoLabelStore("unused", **{"num_classes": 3, **options})


NAN = float("nan")


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (TypeError, "`round`: expected an int", {"round": "0"}),
        (ValueError, "`round`: expected at least 0", {"round": -1}),
        (TypeError, "`thresholds`: expected a torch.Tensor, got list", {"thresholds": [0.5] * CLASSES}),
        (TypeError, "`thresholds`: expected a floating-point dtype", {"thresholds": torch.ones(CLASSES).long()}),
        (ValueError, r"`thresholds`: expected \(C,\) = \(5,\), got \(4,\)", {"thresholds": torch.ones(4)}),
        (ValueError, "`thresholds`: expected values of at least 0, got -1.0", {"thresholds": -torch.ones(CLASSES)}),
        (ValueError, "`thresholds`: expected values .* got nan", {"thresholds": torch.full((CLASSES,), NAN)}),
        (TypeError, "`portion`: expected a number", {"portion": "0.2"}),
        (ValueError, "`portion`: expected a value in", {"portion": 1.5}),
        (ValueError, r"`portion`: expected a number or \(C,\)", {"portion": torch.ones(2)}),
        (ValueError, "`portion`: expected values in", {"portion": torch.full((CLASSES,), 1.5)}),
        (TypeError, "`meta`: expected a dict, got list", {"meta": [1]}),
        (ValueError, "`meta`: expected values that JSON supports", {"meta": {"a": torch.ones(1)}}),
        (ValueError, "`meta`: expected values that JSON supports", {"meta": {"a": NAN}}),
    ],
)
def test_write(tmp_path, error, message, options):
    with pytest.raises(error, match=message):
        open_store(tmp_path / "s").write(**{"round": 0, "names": ["a"], **options})
    assert not (tmp_path / "s").exists()


def changed(**fields):
    return pseudo("a")._replace(**fields)


def one(value, like, place=(0, 3, 4)):
    out = like.clone()
    out[place] = value
    return out


GOOD = pseudo("a")


@pytest.mark.parametrize(
    ("error", "message", "given"),
    [
        (TypeError, "`pseudo`: expected PseudoLabels, got Tensor", GOOD.labels),
        (TypeError, "`labels`: expected an integer dtype", changed(labels=GOOD.confidence)),
        (ValueError, r"`labels`: expected \(B, H, W\)", changed(labels=GOOD.labels[0])),
        (
            ValueError,
            "`labels`: expected at least one pixel per image",
            PseudoLabels(torch.ones(1, 0, 3).long(), torch.ones(1, 0, 3)),
        ),
        (
            ValueError,
            r"`labels`: expected values in \[0, 5\) or ignore_index 255, got 5 in image 'a'",
            changed(labels=one(5, GOOD.labels)),
        ),
        (ValueError, "`labels`: expected .* got 256 in image 'a'", changed(labels=one(256, GOOD.labels))),
        (ValueError, "`labels`: expected .* got -1 in image 'a'", changed(labels=one(-1, GOOD.labels))),
        (ValueError, r"`confidence`: expected \(B, H, W\)", changed(confidence=GOOD.confidence[:, 1:])),
        (TypeError, "`confidence`: expected a torch.Tensor", changed(confidence=[1.0])),
        (TypeError, "`confidence`: expected a floating-point dtype", changed(confidence=GOOD.labels)),
        (
            ValueError,
            "`confidence`: expected finite values of at least 0, got nan",
            changed(confidence=one(NAN, GOOD.confidence)),
        ),
        (
            ValueError,
            "`confidence`: expected finite values .* got -0.5",
            changed(confidence=one(-0.5, GOOD.confidence)),
        ),
        (
            ValueError,
            "`confidence`: expected finite values .* got inf",
            changed(confidence=one(torch.inf, GOOD.confidence)),
        ),
        (ValueError, r"`soft`: expected \(B, C, H, W\)", changed(soft=GOOD.soft[:, :4])),
        (TypeError, "`soft`: expected a floating-point dtype", changed(soft=GOOD.soft.long())),
        (
            ValueError,
            "`soft`: expected entries of at least 0 that sum to 1 or are all 0, got a sum of 1.5",
            changed(soft=one(torch.tensor([1.5, 0, 0, 0, 0]), GOOD.soft, (0, slice(None), 3, 4))),
        ),
        (
            ValueError,
            "`soft`: expected entries .* got -0.5 in image 'a'",
            changed(soft=one(torch.tensor([1.5, -0.5, 0, 0, 0]), GOOD.soft, (0, slice(None), 3, 4))),
        ),
        (
            ValueError,
            "`soft`: expected entries .* got nan in image 'a'",
            changed(soft=one(NAN, GOOD.soft, (0, 2, 3, 4))),
        ),
        (
            ValueError,
            r"`pixel_weight`: expected values in \[0, 1\], got 1.25 in image 'a'",
            changed(pixel_weight=one(1.25, GOOD.pixel_weight)),
        ),
        (
            ValueError,
            r"`pixel_weight`: expected values in \[0, 1\], got nan",
            changed(pixel_weight=one(NAN, GOOD.pixel_weight)),
        ),
        (ValueError, r"`pixel_weight`: expected \(B, H, W\)", changed(pixel_weight=GOOD.pixel_weight[:, :, 1:])),
        (TypeError, "`pixel_weight`: expected a floating-point dtype", changed(pixel_weight=GOOD.labels)),
        (TypeError, "`predicted`: expected an integer dtype", changed(predicted=GOOD.confidence)),
        (ValueError, r"`predicted`: expected values in \[0, 5\) .* got 7", changed(predicted=one(7, GOOD.predicted))),
        (ValueError, "`predicted`: expected device cpu, got meta", changed(predicted=GOOD.predicted.to("meta"))),
        (ValueError, "`soft`: expected device cpu, got meta", changed(soft=GOOD.soft.to("meta"))),
    ],
)
def test_add(tmp_path, error, message, given):
    writer = open_store(tmp_path).write(0, ["a"])
    before = tree(tmp_path)
    with pytest.raises(error, match=message):
        writer.add(["a"], given)
    assert writer.missing() == ["a"]
    assert tree(tmp_path) == before
    writer.add(["a"], GOOD)  # the writer is as good as before
    assert len(writer.finish()) == 1


def test_add_names_the_image_that_is_wrong(tmp_path):
    labels = torch.zeros(3, 2, 2, dtype=torch.long)
    labels[1, 1, 1] = 77
    with pytest.raises(ValueError, match="got 77 in image 'b'"):
        open_store(tmp_path).write(0, list("abc")).add(list("abc"), PseudoLabels(labels, torch.ones(3, 2, 2)))


def test_add_and_names(tmp_path):
    writer = open_store(tmp_path).write(0, ["a", "b"])
    with pytest.raises(ValueError, match="`names`: expected one for each of the 1 images, got 2"):
        writer.add(["a", "b"], GOOD)
    with pytest.raises(ValueError, match="`names`: expected names of round 0, got 'c'"):
        writer.add(["c"], GOOD)
    with pytest.raises(TypeError, match="`names`: expected one for each image of the batch, got one str"):
        writer.add("a", GOOD)
    writer.close()
    writer.close()  # twice does no harm
    with pytest.raises(RuntimeError, match="the writer is closed"):
        writer.add(["a"], GOOD)


def test_what_is_not_kept_is_not_looked_at(tmp_path):
    with open_store(tmp_path, keep=()).write(0, ["a"]) as writer:
        writer.add(["a"], changed(pixel_weight=one(7.0, GOOD.pixel_weight)))
        assert writer.finish().fields == ("labels",)


@pytest.mark.parametrize("method", ["round", "verify", "settings", "disk_bytes"])
def test_rounds_that_are_not_there(tmp_path, method):
    call = getattr(open_store(tmp_path), method)
    with pytest.raises(ValueError, match=r"`round`: expected .*, got 3"):
        call(3)
    with pytest.raises(ValueError, match="`round`: expected at least 0"):
        call(-1)
    with pytest.raises(TypeError, match="`round`: expected an int"):
        call("3")


def test_interrupted_rounds_are_not_read(tmp_path):
    store = open_store(tmp_path)
    store.write(3, ["a"])
    for call in (store.round, store.verify):
        with pytest.raises(ValueError, match="`round`: expected a complete round, got 3, which is not complete"):
            call(3)
    assert store.disk_bytes(3) == (tmp_path / "round-0003/settings.json").stat().st_size
    assert store.settings(3).names == ("a",)


def test_read(tmp_path):
    stored = write_all(tmp_path, names=["a", "b"])
    for call in (stored.read, stored.labels, stored.dataset().__getitem__):
        with pytest.raises(KeyError, match="expected the name of an image of round 0, got 'c'"):
            call("c")
        for place in (2, -3):
            with pytest.raises(IndexError, match=rf"`key`: expected an index in \[-2, 2\), got {place}"):
                call(place)
        with pytest.raises(TypeError):
            call(1.0)
    for fields in ([], ["predicted"], ["labels", "logits"]):
        with pytest.raises(
            ValueError, match="`fields`: expected some of 'labels', 'confidence', 'soft', 'pixel_weight'"
        ):
            stored.dataset(fields)
        with pytest.raises(ValueError, match="`fields`"):
            PseudoLabelDataset(stored, fields)
    assert [label.shape for label in stored.dataset()] == [(9, 13)] * 2  # iteration ends
