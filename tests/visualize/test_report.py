"""Reports of run folders: of what was recorded, of what is missing or damaged, of a real trainer's run."""

import base64
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import selftrain_seg
from selftrain_seg import PseudoLabels
from selftrain_seg.store import PseudoLabelStore
from selftrain_seg.visualize import (
    curves,
    record_about,
    record_picture,
    record_progress,
    record_round,
    record_step,
    report,
)
from selftrain_seg.visualize._figure import LIGHT
from selftrain_seg.visualize.line_charts import curves_figure
from tests.examples.trainers import result, run, run_and_kill

CLASSES = ["road", "<b>sky</b>", 'a "b" & $c$']
VOID = {"meta", "img", "br", "source", "link", "hr", "input"}
NAN = float("nan")


class Page(HTMLParser):
    """What a browser makes of a page: balanced elements, text, tables, pictures, and what it would load."""

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.pictures, self.alts, self.loads = [], [], [], [], []
        self.texts, self.tables = [], []
        text = path.read_bytes().decode("utf-8")
        assert text.startswith("<!DOCTYPE html>\n<html")
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        names = [name for name, _ in attributes]
        assert len(set(names)) == len(names)
        assert not any(name.startswith("on") for name in names)
        for name, value in attributes:
            if name in ("src", "srcset", "href", "data", "action", "poster"):
                self.loads.append(value)
        found = dict(attributes)
        if tag in ("img", "source"):
            data = (found.get("src") or found.get("srcset")).removeprefix("data:image/png;base64,")
            with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as picture:
                picture.load()
                self.pictures.append(picture.copy())
        if tag == "img":
            self.alts.append(found["alt"])
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            assert "url(" not in data
            assert "@import" not in data
            return
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data

    @property
    def text(self):
        return " ".join(self.texts)

    def table(self, corner):
        return next(table for table in self.tables if table[0][0] == corner)


def read(path):
    """The page, if it is one that stands alone."""
    page = Page(path)
    assert all(load.startswith("data:image/png;base64,") for load in page.loads)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not re.search(r"https?:", page.text)
    assert page.tags.count("h1") == 1
    assert all(page.alts)
    return page


@pytest.fixture
def folder(tmp_path):
    """Two rounds of one network, one of another, losses and pictures."""
    out = tmp_path / "a run"
    (out).mkdir()
    arguments = {"lr": 0.002, "portion": [0.3, 0.1, 0.5], "init": None, "mine": True, "note": "<i>&amp;"}
    (out / "arguments.json").write_text(json.dumps(arguments))
    record_round(out, 0, classes=CLASSES, iou=torch.tensor([50.0, 60.0, NAN]))
    for number in (1, 2):
        record_round(
            out,
            number,
            classes=CLASSES,
            thresholds=torch.tensor([0.9, 1 - 1e-9, 1.0], dtype=torch.float64),
            selected=torch.tensor([0.25, 0.5, NAN]),
            precision=torch.tensor([0.75, 1.0, NAN]),
            iou=torch.tensor([50.0 + number, 70.0, NAN]),
        )
    record_round(out, 1, classes=CLASSES, iou=torch.tensor([1.0, 2.0, 3.0]), group="second")
    for step in range(0, 50, 10):
        record_step(out, step, {"source_loss": 3.0 - step / 25, "target_loss": torch.tensor(1.0)})
    for number in (10, 9):
        record_picture(out, f"round {number}", torch.full((3, 4, 8), number / 10))
    return out


