"""Label maps against the public tables, on every dtype, and far outside of them."""

from __future__ import annotations

import dataclasses
import os
import pickle

import numpy as np
import pytest
import torch
from torchvision import datasets as theirs

from selftrain_seg.datasets import LabelMap, SyntheticStreets
from tests.oracles import labels as oracle

DTYPES = (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64)

# By hand from the papers of SYNTHIA: name of the class in Cityscapes -> id in SYNTHIA-RAND-CITYSCAPES
SYNTHIA_IDS = """sky 1, building 2, road 3, sidewalk 4, fence 5, vegetation 6, pole 7, car 8, traffic sign 9, person 10,
bicycle 11, motorcycle 12, traffic light 15, rider 17, bus 19, wall 21"""
SYNTHIA_IDS = dict(item.strip().rsplit(" ", 1) for item in SYNTHIA_IDS.split(","))
SYNTHIA_IDS = {name: int(label_id) for name, label_id in SYNTHIA_IDS.items()}


def official():
    """torchvision's own copy of the Cityscapes table: id -> train id, 255 where there is none."""
    return {entry.id: entry.train_id if entry.train_id not in (-1, 255) else 255 for entry in theirs.Cityscapes.classes}


def looked_up(table, labels, ignore_index=255):
    """Oracle: one Python dictionary look-up a pixel."""
    array = np.asarray(labels.to(torch.int64))
    out = np.array([table.get(int(value), ignore_index) for value in array.ravel()], np.int64)
    return torch.from_numpy(out.reshape(array.shape))


ALL = {
    "cityscapes": LabelMap.cityscapes(),
    "cityscapes16": LabelMap.cityscapes(16),
    "synthia": LabelMap.synthia(),
    "synthia16": LabelMap.synthia(16),
    "bdd100k": LabelMap.bdd100k(),
    "bdd100k16": LabelMap.bdd100k(16),
    "streets": LabelMap.streets(),
    "voc": LabelMap.voc(),
}


class TestPresets:
    def test_cityscapes(self):
        label_map = LabelMap.cityscapes()
        ids = torch.tensor(sorted(official()))
        assert ids.min() == -1
        assert torch.equal(label_map(ids), looked_up(official(), ids))
        assert label_map(torch.tensor([34])).tolist() == [255]  # GTA5's license plate
        trained = sorted((e for e in theirs.Cityscapes.classes if 0 <= e.train_id < 255), key=lambda e: e.train_id)
        assert label_map.classes == tuple(entry.name for entry in trained)
        assert label_map.palette == tuple(entry.color for entry in trained)
        assert set(label_map.ids) == {*official(), 34}
        assert (label_map.num_classes, label_map.ignore_index, label_map.unknown) == (19, 255, "error")

    def test_synthia(self):
        wide, dense = LabelMap.synthia(), LabelMap.synthia(16)
        names = LabelMap.cityscapes().classes
        assert wide.classes == names
        assert dense.classes == tuple(name for name in names if name not in ("terrain", "truck", "train"))
        ids = torch.arange(23)
        for label_map in (wide, dense):
            table = {label_id: label_map.classes.index(name) for name, label_id in SYNTHIA_IDS.items()}
            assert len(table) == 16
            assert torch.equal(label_map(ids), looked_up(table, ids))
            assert set(label_map.ids) == set(range(23))
        assert sorted(wide(ids).unique().tolist()) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18, 255]
        assert sorted(dense(ids).unique().tolist()) == [*range(16), 255]

    @pytest.mark.parametrize("preset", [LabelMap.cityscapes, LabelMap.bdd100k])
    def test_16_classes_mean_the_same_everywhere(self, preset):
        synthia, other = LabelMap.synthia(16), preset(16)
        assert other.classes == synthia.classes
        assert other.palette == synthia.palette
        wide = preset()
        for label_id, number in wide.ids.items():
            name = wide.classes[number] if number != 255 else None
            expected = synthia.classes.index(name) if name in synthia.classes else 255
            assert other.ids[label_id] == expected
        assert set(other.ids) == set(wide.ids)

    def test_bdd100k_is_the_identity(self):
        ids = torch.tensor([*range(19), 255], dtype=torch.uint8)
        assert torch.equal(LabelMap.bdd100k()(ids), ids.long())
        assert LabelMap.bdd100k().classes == LabelMap.cityscapes().classes

    def test_streets(self):
        label_map = LabelMap.streets()
        names = {"light": "traffic light", "sign": "traffic sign"}
        table = {entry.name: entry.id for entry in theirs.Cityscapes.classes}
        expected = {table[names.get(name, name)]: c for c, name in enumerate(SyntheticStreets.classes)}
        ids = torch.arange(-1, 35)
        assert torch.equal(label_map(ids), looked_up(expected, ids))
        assert label_map.classes == SyntheticStreets.classes
        assert label_map.palette == SyntheticStreets.palette

    def test_voc(self):
        label_map = LabelMap.voc()
        ids = torch.tensor([*range(21), 255], dtype=torch.uint8)
        assert torch.equal(label_map(ids), ids.long())
        assert label_map.num_classes == len(label_map.classes) == 21
        # the first and some later ones of the published colour map
        assert label_map.palette[:5] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128))
        assert label_map.palette[15] == (192, 128, 128)
        assert label_map.palette[20] == (0, 64, 128)
        assert label_map.classes[15] == "person"

    @pytest.mark.parametrize("preset", [LabelMap.cityscapes, LabelMap.synthia, LabelMap.bdd100k])
    def test_other_numbers_of_classes(self, preset):
        with pytest.raises(ValueError, match="`num_classes`: expected 19 or 16, got 13"):
            preset(13)

    @pytest.mark.parametrize("preset", ["cityscapes", "synthia", "bdd100k", "streets", "voc"])
    def test_unknown_is_passed_on(self, preset):
        label_map = getattr(LabelMap, preset)(unknown="ignore")
        assert label_map(torch.tensor([-7, 999])).tolist() == [255, 255]
        with pytest.raises(ValueError, match="`unknown`: expected one of 'error', 'ignore', got 'maybe'"):
            getattr(LabelMap, preset)(unknown="maybe")


