"""What figures hold, read back from them: pictures, bars, dots, names, and that they touch nothing global."""

import io
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection, PathCollection
from PIL import Image

from selftrain_seg.mining import MixedBatch
from selftrain_seg.visualize import (
    class_bars,
    colorize,
    confidence_map,
    crop_sheet,
    curves,
    image_sheet,
    mixing_sheet,
    selection_map,
)

PALETTE = [(128, 64, 128), (244, 35, 232), (70, 70, 70)]
CLASSES = ["road", "side$walk$", "<sky>"]


def picture(axis):
    (shown,) = axis.images
    return np.asarray(shown.get_array())


def legend(figure):
    (found,) = figure.legends
    return {
        text.get_text(): tuple(round(255 * part) for part in patch.get_facecolor()[:3])
        for text, patch in zip(found.get_texts(), found.get_patches(), strict=True)
    }


def pixels(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return np.asarray(Image.open(buffer).convert("RGB"))


# Images and sheets.


def test_image_sheet():
    images, labels = torch.rand(2, 3, 4, 8), torch.tensor([[[0, 1, 2, 255] * 2] * 4] * 2)
    columns = {"image": images, "raw": (255 * images).round().byte(), "labels": labels}
    figure = image_sheet(columns, palette=PALETTE, classes=CLASSES)
    assert len(figure.axes) == 6
    assert [axis.get_title() for axis in figure.axes[:3]] == ["image", "raw", "labels"]
    for row in range(2):
        first, second, third = (picture(axis) for axis in figure.axes[3 * row : 3 * row + 3])
        assert np.array_equal(first, second)
        assert np.array_equal(first, (255 * images[row]).round().byte().permute(1, 2, 0))
        assert np.array_equal(third, colorize(labels, PALETTE)[row].permute(1, 2, 0))
    assert legend(figure) == {**dict(zip(CLASSES, PALETTE, strict=True)), "ignored": (0, 0, 0)}
    without = image_sheet({"labels": labels.clamp(max=2)}, palette=PALETTE, classes=CLASSES)
    assert "ignored" not in legend(without)
    assert not image_sheet(columns, palette=PALETTE).legends


def test_pictures_do_not_overlap_and_keep_their_shape():
    figure = image_sheet({"a": torch.rand(3, 3, 10, 30), "b": torch.rand(3, 3, 10, 30)})
    pixels(figure)
    width, height = figure.get_size_inches()
    boxes = [axis.get_position() for axis in figure.axes]
    for box in boxes:
        assert box.height * height / (box.width * width) == pytest.approx(1 / 3)
        assert 0 <= box.x0 <= box.x1 <= 1
        assert 0 <= box.y0 <= box.y1 <= 1
    for number, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[number + 1 :])


@pytest.mark.parametrize("size", [(64, 8), (3, 90), (1, 1)])
def test_any_shape_of_picture(size):
    figure = image_sheet({"a": torch.rand(2, 3, *size)})
    assert all(0.3 < side < 30 for side in figure.get_size_inches())
    assert pixels(figure).std() > 1


def test_crop_sheet():
    images = torch.rand(2, 3, 8, 16)
    labels = torch.zeros(2, 8, 16, dtype=torch.int64)
    labels[0, 3:5, 6:8] = 2
    # The second sticks out and is moved back inside, as ``crop`` does it.
    figure = crop_sheet(images, torch.tensor([[2, 5], [7, 12]]), (4, 8), labels=labels, classes=torch.tensor([2]))
    for row, (top, left) in enumerate([(2, 5), (4, 8)]):
        image, cut = figure.axes[2 * row : 2 * row + 2]
        expected = (255 * images[row]).round().byte().permute(1, 2, 0)
        assert np.array_equal(picture(image), expected)
        assert np.array_equal(picture(cut), expected[top : top + 4, left : left + 8])
        for frame in image.patches:
            assert frame.get_xy() == (left - 0.5, top - 0.5)
            assert (frame.get_width(), frame.get_height()) == (8, 4)
        assert len(image.patches) == 2
        assert bool(cut.collections) is (row == 0)
        assert (cut.get_xlim(), cut.get_ylim()) == ((-0.5, 7.5), (3.5, -0.5))
    paths = [path for outline in figure.axes[1].collections for path in outline.get_paths()]
    corners = np.concatenate([path.vertices for path in paths])
    assert corners.min(0) == pytest.approx([0.5, 0.5])  # columns 1, 2 and rows 1, 2 of the crop, to their edges
    assert corners.max(0) == pytest.approx([2.5, 2.5])