def test_shows_everything_that_was_recorded(folder):
    path = report(folder)
    assert path == folder / "report.html"
    page = read(path)
    first, second = (table for table in page.tables if table[0][0] == "IoU, %")
    assert first[0] == ["IoU, %", "before", "round 1", "round 2 (best)", "change"]
    assert first[1] == ["mIoU", "55.0", "60.5", "61.0", "+6.0"]
    assert first[2] == ["road", "50.0", "51.0", "52.0", "+2.0"]
    assert first[4] == [CLASSES[2], "–", "–", "–", "–"]
    assert second == [
        ["IoU, %", "second, round 1"],
        ["mIoU", "2.0"],
        ["road", "1.0"],
        [CLASSES[1], "2.0"],
        [CLASSES[2], "3.0"],
    ]
    numbers = page.table("class")
    assert numbers[0][1:3] == ["threshold, round 1", "threshold, round 2"]
    assert numbers[2] == [CLASSES[1], "1−1e−9", "1−1e−9", "50.0 %", "50.0 %", "100.0 %", "100.0 %"]
    assert numbers[3] == [CLASSES[2], "1", "1", "–", "–", "–", "–"]
    rounds = page.table("round")
    assert rounds[-1] == ["2", "87.5 %", "61.0"]
    charts = ["mIoU by round.", "source loss by step", "target loss by step"]
    assert set(charts) < set(page.alts)
    assert len(page.alts) == 3 + 4 + 2
    assert len(page.pictures) == 2 * 7 + 2  # charts in light and dark
    assert page.alts[-2:] == ["round 9", "round 10"]
    assert np.array_equal(np.asarray(page.pictures[-2])[0, 0], [230, 230, 230])
    assert "<i>&amp;" in page.texts
    assert "0.3, 0.1, 0.5" in page.texts
    assert "<b>sky</b>" in page.texts


def test_light_and_dark_differ_in_ink(folder):
    dark, light = read(report(folder)).pictures[:2]
    assert light.size == dark.size
    inks = [{tuple(pixel) for pixel in np.asarray(picture).reshape(-1, 4)} for picture in (light, dark)]
    for (red, green, blue), there in (((34, 34, 34), [True, False]), ((216, 218, 222), [False, True])):
        assert [(red, green, blue, 255) in ink for ink in inks] == there  # of text
    assert all(0 in np.asarray(picture)[..., 3] for picture in (light, dark))  # the page shows through


def test_same_bytes_again_and_elsewhere(folder, tmp_path):
    first = report(folder).read_bytes()
    other = tmp_path / "elsewhere" / folder.name
    shutil.copytree(folder, other)
    assert report(other, tmp_path / "out" / "x.html").read_bytes() == first
    assert report(str(folder)).read_bytes() == first
    assert not list(tmp_path.rglob("*.tmp"))


HEADINGS = {"Arguments", "Result", "Pseudo-labels", "Training", "Pictures"}


@pytest.mark.parametrize(
    ("part", "gone"),
    [
        ("arguments.json", {"Arguments"}),
        ("rounds", {"Result", "Pseudo-labels"}),
        ("steps.jsonl", {"Training"}),
        ("pictures", {"Pictures"}),
        ("rounds/round-0001.json", set()),
        ("rounds/second", set()),
    ],
)
def test_what_is_missing_is_left_out(folder, part, gone):
    path = folder / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = read(report(folder))
    assert HEADINGS & set(page.texts) == HEADINGS - gone
    assert "Not readable" not in page.text