class TestSubset:
    # train ids, as the papers on SYNTHIA list them
    WIDE_16 = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18)
    WIDE_13 = (0, 1, 2, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18)

    @pytest.mark.parametrize("name", ["cityscapes", "synthia", "bdd100k"])
    def test_of_19(self, name):
        assert ALL[name].synthia_subset(16) == self.WIDE_16
        assert ALL[name].synthia_subset(13) == self.WIDE_13

    @pytest.mark.parametrize("name", ["cityscapes16", "synthia16", "bdd100k16"])
    def test_of_16(self, name):
        assert ALL[name].synthia_subset(16) == tuple(range(16))
        assert ALL[name].synthia_subset(13) == (0, 1, 2, *range(6, 16))
        names = [ALL[name].classes[c] for c in ALL[name].synthia_subset(13)]
        assert names == [LabelMap.cityscapes().classes[c] for c in self.WIDE_13]

    def test_classes_that_lack(self):
        with pytest.raises(ValueError, match="`size`: expected a label map with all 13 classes, this one lacks"):
            LabelMap.streets().synthia_subset(13)  # 13 classes, but not those
        with pytest.raises(ValueError, match="`size`: expected 16 or 13, got 19"):
            LabelMap.cityscapes().synthia_subset(19)


class TestConventionsOfSynthia:
    """Whether terrain, truck and train in the truth are wrong whatever is predicted there, or ignored."""

    NOT_THERE = ("terrain", "truck", "train")

    @pytest.mark.parametrize("size", [16, 13])
    @pytest.mark.parametrize("outputs", [19, 16])
    def test_both_by_names(self, outputs, size):
        wide, narrow = LabelMap.cityscapes(), LabelMap.cityscapes(outputs)
        rng = np.random.default_rng(size)
        names = rng.choice([*wide.classes, "void"], (40, 50), p=[0.05] * 20)
        ids = {name: next(i for i, c in wide.ids.items() if c == number) for number, name in enumerate(wide.classes)}
        masks = torch.tensor([[ids.get(name, 0) for name in row] for row in names])
        predicted = torch.from_numpy(rng.integers(0, outputs, names.shape))
        right = torch.from_numpy(rng.random(names.shape) < 0.7) & (narrow(masks) != 255)
        predicted = torch.where(right, narrow(masks), predicted)

        truths = {"counted": wide, "ignored": wide.ignoring(*self.NOT_THERE)}
        lists = ([None if name == "void" else name for name in names.ravel()],)
        lists += ([narrow.classes[c] for c in predicted.flatten()],)
        means = {}
        for convention, truth in truths.items():
            labels, said = truth(masks), narrow.numbers_in(truth)[predicted]
            seen = labels != 255
            matrix = torch.bincount(labels[seen] * 19 + said[seen], minlength=19 * 19).view(19, 19).double()
            iou = matrix.diag() / (matrix.sum(0) + matrix.sum(1) - matrix.diag())
            subset = truth.synthia_subset(size)
            left_out = self.NOT_THERE if convention == "ignored" else ()
            expected = [oracle.iou_by_names(*lists, wide.classes[c], left_out) for c in subset]
            np.testing.assert_allclose(iou[list(subset)], expected)
            means[convention] = iou[list(subset)].mean()
        assert means["ignored"] > means["counted"] + 0.005

    def test_16_outputs_ignore_them(self):
        """``cityscapes(16)`` is the second convention, in a numbering of its own."""
        masks = torch.arange(-1, 34)
        wide, narrow = LabelMap.cityscapes().ignoring(*self.NOT_THERE), LabelMap.cityscapes(16)
        numbers = torch.cat([narrow.numbers_in(wide), torch.tensor([255])])
        assert torch.equal(wide(masks), numbers[narrow(masks).clamp(max=16)])

    def test_ignoring(self):
        whole = LabelMap.bdd100k()
        part = whole.ignoring("road", "bicycle")
        assert (part.classes, part.palette, part.num_classes) == (whole.classes, whole.palette, 19)
        assert part(torch.tensor([0, 1, 17, 18, 255])).tolist() == [255, 1, 17, 255, 255]
        assert whole(torch.tensor([0, 18])).tolist() == [0, 18]
        assert set(part.colours.values()) == set(whole.colours.values()) - {0, 18} | {255}
        assert whole.ignoring() == whole
        assert pickle.loads(pickle.dumps(part)) == part  # noqa: S301
        with pytest.raises(ValueError, match=r"`names`: expected classes of LabelMap\(19 .*, got 'sea'; it has road, "):
            whole.ignoring("road", "sea")

    def test_numbers_of_a_map_that_lacks_a_class(self):
        assert LabelMap.cityscapes().numbers_in(LabelMap.bdd100k()).tolist() == list(range(19))
        with pytest.raises(ValueError, match=r"`other`: expected classes of LabelMap\(16 .*, got 'terrain'"):
            LabelMap.cityscapes().numbers_in(LabelMap.cityscapes(16))


