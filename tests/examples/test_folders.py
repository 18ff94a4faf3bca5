"""Trainers on folders in the layouts of the real data sets."""

import json
import re

import pytest
from PIL import Image

from selftrain_seg.store import PseudoLabelStore
from tests import worlds
from tests.datasets import trees
from tests.examples.trainers import result, run, run_as_people_do

pytestmark = pytest.mark.slow

MISSING = {"terrain", "truck", "train"}  # in SYNTHIA


def test_synthia_is_measured_on_its_own_classes(tmp_path):
    trees.synthia(tmp_path / "synthia", 4)
    for split in ("train", "val"):
        trees.cityscapes(tmp_path / "cityscapes", split)
    folders = ("--source-root", tmp_path / "synthia", "--root", tmp_path / "cityscapes", "--crop", 16, 32, "--batch", 4)
    network = ("--network", "small-unet", "--from-scratch")
    run("source_only.py", tmp_path / "run", "--data", "synthia", "--smoke", *folders, *network)
    found = result(tmp_path / "run")
    iou = found["iou"]
    assert len(iou) == 19
    assert {name for name, value in iou.items() if value is None} == MISSING
    rest = [value for value in iou.values() if value is not None]
    assert found["mIoU-16"] == pytest.approx(sum(rest) / 16)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    row = re.search(r"<tr[^>]*>\s*<t[hd][^>]*>mIoU</t[hd]>(.*?)</tr>", page, re.DOTALL)
    assert row, "no row of the mean"
    assert f"{found['mIoU-16']:.1f}" in re.sub("<[^>]*>", " ", row[1])


# Your own data


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder of the three made worlds."""
    return worlds.write(tmp_path_factory.mktemp("worlds"), size=32, count=4)


def options(world, made):
    """The arguments that name a world's folders."""
    root = made / world
    if world == "fundus":  # 16-bit grey to colour; masks in colours; which images have masks is in a file
        target = ["--target-images", root / "target" / "images"]
        val = ["--val-images", root / "target" / "images", "--val-masks", root / "target" / "masks"]
        source = ["--source-images", root / "source" / "images", "--source-masks", root / "source" / "masks"]
        return [*source, *target, *val, "--val-names", root / "val.txt", "--classes", root / "classes.csv"]
    if world == "aerial":  # four channels, in tiles; no validation masks at all, but the target's truth
        source = ["--source-images", root / "source" / "images", "--source-masks", root / "source" / "masks"]
        target = ["--target-images", root / "target" / "images", "--target-masks", root / "target" / "masks"]
        return [*source, *target, "--classes", root / "classes.json", "--channels", 4, "--tile", 48, 32]
    day, night = root / "day" / "train", root / "night"  # masks among the images
    source = ["--source-images", day, "--source-masks", day, "--mask-suffix", "_mask"]
    target = ["--target-images", night / "train", "--val-images", night / "val", "--val-masks", night / "val"]
    return [*source, *target, "--classes", root / "classes.json"]


@pytest.fixture(scope="module")
def starts(made, tmp_path_factory):
    """World -> weights to start from."""
    found = {}
    for world in ("fundus", "aerial", "streets"):
        out = tmp_path_factory.mktemp(world)
        output = run("source_only.py", out, *FOLDERS, *options(world, made), "--steps", 20)
        assert "trained on source; on the target" in output
        found[world] = out / "model.pt"
    return found


FOLDERS = ["--data", "folders", "--network", "small-unet", "--smoke", "--batch", 2]
TRAINERS = {
    "cbst": ["cbst.py", "--rounds", 1, "--mine"],
    "crst": ["crst.py", "--rounds", 1, "--regularizer", "lrent"],
    "iast": ["iast.py", "--rounds", 1],
    "dst-cbc": ["dst_cbc.py", "--rounds", 1],
    "dmt": ["dst_cbc.py", "--rounds", 1, "--mutual"],
    "dtst": ["dtst.py"],
    "online": ["online.py"],
    "mean teacher": ["mean_teacher.py", "--paste-from", "source"],
    "dual teacher": ["mean_teacher.py", "--teacher", "dual"],
    "sac": ["sac.py", "--views", 2],
    "unimatch": ["unimatch.py"],
    "mic": ["mic.py"],
    "recommended": ["recommended.py", "--eval-every", 1],
}


@pytest.mark.parametrize("world", ["fundus", "aerial", "streets"])
@pytest.mark.parametrize("trainer", list(TRAINERS))
def test_every_trainer_adapts_to_every_world(trainer, world, made, starts, tmp_path):
    script, *more = TRAINERS[trainer]
    output = run(script, tmp_path, *FOLDERS, *options(world, made), "--steps", 2, "--init", starts[world], *more)
    assert "before training" in output
    found = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    if world == "aerial":
        assert found["not measured"] == "mIoU: there are no validation masks"
        assert 0 < found["entropy"] < 1
        assert 0 <= found["labels as before, %"] <= 100
        assert "no validation masks" in output
        assert "not measured" in page
    else:
        assert 0 <= found["mIoU"] <= 100
        assert "not measured" not in found
    assert ("verdict" in found) == (trainer == "recommended")
    classes = {"fundus": 3, "aerial": 4, "streets": 4}[world]
    for folder in tmp_path.glob("pseudo-labels*"):
        store = PseudoLabelStore(folder, classes)
        stored = store.round(store.rounds()[-1])
        size = {"fundus": (48, 48), "aerial": (64, 64), "streets": (32, 64)}[world]
        assert tuple(stored.labels(0).shape) == size  # of the whole image, whatever the tiles and crops
    if (tmp_path / "pseudo-labels").exists():
        first = json.loads((tmp_path / "rounds" / "round-0001.json").read_text(encoding="utf-8"))
        assert ("precision" in first) == (world == "aerial")  # for which the target's truth was given