@pytest.mark.parametrize("part", ["arguments.json", "rounds/round-0001.json", "pictures/round 9.png"])
@pytest.mark.parametrize("damage", ["half", "nothing", "other"])
def test_what_is_damaged_is_named(folder, part, damage):
    data = (folder / part).read_bytes()
    (folder / part).write_bytes({"half": data[: len(data) // 2], "nothing": b"", "other": b'[1, "\xff"]'}[damage])
    page = read(report(folder))
    assert f"Damaged files that were skipped: {part}" in page.text
    assert "second, round 1" in page.text


@pytest.mark.parametrize("value", [[0.5, -1.0, 0.5], [0.5, 0.5, 1.5], [0.5], "half", [0.5, {}, None]])
def test_what_makes_no_sense_is_left_out_too(folder, value):
    path = folder / "rounds" / "round-0001.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "precision": value}))
    with (folder / "steps.jsonl").open("a") as file:
        file.write('{"step": "x", "source_loss": 1}\n{"step": 3, "source_loss": [1]}\n[1]\n"x"\n{"step": Infinity}\n')
    page = read(report(folder))
    assert "skipped: rounds/round-0001.json" in page.text
    assert "after round 2" in page.text
    assert [row[0] for row in page.table("round")[1:]] == ["2"]


def test_half_a_line_does_not_hide_the_next(folder):
    with (folder / "steps.jsonl").open("ab") as file:
        file.write(b'{"step": 50, "source_lo')  # killed here
    record_step(folder, 40, {"source_loss": 9.0})
    lines = (folder / "steps.jsonl").read_bytes().splitlines()
    assert len(lines) == 7
    before = read(report(folder)).pictures
    lines = [line for line in lines[:-1] if b'"step": 40' not in line and line.endswith(b"}")]
    lines.append(b'{"step": 40, "source_loss": 9.0, "target_loss": 1.0}')
    (folder / "steps.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    for one, other in zip(before, read(report(folder)).pictures, strict=True):
        assert np.array_equal(np.asarray(one), np.asarray(other))


def test_an_empty_folder(tmp_path):
    page = read(report(tmp_path))
    assert "Nothing has been recorded yet." in page.texts
    assert page.pictures == []
    with pytest.raises(ValueError, match="`run_dir`: expected a folder, got"):
        report(tmp_path / "nothing")


NAMES = ["a b", "it's", "<script>alert(1)</script>", "a&b", "ü 日本", "$x$", "per%20cent", "[1]*?"]


@pytest.mark.filterwarnings("ignore:Glyph")  # matplotlib's own font has no Japanese; tables and captions do
@pytest.mark.parametrize("name", NAMES)
def test_odd_names(name, tmp_path):
    out = tmp_path / name.replace("/", "_")
    if not re.search('[<>"*?/]', name):
        record_picture(out, name, torch.rand(3, 4, 8))
        record_round(out, 1, classes=[name, name + "2"], selected=torch.tensor([0.1, 0.2]), group=name)
    record_round(out, 1, classes=[name, name + "2"], iou=torch.tensor([1.0, 2.0]))
    record_step(out, 0, {name: 1.0})
    (out / "result.json").write_text(json.dumps({name: name}), encoding="utf-8")
    page = read(report(out))
    assert out.name in page.texts
    assert page.table("IoU, %")[2][0] == name
    assert name in page.texts[page.texts.index(out.name) + 1 :]
    assert (name in page.alts) is not bool(re.search('[<>"*?/]', name))


def test_bytes_that_are_no_text_in_a_path(tmp_path):
    out = os.fsencode(tmp_path) + b"/\xff\xfe"
    try:
        os.mkdir(out)
    except OSError:
        pytest.skip("this file system has none")
    assert read(report(os.fsdecode(out))).text


def test_rounds_of_the_store(tmp_path):
    labels = torch.tensor([[[0, 0, 1, 255]]])
    predicted = torch.tensor([[[0, 0, 0, 1]]])
    for group in ("", "-second"):
        store = PseudoLabelStore(tmp_path / f"pseudo-labels{group}", 3, classes=["a", "b", "c"])
        for number in range(2):
            thresholds = torch.tensor([0.25, 1 - 1e-12, torch.inf], dtype=torch.float64)
            with store.write(number, ["x"], thresholds=thresholds, portion=0.5) as writer:
                writer.add(["x"], PseudoLabels(labels, torch.ones(1, 1, 4), predicted=predicted))
                writer.finish()
    told = {"thresholds": torch.tensor([0.75, 0.5, 0.5]), "precision": torch.tensor([0.125, 0.5, NAN])}
    record_round(tmp_path, 2, classes=["a", "b", "c"], **told)  # goes before what the store tells
    page = read(report(tmp_path))
    assert {"Pseudo-labels", "Pseudo-labels: second"} <= set(page.texts)
    one, other = (table for table in page.tables if table[0][0] == "class")
    # Selected over predicted: 2 of 3, 1 of 1, none of none; thresholds of infinity are above all probabilities.
    assert one[1] == ["a", "0.250", "0.750", "66.7 %", "66.7 %", "12.5 %"]
    assert one[2] == ["b", "1−1e−12", "0.500", "100.0 %", "100.0 %", "50.0 %"]
    assert one[3] == ["c", "∞", "0.500", "–", "–", "–"]
    assert other[1] == ["a", "0.250", "0.250", "66.7 %", "66.7 %"]
    assert page.table("round")[1][:4] == ["1", "0.5", "1", "75.0 %"]
    manifest = tmp_path / "pseudo-labels" / "round-0001" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("0.5", "0.6"))
    assert "skipped: pseudo-labels/round-0001/manifest.json" in read(report(tmp_path)).text


def test_several_networks_in_the_result(tmp_path):
    found = {"seconds": 12.34, "before": {"mIoU": 1.5, "rare": 1.0, "iou": {"a": 1.0, "b": 2.0}}}
    found["after"] = {"mIoU": 3.5, "rare": None, "iou": {"a": 3.0, "c": 4.0}}
    (tmp_path / "result.json").write_text(json.dumps(found))
    record_round(tmp_path, 1, classes=["a"], iou=torch.tensor([7.0]))
    page = read(report(tmp_path))
    assert "2.0 % mIoU" not in page.text
    assert "3.5 % mIoU" in page.texts
    assert page.table("IoU, %") == [
        ["IoU, %", "before", "after"],
        ["mIoU", "1.5", "3.5"],
        ["rare", "1.0", "–"],
        ["a", "1.0", "3.0"],
        ["b", "2.0", "–"],
        ["c", "–", "4.0"],
    ]


def test_many_rounds_are_thinned_in_charts_but_not_in_the_table(tmp_path):
    for number in range(1, 31):
        record_round(tmp_path, number, classes=["a"], selected=torch.tensor([0.5]), iou=torch.tensor([float(number)]))
    page = read(report(tmp_path))
    assert len(page.table("round")) == 31
    shown = [f"round {number}" for number in (1, 5, 12, 19, 26)]
    assert page.table("IoU, %")[0] == ["IoU, %", *shown, "round 30 (best)", "change"]


# What is written.


def test_records_survive_a_power_failure(tmp_path, monkeypatch):
    synced, fsync = set(), os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: synced.add(os.fstat(fd).st_ino) or fsync(fd))
    written = [
        record_round(tmp_path, 1, classes=["a"], iou=torch.tensor([50.0])),
        record_picture(tmp_path, "noise", torch.zeros(3, 4, 4)),
        record_about(tmp_path),
    ]
    for path in written:
        assert {path.stat().st_ino, path.parent.stat().st_ino} <= synced


def test_record_round(tmp_path):
    path = record_round(tmp_path, 3, classes=CLASSES, thresholds=torch.tensor([0.1, NAN, torch.inf]), group="x y")
    assert path == tmp_path / "rounds" / "x y" / "round-0003.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content == {"round": 3, "classes": CLASSES, "thresholds": [pytest.approx(0.1), None, "inf"]}
    exact = torch.tensor([1 - 2**-53, 1e-300, 1 / 3], dtype=torch.float64)
    path = record_round(tmp_path, 3, classes=CLASSES, thresholds=exact, group="x y")
    assert json.loads(path.read_text())["thresholds"] == exact.tolist()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["round-0003.json"]


def test_record_picture(tmp_path):
    image = torch.rand(3, 4, 8)
    with Image.open(record_picture(tmp_path, "a", image)) as picture:
        assert np.array_equal(np.asarray(picture), (255 * image).round().byte().permute(1, 2, 0))
    first = record_picture(tmp_path, "b", curves({"a": [1, 2]})).read_bytes()
    assert record_picture(tmp_path, "b", curves({"a": [1, 2]})).read_bytes() == first
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["a.png", "b.png"]


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "a\\b", "a\nb", "C:x", "x" * 201, "end.", "end "])
def test_names_that_cannot_be_files(name, tmp_path):
    with pytest.raises(ValueError, match="`name`: expected"):
        record_picture(tmp_path, name, torch.rand(3, 2, 2))
    if name:
        with pytest.raises(ValueError, match="`group`: expected"):
            record_round(tmp_path, 0, classes=["a"], group=name)
    assert not list(tmp_path.iterdir())