def test_mixing_sheet():
    images, labels = torch.rand(2, 3, 4, 8), torch.randint(3, (2, 4, 8))
    pasted = torch.zeros(2, 4, 8, dtype=torch.bool)
    pasted[1, :2, :3] = True
    mixed = MixedBatch(1 - images, 2 - labels, None, pasted)
    figure = mixing_sheet(images, labels, mixed, PALETTE, classes=CLASSES)
    assert len(figure.axes) == 8
    for row in range(2):
        axes = figure.axes[4 * row : 4 * row + 4]
        expected = [images[row], None, 1 - images[row], None]
        for axis, image in zip(axes, expected, strict=True):
            if image is not None:
                assert np.array_equal(picture(axis), (255 * image).round().byte().permute(1, 2, 0))
        assert np.array_equal(picture(axes[1]), colorize(labels, PALETTE)[row].permute(1, 2, 0))
        assert np.array_equal(picture(axes[3]), colorize(2 - labels, PALETTE)[row].permute(1, 2, 0))
        assert [bool(axis.collections) for axis in axes] == [False, False, row == 1, row == 1]
    corners = np.concatenate([path.vertices for path in figure.axes[-1].collections[0].get_paths()])
    assert corners.min(0) == pytest.approx([-0.5, -0.5])  # closed at the border of the image, too
    assert corners.max(0) == pytest.approx([2.5, 1.5])


# Maps.


def test_confidence_map():
    values = [0.5, 0.9, 0.99, 0.999, 1 - 1e-6, 1.0, 0.0, math.nan]
    confidence = torch.tensor(values, dtype=torch.float64).view(2, 2, 2)
    figure = confidence_map(confidence, images=torch.rand(2, 3, 2, 2))
    assert len(figure.axes) == 5  # two rows of two, and the scale
    shown = [figure.axes[row].images[0] for row in (1, 3)]
    odds = np.ma.concatenate([image.get_array().ravel() for image in shown])
    expected = [math.log(p / (1 - p)) for p in values[:5]]
    assert odds[:5].tolist() == pytest.approx(expected)
    assert odds[5] > odds[4]
    assert odds[6] < odds[0]
    assert odds.mask.tolist() == [False] * 7 + [True]
    colours = {tuple(shown[0].cmap(shown[0].norm(value))) for value in odds[:4]}
    assert len(colours) == 4
    assert {image.get_clim() for image in shown} == {(-1.0, 11.6)}  # the same for all pictures of all runs
    scale = figure.axes[-1]
    names = {text.get_text(): place for text, place in zip(scale.get_xticklabels(), scale.get_xticks(), strict=True)}
    assert names["0.99"] == pytest.approx(math.log(99))
    assert names["1−10⁻⁴"] == pytest.approx(math.log(9999))
    assert len(confidence_map(confidence.bfloat16()).axes) == 3