class TestLookUp:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("name", ALL)
    def test_oracle(self, name, dtype):
        label_map = dataclasses.replace(ALL[name], unknown="ignore")
        info = torch.iinfo(dtype)
        low, high = max(info.min, -300), min(info.max, 300)
        labels = torch.arange(low, high + 1).to(dtype)
        out = label_map(labels)
        assert out.dtype == torch.int64
        assert torch.equal(out, looked_up(dict(ALL[name].ids), labels))

    def test_bool(self):
        label_map = LabelMap({0: 1, 1: 0}, ["a", "b"], [(0, 0, 0), (1, 1, 1)])
        assert label_map(torch.tensor([[True, False]])).tolist() == [[0, 1]]

    @pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16], ids=str)
    def test_extremes(self, dtype):
        info = torch.iinfo(dtype)
        labels = torch.tensor([info.min, info.max, 7]).to(dtype)
        expected = [255 if v not in (0, 7) else {0: 255, 7: 0}[v] for v in (info.min, info.max, 7)]
        assert LabelMap.cityscapes(unknown="ignore")(labels).tolist() == expected
        with pytest.raises(ValueError, match=f"got .*{info.max}"):
            LabelMap.cityscapes()(labels)

    @pytest.mark.parametrize("shape", [(), (0,), (3, 0, 4), (5,), (2, 3, 4), (2, 1, 3, 4)])
    def test_shapes(self, shape):
        labels = torch.randint(0, 34, shape, generator=torch.Generator().manual_seed(0))
        out = LabelMap.cityscapes()(labels)
        assert out.shape == labels.shape
        assert torch.equal(out, looked_up(official(), labels))

    def test_strided_and_unchanged(self):
        labels = torch.randint(0, 34, (4, 6, 8), generator=torch.Generator().manual_seed(0))
        for view in (labels[..., ::2], labels.transpose(0, 2), labels.expand(3, 4, 6, 8)):
            before = view.clone()
            assert torch.equal(LabelMap.cityscapes()(view), looked_up(official(), view))
            assert torch.equal(view, before)
        same = LabelMap.bdd100k()(torch.zeros(2, dtype=torch.int64))
        same[0] = 5  # a result is nobody's view
        assert LabelMap.bdd100k()(torch.zeros(2, dtype=torch.int64)).tolist() == [0, 0]

    def test_all_wrong_ids_are_named(self):
        labels = torch.tensor([[7, 60], [-2, 60]])
        message = r"ids of LabelMap\(19 classes, 36 ids from -1 to 34\), got -2, 60 \(3 pixels, the first at \(0, 1"
        with pytest.raises(ValueError, match=message):
            LabelMap.cityscapes()(labels)
        with pytest.raises(ValueError, match=r"got 35, 36, 37, 38, 39, \.\.\. \(25 pixels, the first at 35\)$"):
            LabelMap.cityscapes()(torch.arange(60, dtype=torch.uint8))

    def test_train_ids_in_place_of_ids_are_noticed(self):
        with pytest.raises(ValueError, match="got 255"):
            LabelMap.cityscapes()(torch.tensor([0, 1, 255], dtype=torch.uint8))

    def test_other_ignore_index(self):
        label_map = LabelMap({1: 0, 2: -100}, ["a"], [(1, 2, 3)], "ignore", -100)
        assert label_map(torch.tensor([1, 2, 3, -100])).tolist() == [0, -100, -100, -100]
        strict = dataclasses.replace(label_map, unknown="error")
        assert strict(torch.tensor([1, 2])).tolist() == [0, -100]
        with pytest.raises(ValueError, match="got 3"):
            strict(torch.tensor([1, 2, 3]))

    def test_far_ids(self):
        label_map = LabelMap({-(2**15): 0, 2**16 - 1: 1}, ["a", "b"], [(0, 0, 0)] * 2, unknown="ignore")
        labels = torch.tensor([-(2**15) - 1, -(2**15), 0, 2**16 - 1, 2**16])
        assert label_map(labels).tolist() == [255, 0, 255, 1, 255]
        assert label_map(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [255, 255]

    def test_no_ids(self):
        assert LabelMap({}, ["a"], [(0, 0, 0)], "ignore")(torch.tensor([0, 3])).tolist() == [255, 255]

    def test_dtypes_that_are_no_labels(self):
        with pytest.raises(TypeError, match=r"`labels`: expected an integer dtype or torch.bool, got torch.float32"):
            LabelMap.voc()(torch.zeros(2))
        with pytest.raises(TypeError, match=r"`labels`: expected a torch.Tensor, got list"):
            LabelMap.voc()([0])

    @pytest.mark.gpu
    def test_gpu(self):
        labels = torch.randint(0, 34, (2, 5, 7), generator=torch.Generator().manual_seed(0))
        for dtype in (torch.uint8, torch.int32, torch.int64):
            out = LabelMap.cityscapes()(labels.to("cuda", dtype))
            assert out.is_cuda
            assert torch.equal(out.cpu(), looked_up(official(), labels))
        with pytest.raises(ValueError, match="got 77"):
            LabelMap.cityscapes()(torch.tensor([77], device="cuda"))


class TestImmutable:
    def test_nothing_can_be_set(self):
        label_map = LabelMap.voc()
        with pytest.raises(dataclasses.FrozenInstanceError):
            label_map.classes = ()
        with pytest.raises(TypeError):
            label_map.ids[0] = 3
        assert isinstance(label_map.classes, tuple)
        assert isinstance(label_map.palette, tuple)

    def test_keeps_its_own_copy(self):
        ids, classes, palette = {5: 0}, ["a"], [[1, 2, 3]]
        label_map = LabelMap(ids, classes, palette)
        ids[6] = 0
        classes.append("b")
        palette[0][0] = 9
        assert dict(label_map.ids) == {5: 0}
        assert label_map.classes == ("a",)
        assert label_map.palette == ((1, 2, 3),)

    @pytest.mark.parametrize("name", ALL)
    def test_equal_hash_pickle(self, name):
        label_map = ALL[name]
        label_map(torch.tensor([next(iter(label_map.ids))]))  # fills the cache of tables, which is no part of it
        copy = pickle.loads(pickle.dumps(label_map))  # noqa: S301
        assert copy == label_map
        assert hash(copy) == hash(label_map)
        assert dict(copy.ids) == dict(label_map.ids)
        assert copy != dataclasses.replace(label_map, unknown="ignore")
        assert len({*ALL.values(), copy}) == len(ALL)


class TestRgb:
    def test_by_hand(self):
        label_map = LabelMap({0: 0, 1: 1}, ["a", "b"], [(1, 2, 3), (4, 5, 6)])
        labels = torch.tensor([[0, 1, 255, -4, 2]], dtype=torch.int16)
        rgb = label_map.to_rgb(labels)
        assert rgb.dtype == torch.uint8
        assert rgb.tolist() == [[[1, 4, 0, 0, 0]], [[2, 5, 0, 0, 0]], [[3, 6, 0, 0, 0]]]

    @pytest.mark.parametrize("shape", [(4, 5), (2, 4, 5), (2, 3, 4, 5), (0, 4, 5)])
    def test_shapes(self, shape):
        labels = torch.randint(0, 19, shape, dtype=torch.uint8)
        rgb = LabelMap.cityscapes().to_rgb(labels)
        assert tuple(rgb.shape) == (*shape[:-2], 3, *shape[-2:])
        assert rgb.is_contiguous()

    def test_errors(self):
        with pytest.raises(ValueError, match=r"`labels`: expected \(\.\.\., H, W\), got \(3,\)"):
            LabelMap.voc().to_rgb(torch.zeros(3, dtype=torch.uint8))
        with pytest.raises(TypeError, match=r"`labels`: expected an integer dtype, got torch.float32"):
            LabelMap.voc().to_rgb(torch.zeros(3, 3))


BLACK = (0, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (({"1": 0}, ["a"], [BLACK]), TypeError, "`ids`: expected an int, got str"),
        (({True: 0}, ["a"], [BLACK]), TypeError, "`ids`: expected an int, got bool"),
        (({1: 0.0}, ["a"], [BLACK]), TypeError, r"`ids\[1\]`: expected an int, got float"),
        (({2**16: 0}, ["a"], [BLACK]), ValueError, r"`ids`: expected ids in \[-32768, 65536\), got 65536"),
        (({-40000: 0}, ["a"], [BLACK]), ValueError, "`ids`: .* got -40000"),
        (({1: 1}, ["a"], [BLACK]), ValueError, r"`ids\[1\]`: expected a class in \[0, 1\) or ignore_index 255, got 1"),
        (({1: -1}, ["a"], [BLACK]), ValueError, r"`ids\[1\]`: .* got -1"),
        (({}, [], []), ValueError, "`classes`: expected at least one name and all different"),
        (({}, ["a", "a"], [BLACK] * 2), ValueError, "`classes`: expected at least one name and all different"),
        (({}, ["a", 2], [BLACK] * 2), TypeError, "`classes`: expected names, got int"),
        (({}, ["a"], []), ValueError, "`palette`: expected 1 colours, got 0"),
        (({}, ["a"], [(0, 0)]), ValueError, r"`palette`: expected colours of three values in \[0, 255\], got \(0, 0\)"),
        (({}, ["a"], [()]), ValueError, r"`palette`: expected colours of three values"),
        (({}, ["a"], [(0, 0, 256)]), ValueError, "`palette`: .* got "),
        (({}, ["a"], [(0, -1, 0)]), ValueError, "`palette`: .* got "),
        (({}, ["a"], [BLACK], "warn"), ValueError, "`unknown`: expected one of 'error', 'ignore', got 'warn'"),
        (({}, ["a"], [BLACK], "error", 0), ValueError, r"`ignore_index`: expected a value outside \[0, 1\), got 0"),
        (({}, ["a"], [BLACK], "error", None), TypeError, "`ignore_index`: expected an int, got NoneType"),
    ],
)
def test_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        LabelMap(*arguments)