def test_errors_of_the_recorders(tmp_path):
    with pytest.raises(ValueError, match=r"`iou`: expected \(C,\) = \(3,\), got \(2,\)"):
        record_round(tmp_path, 0, classes=CLASSES, iou=torch.rand(2))
    with pytest.raises(ValueError, match="`round`: expected at least -1, got -2"):
        record_round(tmp_path, -2, classes=CLASSES)
    with pytest.raises(TypeError, match="`step`: expected an int"):
        record_step(tmp_path, 0.5, {})
    with pytest.raises(ValueError, match=r"`picture`: expected \(3, H, W\)"):
        record_picture(tmp_path, "a", torch.rand(1, 3, 2, 2))


# Did it help, by how much, over what; where it comes from; how far it is.


def rounds_of(folder, means, *, group=""):
    """Rounds from -1 on, with two classes whose mean is given."""
    for number, value in enumerate(means, -1):
        record_round(folder, number, classes=["a", "b"], iou=torch.tensor([value - 1.0, value + 1.0]), group=group)


def test_says_what_was_gained_over_what(tmp_path):
    rounds_of(tmp_path, [40.0, 60.0, 66.5, 65.0])
    assert (tmp_path / "rounds" / "round-source.json").exists()
    page = read(report(tmp_path))
    assert "65.0 % mIoU" in page.texts
    assert "+5.0 over BatchNorm re-estimated (60.0)" in page.texts
    assert "+25.0 over source only (40.0)" in page.text
    assert "The best is round 1 with 66.5 %." in page.text
    table = page.table("IoU, %")
    assert table[0] == ["IoU, %", "source only", "BatchNorm re-estimated", "round 1 (best)", "round 2", "change"]
    assert table[1] == ["mIoU", "40.0", "60.0", "66.5", "65.0", "+5.0"]
    assert table[2] == ["a", "39.0", "59.0", "65.5", "64.0", "+5.0"]
    assert [text for text in page.texts if re.fullmatch(r"[+−][\d.]+", text)] == ["+6.5", "+5.0", *["+5.0"] * 3]