def test_selection_map():
    images = torch.full((2, 3, 2, 4), 0.5)
    labels = torch.tensor([[[0, 1, 2, 255], [0, 255, 1, 1]], [[255] * 4] * 2])
    truth = torch.tensor([[[0, 2, 255, 1], [0, 0, 1, 1]], [[0] * 4] * 2])
    figure = selection_map(images, labels, truth=truth)
    names = ["selected, right", "selected, wrong", "selected, truth unknown", "not selected"]
    assert list(legend(figure)) == names
    right, wrong, unknown, rest = range(4)
    kinds = np.array([[right, wrong, unknown, rest], [right, rest, right, right]])
    shown = picture(figure.axes[1]).astype(int)
    colours = [{tuple(pixel) for pixel in shown[kinds == kind]} for kind in range(4)]
    assert [len(found) for found in colours] == [1] * 4
    assert len(set.union(*colours)) == 4
    (blue,), (orange,), _, (grey,) = (list(found) for found in colours)
    assert blue[2] > blue[0] + 50
    assert orange[0] > orange[2] + 50
    assert len(set(grey)) == 1
    assert [axis.texts[0].get_text() for axis in figure.axes[1::2]] == [
        "75.0 % selected, 80.0 % of it right",  # 6 of 8; of the 5 with a truth 4
        "0.0 % selected",
    ]
    plain = selection_map(images, labels)
    assert list(legend(plain)) == ["selected", "not selected"]
    chosen = picture(plain.axes[1])[kinds != rest]
    assert {tuple(pixel) for pixel in chosen.astype(int)} == {blue}
    assert plain.axes[1].texts[0].get_text() == "75.0 % selected"


# Charts.


def dots(axis):
    """(C, 2) places of each round's dots."""
    return [np.asarray(part.get_offsets()) for part in axis.collections if isinstance(part, PathCollection)]


def test_class_bars():
    selected = torch.tensor([[0.2, math.nan, 0.4], [0.3, 0.5, 1.75]], dtype=torch.bfloat16)
    precision = torch.tensor([[0.9, math.nan, 0.8], [0.95, 0.0, 0.85]])
    figure = class_bars(CLASSES, selected=selected, precision=precision, rounds=[1, 4])
    shares, right = figure.axes
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["selected", "precision"]
    assert [text.get_text() for text in shares.get_yticklabels()] == CLASSES
    assert not any(text.get_text() for text in right.get_yticklabels())
    for axis, values in ((shares, selected), (right, precision)):
        expected = [float(value) for row in values for value in row if not math.isnan(value)]
        assert [bar.get_width() for bar in axis.patches] == pytest.approx(expected)
    centres = [bar.get_y() + bar.get_height() / 2 for bar in shares.patches]
    assert [round(centre) for centre in centres] == [0, 2, 0, 1, 2]  # none for the absent class
    assert centres[0] < centres[2]  # later rounds below
    assert [text.get_text() for text in shares.texts] == ["30.1 %", "50.0 %", "175.0 %"]
    assert [text.get_text() for text in right.texts] == ["95.0 %", "0.0 %", "85.0 %"]
    over = [places.tolist() for places in dots(shares) if len(places)]
    assert [place for places in over for place, _ in places] == [1.0]  # an arrow where the bar is full
    assert list(legend(figure)) == ["round 1", "round 4"]
    colours = [bar.get_facecolor() for bar in shares.patches]
    assert colours[0] == colours[1] != colours[2] == colours[3] == colours[4]
    assert not class_bars(CLASSES, precision=precision[0]).legends


def test_thresholds_close_to_one_lie_apart():
    values = [0.5, 0.9999, 1 - 1e-9, 1.0, math.inf, 0.0, math.nan]
    figure = class_bars([str(value) for value in values], thresholds=torch.tensor(values, dtype=torch.float64))
    (axis,) = figure.axes
    (places,) = dots(axis)
    x = dict(zip(map(int, places[:, 1]), places[:, 0], strict=True))
    assert x[0] == pytest.approx(0.0)
    assert x[1] == pytest.approx(math.log(9999))
    assert x[2] == pytest.approx(math.log(1e9), rel=1e-6)
    low, high = axis.get_xlim()
    assert x[3] == x[4] == high > x[2]  # at the end of the scale
    assert x[5] == low < x[0]
    assert not np.isfinite(x[6])
    texts = [text.get_text() for text in axis.texts]
    assert texts == ["0.500", "1−1e−4", "1−1e−9", "1", "1", "0.000", "–"]
    names = [text.get_text() for text in axis.get_xticklabels()]
    assert len(names) == len(set(names)) >= 2
    assert all(low <= place <= high for place in axis.get_xticks())