class TestBuilders:
    def test_names(self):
        label_map = LabelMap.from_names({0: "background", 255: "vessel", (3, 4): "disc", 9: None})
        assert dict(label_map.ids) == {0: 0, 255: 1, 3: 2, 4: 2, 9: 255}
        assert label_map.classes == ("background", "vessel", "disc")
        assert label_map.palette[0] == BLACK
        assert len(set(label_map.palette)) == 3
        assert dict(label_map.colours) == {}  # drawn colours are for showing, not for reading
        assert label_map(torch.tensor([0, 255, 4, 9])).tolist() == [0, 1, 2, 255]
        with pytest.raises(ValueError, match=r"got 1 \(1 pixel, the first at 0\)$"):
            label_map(torch.tensor([1]))

    def test_names_with_colours(self):
        label_map = LabelMap.from_names({0: "a", 1: "b", 2: "c"}, colours={"b": (128, 0, 0)})
        assert label_map.palette[1] == (128, 0, 0)
        assert dict(label_map.colours) == {(128, 0, 0): 1}
        assert len(set(label_map.palette)) == 3  # nothing drawn in a colour that is taken

    def test_two_ids_of_one_name_are_one_class(self):
        label_map = LabelMap.from_names({1: "car", 2: "road", 3: "car"}, unknown="ignore")
        assert (label_map.classes, label_map.unknown) == (("car", "road"), "ignore")
        assert dict(label_map.ids) == {1: 0, 2: 1, 3: 0}

    def test_colours(self):
        label_map = LabelMap.from_colours({(1, 2, 3): "b", (4, 5, 6): "a", (7, 8, 9): "b", (0, 0, 1): None})
        assert label_map.classes == ("b", "a")
        assert label_map.palette == ((1, 2, 3), (4, 5, 6))
        assert dict(label_map.colours) == {(1, 2, 3): 0, (4, 5, 6): 1, (7, 8, 9): 0, (0, 0, 1): 255}
        assert repr(label_map) == "LabelMap(2 classes, 4 colours)"

    def test_many_drawn_colours_differ(self):
        names = {number: f"{number}" for number in range(300)} | {300: "background", 7: None}
        label_map = LabelMap.from_names(names, ignore_index=-1)
        assert label_map(torch.tensor([7, 299, 300])).tolist() == [-1, 298, 299]
        assert len(set(label_map.palette)) == 300

    @pytest.mark.parametrize(
        ("build", "error", "message"),
        [
            (lambda: LabelMap.from_names({"0": "a"}), TypeError, "`names`: expected an int, got str"),
            (lambda: LabelMap.from_names({0: 1}), TypeError, r"`names\[0\]`: expected a name or None, got int"),
            (lambda: LabelMap.from_names({0: "a", (0, 1): "b"}), ValueError, "id 0 stands for two classes"),
            (lambda: LabelMap.from_names({0: None}), ValueError, "`classes`: expected at least one name"),
            (
                lambda: LabelMap.from_names({0: "a"}, colours={"b": BLACK}),
                ValueError,
                r"`colours`: expected names of classes, got \['b'\]",
            ),
            (
                lambda: LabelMap.from_names({0: "a", 1: "b"}, colours={"a": BLACK, "b": BLACK}),
                ValueError,
                r"colour \(0, 0, 0\) stands for two classes",
            ),
            (
                lambda: LabelMap.from_colours({(0, 0): "a"}),
                ValueError,
                r"`names`: expected colours of three .*\(0, 0\)",
            ),
            (lambda: LabelMap.from_colours({"red": "a"}), ValueError, "`names`: expected colours of three .*'red'"),
            (
                lambda: LabelMap({}, ["a"], [BLACK], colours={BLACK: 1}),
                ValueError,
                r"`colours\[\(0, 0, 0\)\]`: expected a",
            ),
        ],
    )
    def test_errors(self, build, error, message):
        with pytest.raises(error, match=message):
            build()