def test_means_of_subsets_are_rows_below_the_mean(tmp_path):
    for number, means in ((-1, {}), (0, {"rare": 30.0}), (1, {"rare": 45.5, "mIoU-13": float("nan")})):
        record_round(tmp_path, number, classes=["a", "b"], iou=torch.tensor([60.0, 62.0 + number]), means=means)
    table = read(report(tmp_path)).table("IoU, %")
    assert table[1] == ["mIoU", "60.5", "61.0", "61.5", "+0.5"]
    assert table[2:4] == [["rare", "–", "30.0", "45.5", "+15.5"], ["mIoU-13", "–", "–", "–", "–"]]
    assert table[4][0] == "a"
    for wrong in (-0.1, 100.1):
        with pytest.raises(ValueError, match=r"`means`: expected values in \[0, 100\], got .* for 'rare'"):
            record_round(tmp_path, 1, classes=["a"], means={"rare": wrong})


def test_the_start_comes_first_among_pictures(tmp_path):
    first = ["source only predictions", "BatchNorm re-estimated predictions", "before predictions"]
    later = ["mixing", "round 2 predictions", "round 10 predictions"]
    for name in (*later, *first):
        record_picture(tmp_path, name, torch.zeros(3, 4, 8))
    assert read(report(tmp_path)).alts == [*first, *later]


def test_wide_pictures_take_the_width_of_the_page(tmp_path):
    record_picture(tmp_path, "small", torch.zeros(3, 4, 900))
    record_picture(tmp_path, "wide", torch.zeros(3, 4, 1300))
    figures = re.findall("<figure.*?</figure>", report(tmp_path).read_text(), re.DOTALL)
    assert ['class="wide"' in figure for figure in figures] == [False, True]
    assert ['class="scroll"' in figure for figure in figures] == [False, True]  # on a phone


def test_facts_of_the_result(tmp_path):
    verdict = "adaptation is not helping here: keep the network before training (source only)"
    rounds_of(tmp_path, [40.0, 60.0, 66.5])
    found = {"mIoU": 66.5, "rare": 0.734, "kept mIoU": 5.04, "seconds": 75.0, "entropy": 0.0123, "verdict": verdict}
    (tmp_path / "result.json").write_text(json.dumps(found))
    page = read(report(tmp_path))
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", (tmp_path / "report.html").read_text()))
    assert facts == {"rare": "0.7", "kept mIoU": "5.0", "time": "1 min 15 s", "entropy": "0.0123"}  # mIoU: see headline
    assert f": {verdict}." in page.texts  # no tile