def test_a_line_joins_the_rounds_of_a_class():
    thresholds = torch.tensor([[0.5, 0.9, math.nan], [0.75, 0.9, math.nan]], dtype=torch.float64)
    (axis,) = class_bars(CLASSES, thresholds=thresholds).axes
    lines = [part.get_segments()[0] for part in axis.collections if isinstance(part, LineCollection)]
    assert lines[0][:, 0].tolist() == pytest.approx([0.0, math.log(3)])
    assert len(lines) == 2
    assert len(dots(axis)) == 2


def test_curves():
    figure = curves({"a": [1.0, math.nan, 3.0], "b": torch.tensor([70.0, 71.0, 72.5])}, x=[0, 1, 5], ylabel="mIoU")
    (axis,) = figure.axes
    first, second = axis.lines
    assert np.asarray(first.get_xydata()).tolist() == [[0, 1], [5, 3]]
    assert second.get_ydata().tolist() == [70, 71, 72.5]
    assert first.get_color() != second.get_color()
    (found,) = figure.legends
    assert [text.get_text() for text in found.get_texts()] == ["a: 3", "b: 72.5"]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("round", "mIoU")
    assert not curves({"a": [1.0]}).legends
    assert not len(curves({"a": [math.nan, math.nan]}).axes[0].lines[0].get_xdata())


def test_many_points_are_averaged():
    values = np.sin(np.arange(300.0)) + 5.0
    values[7] = math.nan
    (axis,) = curves({"loss": values}).axes
    raw, smooth = axis.lines
    assert len(raw.get_ydata()) == len(smooth.get_ydata()) == 299
    place = 150
    expected = np.nanmean(values[place - 5 : place + 6])  # 300 // 60 on either side
    assert dict(smooth.get_xydata())[place] == pytest.approx(expected)
    assert smooth.get_ydata().std() < 0.3 * raw.get_ydata().std()
    assert dict(smooth.get_xydata())[0] == pytest.approx(values[:6].mean())


# All of them.


def every_figure():
    images, labels = torch.rand(2, 3, 4, 8), torch.randint(3, (2, 4, 8))
    pasted = torch.ones(2, 4, 8, dtype=torch.bool)
    yield "image_sheet", image_sheet({"$x$": images, "labels": labels}, palette=PALETTE, classes=CLASSES)
    yield "crop_sheet", crop_sheet(images, torch.zeros(2, 2).long(), (2, 3))
    yield "mixing_sheet", mixing_sheet(images, labels, MixedBatch(images, labels, None, pasted), PALETTE)
    yield "confidence_map", confidence_map(torch.rand(2, 4, 8))
    yield "selection_map", selection_map(images, labels)
    yield "class_bars", class_bars(CLASSES, thresholds=torch.rand(3, 3), selected=torch.rand(3, 3))
    yield "curves", curves({"$\\undefined$": [1, 2], "<b>": [2, 1]})


@pytest.mark.parametrize(("name", "figure"), [pytest.param(*pair, id=pair[0]) for pair in every_figure()])
def test_drawn_without_a_backend_and_the_same_each_time(name, figure):
    first = pixels(figure)
    assert first.std() > 5
    assert np.array_equal(first, pixels(figure))
    texts = [text for text in figure.findobj(lambda part: hasattr(part, "get_parse_math")) if text.get_text()]
    assert not any(text.get_parse_math() for text in texts)