JSON = {
    '{"0": "background", "255": "vessel", "9": null}': ({0: 0, 255: 1, 9: 255}, {}),
    '["background", "vessel"]': ({0: 0, 1: 1}, {}),
    '[{"name": "background", "id": 0}, {"name": "vessel", "ids": [1, 255], "color": "#ff0000"}]': (
        {0: 0, 1: 1, 255: 1},
        {(255, 0, 0): 1},
    ),
    '[{"name": "background", "colour": [0, 0, 0]}, {"Name": "vessel", "Color": "255, 0, 0"},'
    ' {"ignore": true, "rgb": "1 2 3"}]': (
        {},
        {BLACK: 0, (255, 0, 0): 1, (1, 2, 3): 255},
    ),
    '{"classes": ["background", "vessel"], "unknown": "ignore", "ignore": {"ids": [7]}}': (
        {0: 0, 1: 1, 7: 255},
        {},
    ),
}
CSV = {
    "name,id\nbackground,0\nvessel,255\n": ({0: 0, 255: 1}, {}),
    "\ufeffname; ids; ignore\r\nbackground; 0;\r\nvessel; 1 255;\r\nvoid; 9; 1\r\n": ({0: 0, 1: 1, 255: 1, 9: 255}, {}),
    "name, r, g, b\nbackground, 0, 0, 0\nvessel, 255, 0, 0\n": ({}, {BLACK: 0, (255, 0, 0): 1}),
    "ID\tClass\tColour\n3\tbackground\t\n4\tvessel\t#0000ff\n": ({3: 0, 4: 1}, {(0, 0, 255): 1}),
    'id,name,color\n0,background,"0,0,0"\n1,vessel,"(255, 0, 0)"\n': ({0: 0, 1: 1}, {BLACK: 0, (255, 0, 0): 1}),
    "name\nbackground\nvessel\n": ({0: 0, 1: 1}, {}),
}