def test_a_loss_is_a_loss(tmp_path):
    rounds_of(tmp_path, [40.0, 60.0, 50.0])
    page = read(report(tmp_path))
    assert "−10.0 over BatchNorm re-estimated (60.0)" in page.texts
    assert page.table("IoU, %")[2][-1] == "−10.0"


def test_one_measurement_is_compared_with_nothing(tmp_path):
    rounds_of(tmp_path, [40.0])
    page = read(report(tmp_path))
    assert page.table("IoU, %") == [["IoU, %", "source only"], ["mIoU", "40.0"], ["a", "39.0"], ["b", "41.0"]]
    assert " over " not in page.text


def test_gains_of_several_networks_are_a_table(tmp_path):
    rounds_of(tmp_path, [40.0, 60.0, 66.0], group="first")
    rounds_of(tmp_path, [40.0, 60.0, 62.0, 58.0], group="second")
    assert read(report(tmp_path)).table("mIoU, %") == [
        ["mIoU, %", "before", "at the end", "gain", "best"],
        ["first", "60.0", "66.0", "+6.0", "66.0 (round 1)"],
        ["second", "60.0", "58.0", "−2.0", "62.0 (round 1)"],
    ]


def test_rounds_have_names(tmp_path):
    for number, name in enumerate(["as loaded", "adversarial warm-up"]):
        record_round(tmp_path, number, classes=["a"], iou=torch.tensor([50.0 + number]), name=name)
    page = read(report(tmp_path))
    assert page.table("IoU, %")[0] == ["IoU, %", "as loaded", "adversarial warm-up (best)", "change"]
    assert "+1.0 over as loaded (50.0)" in page.texts


def test_many_rounds_keep_start_best_and_last(tmp_path):
    rounds_of(tmp_path, [10.0, 20.0, *range(30, 50), 48.0, 47.0])
    headings = read(report(tmp_path)).table("IoU, %")[0]
    assert len(headings) == 8
    assert headings[1:3] == ["source only", "BatchNorm re-estimated"]
    assert headings[5:] == ["round 20 (best)", "round 22", "change"]


def test_where_a_run_comes_from(tmp_path):
    path = record_about(tmp_path, command="python train.py --name '<my run>'")
    first = json.loads(path.read_text())
    assert first["resumed"] == []
    assert first["versions"]["torch"] == torch.__version__
    assert first["versions"]["selftrain_seg"] == selftrain_seg.__version__
    record_round(tmp_path, 1, classes=["a"], iou=torch.tensor([50.0]))
    page = read(report(tmp_path))
    assert "python train.py --name '<my run>'" in page.texts
    assert f"torch {torch.__version__}" in page.text
    assert first["started"][:10] in page.text
    assert "resumed" not in page.text
    record_about(tmp_path, command="another")
    again = json.loads(path.read_text())
    assert len(again.pop("resumed")) == 1
    assert again == {name: value for name, value in first.items() if name != "resumed"}
    assert "resumed 1 time, last" in read(report(tmp_path)).text


def test_the_command_is_that_of_the_process(tmp_path):
    code = "import sys; from selftrain_seg.visualize import record_about; record_about(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, tmp_path, "--name", "a b"], check=True)
    words = shlex.split(json.loads((tmp_path / "about.json").read_text())["command"])
    assert words == [Path(sys.executable).name, "-c", code, str(tmp_path), "--name", "a b"]


@pytest.mark.parametrize("content", ['{"command": "x"', "[1]", '{"resumed": 3}', ""])
def test_a_damaged_origin_is_written_anew(tmp_path, content):
    (tmp_path / "about.json").write_text(content)
    read(report(tmp_path))
    assert json.loads(record_about(tmp_path, command="y").read_text())["command"] == "y"


