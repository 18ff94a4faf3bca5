"""Small parts that several examples share: pictures on disk, the rule of the check, orders of images, companions."""

import math
from argparse import Namespace

import pytest
from matplotlib.figure import Figure
from PIL import Image

from tests.examples.trainers import EXAMPLES


@pytest.fixture(autouse=True)
def common(monkeypatch):
    """Lets a test import what the examples share."""
    monkeypatch.syspath_prepend(EXAMPLES)


@pytest.mark.parametrize(("name", "kind"), [("a.b.png", "PNG"), ("c/d.jpg", "JPEG")])
@pytest.mark.parametrize("picture", [Image.new("RGB", (4, 3), (255, 0, 0)), Figure(figsize=(0.4, 0.3))])
def test_a_picture_is_written_whole_in_the_format_of_its_name(tmp_path, name, kind, picture):
    from _common.files import save_picture

    save_picture(picture, tmp_path / name)
    with Image.open(tmp_path / name) as found:
        assert found.format == kind
        assert found.size[0] * 3 == found.size[1] * 4
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]


def test_a_picture_that_cannot_be_written_leaves_the_one_before(tmp_path):
    from _common.files import save_picture

    path = tmp_path / "a.jpg"
    save_picture(Image.new("RGB", (4, 3)), path)
    before = path.read_bytes()
    with pytest.raises(OSError, match="RGBA"):  # JPEG has no opacity
        save_picture(Image.new("RGBA", (4, 3)), path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("start", "scores", "tolerance", "best"),
    [
        (50.0, [51.0, 53.0, 52.5], 1.0, 1),
        (50.0, [50.5, 51.0], 1.0, None),  # a gain equal to the tolerance is noise
        (50.0, [52.0, 52.0], 1.0, 0),  # the first of equal scores
        (50.0, [49.0, 49.5], -1.0, 1),  # it may fall by less than 1
        (50.0, [48.0, 49.0], -1.0, None),
        (50.0, [52.0, math.nan], 1.0, 0),
        (50.0, [], 1.0, None),
    ],
)
def test_which_round_is_kept(start, scores, tolerance, best):
    from _common.scores import best_round

    assert best_round(start, scores, tolerance) == best


@pytest.mark.parametrize("portion", [None, (1.0, 0.0, 1.0), (0.5, 0.5, 1.0)])
def test_all_source_images_are_drawn_anew_in_each_epoch(portion):
    from _labelling.drawing import source_order

    settings = Namespace(source_portion=portion, source_redraw=False, seed=0)
    assert source_order(settings, 100, number=1) is None


def test_a_part_of_the_source_images_grows_or_is_redrawn():
    from _labelling.drawing import source_order

    growing = Namespace(source_portion=(0.1, 0.1, 0.2), source_redraw=False, seed=0)
    first, second = (source_order(growing, 100, number) for number in (0, 1))
    assert (len(first), len(second)) == (10, 20)
    assert set(first) < set(second)
    redrawn = Namespace(source_portion=(0.1, 0.1, 0.2), source_redraw=True, seed=0)
    assert not set(first) <= set(source_order(redrawn, 100, 1))


def test_a_sampler_draws_all_images_of_the_steps_in_one_order():
    from _labelling.drawing import sampler_options

    settings = Namespace(accumulate=2, batch=6)
    orders = [sampler_options(Namespace(settings=settings, rank=rank, world=2), 5) for rank in (0, 1)]
    assert orders == [{"num_samples": 60, "rank": 0, "num_replicas": 1}] * 2


def test_companions_of_the_classes_that_there_are():
    from _labelling.companions import companions_of

    assert companions_of(("rider", "road", "bicycle", "pole", "traffic sign")) == {2: [0], 4: [3]}
    assert companions_of(("road", "bicycle", "light")) == {}