class TestFiles:
    @pytest.mark.parametrize(("suffix", "text"), [(".json", t) for t in JSON] + [(".csv", t) for t in CSV])
    def test_forms(self, tmp_path, suffix, text):
        path = tmp_path / f"my classes ü{suffix}"
        path.write_bytes(text.encode())
        label_map = LabelMap.load(path)
        ids, colours = (JSON | CSV)[text]
        assert label_map.classes == ("background", "vessel")
        assert (dict(label_map.ids), dict(label_map.colours)) == (ids, colours)
        assert len(set(label_map.palette)) == 2
        for colour, number in colours.items():
            if number < 255:
                assert label_map.palette[number] == colour

    @pytest.mark.parametrize("name", ALL)
    def test_round_trip(self, tmp_path, name):
        path = ALL[name].save(tmp_path / "classes.json")
        assert LabelMap.load(str(path)) == ALL[name]
        assert os.listdir(tmp_path) == ["classes.json"]

    def test_round_trip_of_everything_else(self, tmp_path):
        for label_map in (
            LabelMap({}, ["ä b", "c"], [(1, 2, 3)] * 2, "ignore", -100),
            LabelMap(
                {-5: 0, 65535: 1, 3: -1}, ["a", '"'], [BLACK] * 2, ignore_index=-1, colours={BLACK: 1, (1, 1, 1): -1}
            ),
            LabelMap.binary("nucleus"),
            LabelMap.from_colours({(9, 9, 9): "a", (8, 8, 8): None}),
        ):
            assert LabelMap.load(label_map.save(tmp_path / "classes.json")) == label_map

    def test_a_write_that_fails_leaves_nothing(self, tmp_path):
        (tmp_path / "classes.json").mkdir()
        with pytest.raises(OSError, match=r"classes\.json"):
            LabelMap.voc().save(tmp_path / "classes.json")
        assert os.listdir(tmp_path) == ["classes.json"]
        with pytest.raises(ValueError, match=r"`path`: expected a name that ends in .json, got classes.yaml"):
            LabelMap.voc().save("classes.yaml")

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("a.json", "{", "a.json: Expecting property name"),
            ("a.json", "3", "a.json: expected a list of classes or a mapping, got int"),
            ("a.json", "[3]", "a.json: expected a class as a name or a mapping, got 3"),
            ("a.json", '[{"id": 3}]', "a.json: expected a name in "),
            ("a.json", '{"x": "a"}', "a.json: expected a whole number, got 'x'"),
            ("a.json", '[{"name": "a", "id": 1.5}]', "a.json: expected a whole number, got 1.5"),
            ("a.json", '[{"name": "a", "colour": [0, 0, 300]}]', "a.json: `colour`: expected colours of three values"),
            ("a.json", '[{"name": "a", "colour": "red"}]', "a.json: expected a whole number, got 'red'"),
            ("a.json", '{"classes": ["a"], "unknown": "maybe"}', "a.json: `unknown`: expected one of"),
            ("a.json", '[{"name": "a", "id": 0}, {"name": "b", "id": 0}]', "a.json: id 0 stands for two classes"),
            ("a.json", '{"0": "a", "0": "b"}', "a.json: '0' occurs twice"),
            (
                "a.json",
                '["a", {"name": "b", "id": 2}]',
                "a.json: expected an id or a colour for each class; 'a' has none",
            ),
            ("a.json", "[]", "a.json: `classes`: expected at least one name"),
            ("a.csv", "", "a.csv: expected a first line of headings with 'name'"),
            (
                "a.csv",
                "background,0\nvessel,1\n",
                "a.csv: expected a first line of headings with 'name', .*'background,0'",
            ),
            ("a.csv", "name,id\na,0,7\n", "a.csv: line 2: expected 2 columns"),
            ("a.csv", "name,id\na,0\nb,x\n", "a.csv: line 3: expected a whole number, got 'x'"),
            ("a.csv", "name,id\n,0\n", "a.csv: line 2: expected a name in"),
            ("a.csv", "\nname,id\n\na,0\n\nb,x\n", "a.csv: line 6: expected a whole number, got 'x'"),
            ("a.txt", "\x00", "a.txt: "),
            ("a.yaml", "a: 1", r"a.yaml: expected a name that ends in .json or .csv"),
        ],
    )
    def test_errors(self, tmp_path, name, text, message):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            LabelMap.load(tmp_path / name)

    def test_no_file_and_no_text(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"`path`: expected a file .*none.json, found none"):
            LabelMap.load(tmp_path / "none.json")
        (tmp_path / "a.csv").write_bytes(b"name,id\n\xff\xfe,0\n")
        with pytest.raises(ValueError, match=r"a.csv: expected text in UTF-8"):
            LabelMap.load(tmp_path / "a.csv")


class TestColours:
    def test_presets(self):
        """Where several ids share a colour, the trained class has it."""
        for name in ("cityscapes", "bdd100k", "streets"):
            label_map = ALL[name]
            for number, colour in enumerate(label_map.palette):
                assert label_map.colours[colour] == number
        for entry in theirs.Cityscapes.classes:
            trained = {e.color: e.train_id for e in theirs.Cityscapes.classes if 0 <= e.train_id < 255}
            assert LabelMap.cityscapes().colours[entry.color] == trained.get(entry.color, 255)
        voc = LabelMap.voc()
        assert [voc.colours[colour] for colour in voc.palette] == list(range(21))
        assert voc.colours[224, 224, 192] == 255
        assert LabelMap.synthia().colours == {}

    def test_immutable_and_equal(self):
        label_map = LabelMap.voc()
        with pytest.raises(TypeError):
            label_map.colours[BLACK] = 3
        other = dataclasses.replace(label_map, colours={})
        assert other != label_map
        assert hash(other) != hash(label_map)