def test_nothing_global_is_touched():
    code = """
import matplotlib, sys

def settings():  # to ask for the backend would load one
    return {name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != "backend"}

before = settings()
from tests.visualize.test_figures import every_figure, pixels
for _, figure in every_figure():
    pixels(figure)
assert "matplotlib.pyplot" not in sys.modules
assert settings() == before
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_without_matplotlib_colours_work_and_figures_say_what_is_missing():
    code = """
import sys
sys.modules["matplotlib"] = sys.modules["matplotlib.figure"] = None
import torch
from selftrain_seg.visualize import class_bars, colorize, confidence_map, curves, image_sheet, report
colorize(torch.zeros(1, 2, 2).long(), [(0, 0, 0)])
calls = [lambda: class_bars(["a"], selected=[0.5]), lambda: confidence_map(torch.rand(1, 2, 2)),
         lambda: curves({"a": [1.0]}), lambda: image_sheet({"a": torch.rand(1, 3, 2, 2)}), lambda: report(".")]
for call in calls:
    try:
        call()
    except ImportError as error:
        assert 'pip install "selftrain-seg[visualize]"' in str(error), error
    else:
        raise AssertionError("no error")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


IMAGES, LABELS, NONE = torch.rand(1, 3, 2, 4), torch.zeros(1, 2, 4).long(), torch.rand(0, 3, 2, 4)
CORNERS, MIXED = torch.zeros(1, 2).long(), MixedBatch(IMAGES, LABELS, None, torch.zeros(1, 2, 4, dtype=torch.bool))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: image_sheet({}), ValueError, "`columns`: expected at least one"),
        (lambda: image_sheet({"a": NONE}), ValueError, "`a`: expected at least one image"),
        (lambda: image_sheet({"a": LABELS}), ValueError, r"`palette`: expected colours for .*'a'"),
        (lambda: image_sheet({"a": LABELS.float()}, palette=PALETTE), TypeError, r"`columns\['a'\]`: expected an int"),
        (lambda: image_sheet({"a": IMAGES, "b": IMAGES[..., 1:]}), ValueError, r"`columns\['b'\]`: expected"),
        (
            lambda: image_sheet({"a": LABELS}, palette=PALETTE, classes=["a"]),
            ValueError,
            "`classes`: expected one name",
        ),
        (lambda: image_sheet({"a": LABELS + 7}, palette=PALETTE), ValueError, r"`labels`: expected values in \[0, 3\)"),
        (lambda: crop_sheet(NONE, CORNERS[:0], (1, 1)), ValueError, "`images`: expected at least one image"),
        (lambda: crop_sheet(IMAGES, CORNERS, (1, 0)), ValueError, r"`size\[1\]`"),
        (lambda: crop_sheet(IMAGES, CORNERS, (1, 1), labels=LABELS), ValueError, "expected both or neither"),
        (lambda: crop_sheet(IMAGES, CORNERS.repeat(2, 1), (1, 1)), ValueError, "`corners`"),
        (lambda: mixing_sheet(IMAGES, LABELS, MIXED._replace(pasted=LABELS[0]), PALETTE), ValueError, "`mixed.pasted`"),
        (lambda: confidence_map(torch.rand(0, 2, 2)), ValueError, "`confidence`: expected .* at least one image"),
        (lambda: confidence_map(torch.rand(2, 2)), ValueError, r"`confidence`: expected \(B, H, W\)"),
        (lambda: confidence_map(LABELS), TypeError, "`confidence`: expected a floating-point dtype"),
        (lambda: confidence_map(torch.rand(1, 2, 2) + 1), ValueError, r"`confidence`: expected values in \[0, 1\]"),
        (lambda: confidence_map(torch.rand(1, 9, 9), images=IMAGES), ValueError, "`confidence`: expected"),
        (lambda: selection_map(NONE, LABELS[:0]), ValueError, "`images`: expected at least one image"),
        (lambda: selection_map(IMAGES, LABELS.float()), TypeError, "`labels`: expected an integer"),
        (lambda: selection_map(IMAGES, LABELS, truth=LABELS[:, 1:]), ValueError, "`truth`: expected"),
        (lambda: class_bars(CLASSES), ValueError, "expected at least one of them"),
        (lambda: class_bars(CLASSES, selected=[0.5]), ValueError, r"`selected`: expected \(R, 3\)"),
        (lambda: class_bars(CLASSES, precision=[0.5, 1.5, 0]), ValueError, "`precision`: expected shares"),
        (lambda: class_bars(CLASSES, selected=[0.5, -0.5, 0]), ValueError, "`selected`: expected shares"),
        (lambda: class_bars(CLASSES, selected=[[0, 0, 0]], rounds=[1, 2]), ValueError, r"expected \(R, C\) = \(2, 3\)"),
        (lambda: curves({}), ValueError, "`series`: expected at least one"),
        (lambda: curves({"a": [1, 2], "b": [1]}), ValueError, r"`series`: expected \(2,\), got \(1,\), 'b'"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_ignored_pixels_are_white_where_a_class_is_black():
    labels = torch.tensor([[[0, 1, 255]]])
    figure = image_sheet({"labels": labels}, palette=[(0, 0, 0), (128, 0, 0)], classes=["background", "aeroplane"])
    assert picture(figure.axes[0]).tolist() == [[[0, 0, 0], [128, 0, 0], [255, 255, 255]]]
    assert legend(figure)["ignored"] == (255, 255, 255)
    figure = image_sheet({"labels": labels}, palette=PALETTE[:2], classes=CLASSES[:2])
    assert picture(figure.axes[0])[0, 2].tolist() == [0, 0, 0]
    assert legend(figure)["ignored"] == (0, 0, 0)


def test_curves_of_losses_as_they_come():
    losses = [torch.tensor(value, requires_grad=True) * 2 for value in (1.0, 0.5)]
    (line,) = curves({"loss": losses}).axes[0].lines
    assert line.get_ydata().tolist() == [2.0, 1.0]
    (line,) = curves({"loss": [torch.tensor(1.5, dtype=torch.bfloat16), 1e308]}).axes[0].lines
    assert line.get_ydata().tolist() == [1.5]


def test_interpolated_confidence():
    confidence_map(torch.tensor([[[1.0000002, -1e-7]]]))
    with pytest.raises(ValueError, match=r"`confidence`: expected values in \[0, 1\], got 0.5 to 1.01"):
        confidence_map(torch.tensor([[[1.01, 0.5]]], dtype=torch.float64))


def test_bars_need_a_class():
    with pytest.raises(ValueError, match="`classes`: expected at least one"):
        class_bars([], precision=torch.empty(1, 0))


def test_a_tight_picture_keeps_its_legend(tmp_path):
    """As notebooks save every figure: nothing is cut off, and the legend stays below the pictures."""
    labels = torch.zeros(1, 8, 16, dtype=torch.long)
    figure = image_sheet({"truth": labels}, palette=[(255, 0, 0)], classes=["road"])
    heights = []
    for name, box in (("whole", None), ("tight", "tight")):
        figure.savefig(tmp_path / f"{name}.png", dpi=100, bbox_inches=box, pad_inches=0)
        with Image.open(tmp_path / f"{name}.png") as picture:
            red = (np.asarray(picture.convert("RGB")) == (255, 0, 0)).all(axis=2).any(axis=1)
        rows = np.flatnonzero(np.diff(red.astype(int)))  # where red begins and ends: the picture, then the patch
        heights.append(np.diff(rows).tolist())
    for picture, gap, patch in heights:
        # A tight picture begins at a fraction of a pixel.
        assert abs(picture - heights[0][0]) <= 1
        assert abs(patch - heights[0][2]) <= 1
        assert gap >= 10