@pytest.mark.parametrize(
    "content",
    [
        {"about": {"command": 3, "started": [1], "resumed": [None], "versions": {"x": {}}, "processes": "many"}},
        {"progress": {"done": "1", "total": 2}},
        {"progress": {"done": 5, "total": 2}},
        {"progress": {"done": -1, "total": 2, "stage": ["x"]}},
    ],
)
def test_what_others_wrote_there_breaks_nothing(tmp_path, content):
    for name, value in content.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    assert "In progress" not in read(report(tmp_path)).text


def test_a_run_under_way_says_how_far_it_is(tmp_path):
    rounds_of(tmp_path, [40.0, 60.0, 62.0])
    record_progress(tmp_path, 1340, 3000, stage="round 2")
    written = json.loads((tmp_path / "progress.json").read_text())["date"]
    page = read(report(tmp_path))
    assert "progress" in page.tags
    assert "In progress." in page.text
    assert f"round 2: 1,340 of 3,000. Last update: {written[:10]} {written[11:16]} UTC." in page.texts
    record_progress(tmp_path, 3000, 3000)
    assert "progress" not in read(report(tmp_path)).tags
    record_progress(tmp_path, 2, 3)
    (tmp_path / "result.json").write_text('{"mIoU": 62.0}')
    assert "progress" not in read(report(tmp_path)).tags


def test_errors_of_progress(tmp_path):
    with pytest.raises(ValueError, match="`done`: expected at most `total` = 2, got 3"):
        record_progress(tmp_path, 3, 2)
    with pytest.raises(ValueError, match="`total`: expected at least 1, got 0"):
        record_progress(tmp_path, 0, 0)
    with pytest.raises(TypeError, match="`done`: expected an int"):
        record_progress(tmp_path, 0.5, 2)
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path):
    for name in ("one", "two"):
        rounds_of(tmp_path / name, [40.0, 60.0])
    command = [sys.executable, "-m", "selftrain_seg.visualize"]

    def call(*words):
        return subprocess.run([*command, *words], cwd=tmp_path, capture_output=True, text=True, check=False)

    done = call("one", "two")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [str(Path(name) / "report.html") for name in ("one", "two")]
    read(tmp_path / "two" / "report.html")
    assert call("one", "--out", "x.html").stdout == "x.html\n"
    assert (tmp_path / "x.html").read_bytes() == (tmp_path / "one" / "report.html").read_bytes()
    done = call("one", "two", "--out", "x.html")
    assert done.returncode == 2
    assert "--out takes the report of one run" in done.stderr
    done = call("none")
    assert (done.returncode, done.stderr) == (
        1,
        "python -m selftrain_seg.visualize: `run_dir`: expected a folder, got 'none'\n",
    )


def test_axes_start_at_zero():
    figure = curves_figure({"a": [70.0, 72.0]}, [1, 2], "round", "", LIGHT, from_zero=True, most=100)
    assert figure.axes[0].get_ylim() == (0, pytest.approx(82.8))
    assert [text.get_text() for text in figure.axes[0].texts] == ["70.0", "72.0"]
    figure = curves_figure({"a": [99.0, NAN]}, [1, 2], "round", "", LIGHT, from_zero=True, most=100)
    assert figure.axes[0].get_ylim() == (0, 100)
    figure = curves_figure({"a": [-1.0, 3.0]}, [1, 2], "round", "", LIGHT, from_zero=True)
    assert figure.axes[0].get_ylim()[0] < -1
    figure = curves_figure({"a": [NAN, NAN]}, [1, 2], "round", "", LIGHT, from_zero=True)
    assert figure.axes[0].get_ylim()[1] > 0


# A trainer's own folder.