def test_as_people_do_without_any_mask_of_the_target(made, starts, tmp_path):
    words = [word for word in options("aerial", made) if word != "--target-masks" and "target/masks" not in str(word)]
    words += ["--rounds", 2, "--steps", 1, "--init", starts["aerial"]]
    output = run_as_people_do("cbst.py", tmp_path, *FOLDERS, *words)
    assert "no target masks, so no precision" in output
    assert "labels as before" in output.split("round 2:")[-1]
    steps = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert any("by round" in name for line in steps for name in line)


def test_images_of_many_sizes_even_one_target_image(made, starts, tmp_path):
    root = made / "streets"
    one = tmp_path / "one"
    one.mkdir()
    with Image.open(next((root / "night" / "train").rglob("*.jpg"))) as image:
        image.resize((51, 37)).save(one / "only one ü.JPG")
    words = options("streets", made)
    words[words.index("--target-images") + 1] = one
    run("cbst.py", tmp_path / "out", *FOLDERS, *words, "--rounds", 1, "--steps", 1, "--init", starts["streets"])
    assert result(tmp_path / "out")["mIoU"] >= 0
    sizes = tmp_path / "sizes"
    for number, size in enumerate([(51, 37), (64, 32), (33, 70), (16, 20), (64, 32)]):
        sizes.mkdir(exist_ok=True)
        Image.new("RGB", size, (number, 90, 30)).save(sizes / f"{number}.png")
    words[words.index("--target-images") + 1] = sizes
    for script in ("dtst.py", "mean_teacher.py", "iast.py", "sac.py"):
        out = tmp_path / script
        run(script, out, *FOLDERS, *words, "--steps", 2, "--init", starts["streets"])
        assert result(out)["mIoU"] >= 0
    with pytest.raises(AssertionError, match="--per batch needs target images of one size, got 4 sizes: use --resize"):
        run("iast.py", tmp_path / "pairs", *FOLDERS, *words, "--per", "batch", "--init", starts["streets"])
    with pytest.raises(AssertionError, match="--spatial-prior needs target images of one size, got 4 sizes: use --res"):
        run("cbst.py", tmp_path / "prior", *FOLDERS, *words, "--spatial-prior", "--init", starts["streets"])
    resized = [*words, "--resize", 32, 48, "--per", "batch", "--rounds", 1, "--steps", 1]
    run("iast.py", tmp_path / "resized", *FOLDERS, *resized, "--init", starts["streets"])


def test_what_is_missing_or_wrong_is_said(made, starts, tmp_path):
    def error(*changes, without=()):
        words = options("streets", made)
        for name in without:
            del words[words.index(name) : words.index(name) + 2]
        with pytest.raises(AssertionError) as caught:
            run("cbst.py", tmp_path / "out", *FOLDERS, *words, *changes)
        assert "Traceback" not in str(caught.value)
        return str(caught.value)

    assert "--classes, --source-masks missing" in error(without=["--classes", "--source-masks"])
    assert "--val-images and --val-masks go together" in error(without=["--val-masks"])
    assert f"{tmp_path / 'none.json'}" in error("--classes", tmp_path / "none.json")
    assert "expected a folder" in error("--target-images", tmp_path / "nowhere")
    assert "images have no mask" in error("--mask-suffix", "_truth")
    assert "expected 4 channels, got 3" in error("--channels", 4)
    few = tmp_path / "few.json"
    few.write_text(json.dumps({"0": "road", "1": "sky", "2": "car"}))
    assert "_mask.png" in error("--classes", few)


def test_train_ids_where_label_ids_are_expected_are_said_before_training(tmp_path):
    """They would pass for other classes: sidewalk as sky."""
    ids = trees.gta5(tmp_path / "gta5", 4)
    for name in ids:
        Image.new("L", trees.SIZE[::-1], 8).save(tmp_path / "gta5" / "labels" / f"{name}.png")
        with Image.open(tmp_path / "gta5" / "labels" / f"{name}.png") as mask:
            mask.putpixel((0, 0), 1)
            mask.save(tmp_path / "gta5" / "labels" / f"{name}.png")
    for split in ("train", "val"):
        trees.bdd100k(tmp_path / "bdd", split)
    words = ["--data", "bdd100k", "--network", "small-unet", "--smoke", "--root", tmp_path / "bdd", "--steps", 1]
    with pytest.raises(AssertionError, match=r"--data bdd100k, source masks: .*train ids") as caught:
        run("source_only.py", tmp_path / "out", *words, "--source-root", tmp_path / "gta5")
    assert "Traceback" not in str(caught.value)
    ids = trees.gta5(tmp_path / "good", 4)
    run("mean_teacher.py", tmp_path / "out", *words, "--source-root", tmp_path / "good", "--batch", 2)
    assert 0 <= result(tmp_path / "out")["mIoU"] <= 100
    trees.cityscapes(tmp_path / "cityscapes", "train")
    output = run("cbst.py", tmp_path / "cs", *words, "--source-root", tmp_path / "cityscapes", "--rounds", 1)
    assert "4 source" in output