@pytest.mark.slow
def test_of_a_trainer_killed_and_finished(tmp_path):
    out, options = tmp_path / "DMT & <co>", ["--smoke", "--mutual", "--images", 8, 6, 4, "--batch", 2, "--rounds", 2]
    options += ["--root", tmp_path / "streets", "--log-every", 1, "--steps", 8]
    run_and_kill("dst_cbc.py", out, *options, wait_for="checkpoints/round2*-000002", seed=0, within=0.1)
    assert not (out / "report.html").exists()
    partial = read(report(out))
    headings = [table[0][1:4] for table in partial.tables if table[0][0] == "IoU, %"]
    columns = ["source only", "BatchNorm re-estimated", "round 1 (best)"]
    assert headings == [columns, [f"second, {column}" for column in columns]]
    assert {"Pseudo-labels", "Pseudo-labels: second", "Training", "Pictures", "Arguments"} <= set(partial.texts)

    output = run("dst_cbc.py", out, *options)
    assert output.rstrip().endswith(f"report: {out / 'report.html'}")
    page = read(out / "report.html")
    assert "DMT & <co>" in page.texts
    found = result(out)
    ious = page.table("IoU, %")
    assert ious[0] == ["IoU, %", "result", "second"]
    assert ious[1][1:] == [f"{found['mIoU']:.1f}", f"{found['second']['mIoU']:.1f}"]
    steps = [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]
    assert {step["step"] for step in steps if step.keys() & {"loss", "second_loss"}} == set(range(32))
    for group in ("", "second"):
        written = json.loads((out / "rounds" / group / "round-0002.json").read_text())
        assert written["iou"] == [
            None if value != value else pytest.approx(value)
            for value in (found["second"] if group else found)["iou"].values()
        ]
        assert all(0 <= value <= 1 for value in written["precision"] if value is not None)
    pictures = {
        f"round {number}{who} {what}"
        for number in (1, 2)
        for who in ("", " second")
        for what in ("predictions", "confidence")
    }
    assert pictures <= set(page.alts)
    assert not list(out.rglob("*.tmp*"))


@pytest.mark.parametrize(
    ("name", "value"),
    [("precision", 87.0), ("precision", -0.1), ("thresholds", -0.5), ("selected", -1.0), ("iou", 101.0)],
)
def test_rounds_out_of_range(tmp_path, name, value):
    with pytest.raises(ValueError, match=rf"`{name}`: expected values in \[0, .*\], got .*{value:.3g}"):
        record_round(tmp_path, 1, classes=["a", "b"], **{name: torch.tensor([0.5, value])})
    record_round(tmp_path, 1, classes=["a", "b"], selected=torch.tensor([3.0, NAN]))  # re-weighting can do that


def test_what_cannot_be_recorded(tmp_path):
    with pytest.raises(ValueError, match="`classes`: expected at least one name"):
        record_round(tmp_path, 1, classes=[])
    with pytest.raises(ValueError, match="`values`: expected other names than 'step'"):
        record_step(tmp_path, 1, {"step": 0.5})
    with pytest.raises(ValueError, match=r"`picture`: expected \(3, H, W\), got \(3, 0, 4\)"):
        record_picture(tmp_path, "empty", torch.rand(3, 0, 4))
    with pytest.raises(TypeError, match=r"`picture`: expected a matplotlib Figure or a torch.Tensor, got ndarray"):
        record_picture(tmp_path, "array", np.zeros((3, 4, 4)))
    assert not (tmp_path / "steps.jsonl").exists()


def test_steps_of_tensors_of_one(tmp_path):
    record_step(tmp_path, 1, {"a": torch.tensor([0.5], requires_grad=True), "b": torch.tensor(2, dtype=torch.bfloat16)})
    assert json.loads((tmp_path / "steps.jsonl").read_text()) == {"a": 0.5, "b": 2.0, "step": 1}


@pytest.mark.parametrize("text", ['{"round": 1e999, "classes": ["a"]}', '{"round": 1, "classes": []}', "[" * 100_000])
def test_more_damaged_rounds(tmp_path, text):
    record_round(tmp_path, 1, classes=["a"], iou=torch.tensor([50.0]))
    (tmp_path / "rounds" / "round-0002.json").write_text(text)
    page = Page(report(tmp_path))
    assert any("rounds/round-0002.json" in part for part in page.texts)


def test_steps_that_no_axis_holds(tmp_path):
    (tmp_path / "steps.jsonl").write_text(f'{{"step": {"9" * 400}, "loss": 1}}\n')
    for step, loss in enumerate((1e308, -1e308, 0.5, 0.25)):
        record_step(tmp_path, step, {"loss": loss})
    assert len(Page(report(tmp_path)).pictures) > 0
