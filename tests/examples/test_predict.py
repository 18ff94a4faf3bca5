"""predict.py and evaluate.py on folders, by the commands that people type; killed, resumed, and told what is wrong."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from selftrain_seg.datasets import LabelMap, SegmentationFolder
from selftrain_seg.teachers import predict_in_parts
from tests import worlds
from tests.examples.trainers import EXAMPLES, environment, run, run_and_kill, run_as_people_do

sys.path.insert(0, str(EXAMPLES))

from _networks.small_unet import SmallUNet

IDS = {0: "ground", 2: "water", 7: "roof", 40: "tree"}


def fails(script, out, *options):
    """What a command says that ends with an error."""
    with pytest.raises(AssertionError) as caught:
        run(script, out, *options)
    said = str(caught.value).strip()
    assert "Traceback" not in said, said
    return said


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return worlds.write(tmp_path_factory.mktemp("worlds"), size=32, count=12)


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """The folder of a run, as a trainer leaves it: 4 channels, ids with gaps."""
    out, aerial = tmp_path_factory.mktemp("trained") / "run", world / "aerial"
    folders = ["--source-images", aerial / "source" / "images", "--source-masks", aerial / "source" / "masks"]
    folders += ["--target-images", aerial / "target" / "images", "--classes", aerial / "classes.json"]
    network = ["--network", "small-unet", "--channels", 4]
    run("source_only.py", out, "--data", "folders", "--smoke", "--steps", 20, *folders, *network)
    return out


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights that nothing is known of: a network of three channels and four classes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "unet.pth"
    torch.save(SmallUNet(4).state_dict(), path)
    return path


def network(run_folder):
    net = SmallUNet(4, channels=4)
    net.load_state_dict(torch.load(run_folder / "model.pt", weights_only=True))
    return net.eval().to(memory_format=torch.channels_last)


@torch.no_grad()
def direct(net, images):
    return {
        name: net((image.float() / 255)[None].contiguous(memory_format=torch.channels_last))[0]
        for image, name in (images[place] for place in range(len(images)))
    }


def pixels(path):
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image).astype(np.int64))


def test_a_run_and_a_folder(world, trained, tmp_path):
    images = world / "aerial" / "target" / "images"
    said = run_as_people_do("predict.py", tmp_path / "out", trained, images, "--confidence", "--overlay")
    assert "12 images: 12 predicted, 0 already complete" in said
    logits = direct(network(trained), SegmentationFolder(images, channels=4))
    classes = LabelMap.load(world / "aerial" / "classes.json")
    for name, z in logits.items():
        with Image.open(tmp_path / "out" / "masks" / f"{name}.png") as mask:
            assert mask.mode == "P"
            assert mask.getpalette()[:12] == [value for colour in classes.palette for value in colour]
        assert torch.equal(pixels(tmp_path / "out" / "masks" / f"{name}.png"), z.argmax(0))
        sure = pixels(tmp_path / "out" / "confidence" / f"{name}.png")
        assert (sure - (255 * z.softmax(0).amax(0)).round()).abs().max() <= 1
        with Image.open(tmp_path / "out" / "overlays" / f"{name}.jpg") as picture:
            assert picture.size == (z.shape[2], z.shape[1])
    # Masks are labels again, for the folder's own classes.json.
    again = LabelMap.load(tmp_path / "out" / "classes.json")
    assert again.classes == classes.classes
    read = SegmentationFolder(images, tmp_path / "out" / "masks", label_map=again, channels=4)
    for place, name in enumerate(read.names):
        assert torch.equal(read.masks()[place], logits[name].argmax(0))


def test_masks_with_the_ids_of_the_data(world, trained, tmp_path):
    images = world / "aerial" / "target" / "images"
    run("predict.py", tmp_path / "out", trained / "model.pt", images, "--ids")
    logits = direct(network(trained), SegmentationFolder(images, channels=4))
    ids = torch.tensor(list(IDS))
    for name, z in logits.items():
        assert torch.equal(pixels(tmp_path / "out" / "masks" / f"{name}.png"), ids[z.argmax(0)])
    classes = LabelMap.load(world / "aerial" / "classes.json")
    assert LabelMap.load(tmp_path / "out" / "classes.json") == classes
    read = SegmentationFolder(images, tmp_path / "out" / "masks", label_map=classes, channels=4)
    assert torch.equal(read[0][1], logits[read.names[0]].argmax(0))


def test_tiles_views_and_batches(world, trained, tmp_path):
    images = world / "aerial" / "target" / "images"
    tiles = ["--tile", 48, 32, "--overlap", 0.5]
    run("predict.py", tmp_path / "tiles", trained, images, *tiles, "--batch", 5, "--workers", 1)
    net, folder = network(trained), SegmentationFolder(images, channels=4)
    for place, name in enumerate(folder.names):
        image = (folder[place][0].float() / 255)[None].contiguous(memory_format=torch.channels_last)
        z = predict_in_parts(net, image, window=(48, 32), stride=(24, 16), taper=True)[0]
        same = pixels(tmp_path / "tiles" / "masks" / f"{name}.png") == z.argmax(0)
        assert same.float().mean() > 0.999, name  # a convolution may round otherwise in a larger batch
    run("predict.py", tmp_path / "views", trained, images, "--scales", 0.75, 1.25, "--flip", "--amp", "bf16")
    run("predict.py", tmp_path / "small", trained, images, "--resize", 32, 48)
    for other in ("views", "small"):
        masks = {name: pixels(tmp_path / other / "masks" / f"{name}.png") for name in folder.names}
        assert {mask.shape for mask in masks.values()} == {(64, 64)}
        plain = {name: pixels(tmp_path / "tiles" / "masks" / f"{name}.png") for name in folder.names}
        assert any(not torch.equal(masks[name], plain[name]) for name in plain)


def test_images_of_all_kinds(weights, tmp_path):
    """Of any size, nested, with dots and other letters in their names, grey, of 16 bits, turned by the camera."""
    rng, folder = np.random.default_rng(0), tmp_path / "images"
    (folder / "süd west").mkdir(parents=True)
    shapes = {"a.b.png": (33, 70, 3), "süd west/ü 1.JPG": (17, 5, 3), "grey.bmp": (40, 24), "one.tif": (1, 1, 3)}
    for name, shape in shapes.items():
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / name)
    Image.fromarray(rng.integers(0, 65536, (20, 30)).astype(np.uint16)).save(folder / "deep.png")
    turned = Image.Exif()
    turned[274] = 6
    Image.fromarray(rng.integers(0, 256, (16, 48, 3), dtype=np.uint8)).save(folder / "turned.jpg", exif=turned)
    (folder / "notes.txt").write_text("not an image")
    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps(["a", "b", "c", "d"]))
    options = ["--network", "small-unet", "--classes", classes, "--confidence", "--overlay", "--batch", 3]
    run("predict.py", tmp_path / "out", weights, folder, *options)
    expected = {"a.b": (70, 33), "süd west/ü 1": (5, 17), "grey": (24, 40), "one": (1, 1), "deep": (30, 20)}
    for name, size in {**expected, "turned": (16, 48)}.items():
        for kind, ending in (("masks", "png"), ("confidence", "png"), ("overlays", "jpg")):
            with Image.open(tmp_path / "out" / kind / f"{name}.{ending}") as picture:
                assert picture.size == size, name
    assert "6 images: 0 predicted, 6 already complete" in run("predict.py", tmp_path / "out", weights, folder, *options)


def files(out):
    return {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_killed_and_resumed(world, trained, tmp_path):
    images = world / "aerial" / "target" / "images"
    options = [trained, images, "--confidence", "--scales", 0.5, 1.0, 1.5, "--flip"]
    run("predict.py", tmp_path / "whole", *options)
    out = tmp_path / "killed"
    run_and_kill("predict.py", out, *options, wait_for="masks/*.png", files=3, seed=1, within=0.05)
    there = {path: path.stat().st_mtime_ns for path in (out / "masks").glob("*.png")}
    assert 3 <= len(there) < 12, "killed too late to show anything"
    damaged = sorted(there)[0]
    damaged.write_bytes(damaged.read_bytes()[:-20])
    (out / "masks" / "tile_99.png.1.tmp").write_bytes(b"half")
    said = run("predict.py", out, *options)
    assert "12 images: " in said
    assert not list(out.rglob("*.tmp"))
    assert files(out) == files(tmp_path / "whole")
    kept = [path for path, moment in there.items() if path.stat().st_mtime_ns == moment]
    assert sorted(kept) == sorted(there)[1:]


def test_a_folder_made_otherwise_is_refused(world, trained, tmp_path):
    images = world / "aerial" / "target" / "images"
    run("predict.py", tmp_path / "out", trained, images)
    assert "was made with flip False, now True: choose another --out" in fails(
        "predict.py", tmp_path / "out", trained, images, "--flip"
    )
    other = shutil.copytree(trained, tmp_path / "other")
    state = torch.load(other / "model.pt", weights_only=True)
    other_state = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    torch.save(other_state, other / "model.pt")
    assert "was made with weights " in fails("predict.py", tmp_path / "out", other, images)
    assert "its masks were not written by predict.py" in fails(
        "predict.py", world / "aerial" / "target", trained, images
    )
    assert "lies in the folder of images" in fails("predict.py", images / "out", trained, images)
    said = run("predict.py", tmp_path / "out", trained, images, "--confidence")  # more may be asked for
    assert "12 images: 12 predicted" in said


def copied(world, folder, count=3):
    """A folder of the first images of the aerial target."""
    folder.mkdir()
    for number in range(count):
        shutil.copy2(world / "aerial" / "target" / "images" / f"tile_{number}.tif", folder)
    return folder


def test_another_folder_of_images_is_refused(world, trained, tmp_path):
    """Its images may have the names of those that the masks were made of."""
    one, other = copied(world, tmp_path / "one"), copied(world, tmp_path / "other")
    out = tmp_path / "out"
    run("predict.py", out, trained, one)
    before = files(out)
    said = fails("predict.py", out, trained, other)
    assert said == f"{out} holds masks of the images in {one.resolve()}, not {other.resolve()}: choose another --out"
    assert files(out) == before
    (tmp_path / "link").symlink_to(one)
    assert "3 images: 0 predicted, 3 already complete" in run("predict.py", out, trained, tmp_path / "link")
    (out / "predict.json").write_text("{")
    assert f"{out / 'predict.json'}: damaged" in fails("predict.py", out, trained, one)


def test_an_image_that_was_written_anew_is_predicted_again(world, trained, tmp_path):
    """With all that was made of it, asked for now or not; others stay as they are."""
    folder, out = copied(world, tmp_path / "images"), tmp_path / "out"
    run("predict.py", out, trained, folder, "--confidence")
    shutil.copy(world / "aerial" / "target" / "images" / "tile_7.tif", folder / "tile_1.tif")
    times = {number: (out / "masks" / f"tile_{number}.png").stat().st_mtime_ns for number in (0, 2)}
    # A part of the images, without the one that changed, forgets nothing of the others.
    said = run("predict.py", out, trained, folder, "--names", "tile_0*")
    assert "1 image: 0 predicted, 1 already complete" in said
    assert "3 images: 1 predicted, 2 already complete" in run("predict.py", out, trained, folder)
    (z,) = [
        z for name, z in direct(network(trained), SegmentationFolder(folder, channels=4)).items() if name[-1] == "1"
    ]
    assert torch.equal(pixels(out / "masks" / "tile_1.png"), z.argmax(0))
    assert not (out / "confidence" / "tile_1.png").exists()
    assert times == {number: (out / "masks" / f"tile_{number}.png").stat().st_mtime_ns for number in times}
    assert "3 images: 0 predicted, 3 already complete" in run("predict.py", out, trained, folder)


def test_masks_by_the_suffix_of_the_run_are_no_images(world, trained, tmp_path):
    folder, suffixed = copied(world, tmp_path / "images"), shutil.copytree(trained, tmp_path / "run")
    shutil.copy(folder / "tile_0.tif", folder / "tile_0_mask.tif")
    arguments = json.loads((suffixed / "arguments.json").read_text())
    (suffixed / "arguments.json").write_text(json.dumps({**arguments, "mask_suffix": "_mask.tif"}))
    assert "3 images: 3 predicted" in run("predict.py", tmp_path / "out", suffixed, folder)
    assert not (tmp_path / "out" / "masks" / "tile_0_mask.png").exists()
    said = fails("predict.py", tmp_path / "none", suffixed, folder, "--names", "*_mask")
    assert said == f"{folder}: by --mask-suffix _mask.tif, all files are masks"
    said = run("predict.py", tmp_path / "all", suffixed, folder, "--mask-suffix", "")
    assert "4 images: 4 predicted" in said


@pytest.mark.parametrize("script", ["predict.py", "evaluate.py"])
def test_an_out_that_cannot_be_written_to(script, world, trained, tmp_path):
    target = world / "aerial" / "target"
    words = [target / "images"] if script == "predict.py" else ["--images", target / "images", "--masks"]
    words += [] if script == "predict.py" else [target / "masks"]
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (file, file / "below"):
        assert fails(script, out, trained, *words) == f"--out {out}: expected a folder, {file} is a file"
    assert file.read_text() == "mine"
    if sys.platform == "linux":  # where nobody may write, root neither
        said = fails(script, "/proc/out", trained, *words)
        assert said.splitlines()[-1].startswith("--out /proc/out: ")


def test_what_is_not_said_and_nowhere_written(world, weights, trained, tmp_path):
    images, out = world / "fundus" / "target" / "images", tmp_path / "out"
    assert "names the network: expected --network, one of small-unet" in fails("predict.py", out, weights, images)
    said = fails("predict.py", out, weights, images, "--network", "small-unet")
    assert "names the classes: expected --classes" in said
    said = fails("predict.py", out, weights, images, "--network", "small-unet", "--classes", "vok")
    assert "--classes vok: expected a file, or one of cityscapes" in said
    said = fails("predict.py", out, weights, images, "--network", "small-unet", "--classes", "voc")
    assert "head.0.weight is (16, 24, 1, 1), expected (84, 24, 1, 1)" in said
    assert "no such run or file of weights" in fails("predict.py", out, tmp_path / "nothing", images)
    assert "expected images" in fails("predict.py", out, trained, trained / "checkpoints")
    own = ["--network", "small-unet", "--classes", world / "fundus" / "classes.csv", "--ids"]
    assert "--ids: background, vessel, disc have no id, only colours" in fails("predict.py", out, weights, images, *own)
    assert "--overlap 1: expected a share" in fails("predict.py", out, trained, images, "--overlap", 1)
    assert not out.exists()


def test_an_image_that_cannot_be_read(world, trained, tmp_path):
    """All others are predicted; the command says which, and fails."""
    folder = shutil.copytree(world / "aerial" / "target" / "images", tmp_path / "images")
    whole = (folder / "tile_3.tif").read_bytes()
    (folder / "tile_3.tif").write_bytes(whole[: len(whole) // 2])
    said = fails("predict.py", tmp_path / "out", trained, folder, "--batch", 4)
    assert "1 image could not be read:" in said
    assert "tile_3.tif" in said.splitlines()[-1]
    assert len(list((tmp_path / "out" / "masks").glob("*.png"))) == 11
    (folder / "tile_3.tif").write_bytes(whole)
    assert "1 predicted, 11 already complete" in run("predict.py", tmp_path / "out", trained, folder)


WITHOUT = """
import runpy, sys
for name in ("matplotlib", "tensorboard", "torchmetrics", "lightning", "accelerate", "segmentation_models_pytorch"):
    sys.modules[name] = None
sys.modules["torch.utils.tensorboard"] = None
sys.argv = sys.argv[1:]
sys.path.insert(0, {examples!r})
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_without_the_training_stack(world, trained, tmp_path):
    code = WITHOUT.format(examples=str(EXAMPLES))
    words = [sys.executable, "-c", code, EXAMPLES / "predict.py", trained, world / "aerial" / "target" / "images"]
    words += ["--out", tmp_path / "out", "--overlay", "--confidence"]
    done = subprocess.run(list(map(str, words)), env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "12 predicted" in done.stdout


# evaluate.py


def evaluated(out):
    return json.loads((out / "evaluation.json").read_text(encoding="utf-8"))


def by_loops(pairs, classes):
    """(IoU, Dice, recall, precision) in percent of each class, or None, from pixels one by one."""
    counts = np.zeros((classes, classes + 1), int)
    for predicted, true in pairs:
        for made, right in zip(predicted.ravel().tolist(), true.ravel().tolist(), strict=True):
            if right != 255:
                counts[right, classes if made == 255 else made] += 1
    rows = []
    for c in range(classes):
        hit, true, predicted = counts[c, c], counts[c].sum(), counts[:, c].sum()
        values = ((hit, true + predicted - hit), (2 * hit, true + predicted), (hit, true), (hit, predicted))
        rows.append([100 * above / below if below else None for above, below in values])
    return counts, rows


def write_masks(folder, masks):
    folder.mkdir(parents=True)
    for name, mask in masks.items():
        Image.fromarray(mask.astype(np.uint8)).save(folder / f"{name}.png")


@pytest.fixture
def pair(tmp_path):
    """Masks of five classes, one of which is nowhere; some pixels of both have none."""
    rng = np.random.default_rng(0)
    shapes = {"a": (5, 7), "b c": (8, 3), "d": (6, 6)}
    made = {name: rng.choice([0, 1, 2, 4, 255], shape) for name, shape in shapes.items()}
    other = {name: rng.choice([0, 1, 2, 255], shape) for name, shape in shapes.items()}
    true = {name: np.where(rng.random(shape) < 0.5, made[name], other[name]) for name, shape in shapes.items()}
    write_masks(tmp_path / "made", made)
    write_masks(tmp_path / "true", true)
    classes = {**{str(number): name for number, name in enumerate("vwxyz")}, "255": None}
    (tmp_path / "classes.json").write_text(json.dumps(classes))
    return tmp_path, made, true


def test_numbers_by_loops(pair):
    folder, made, true = pair
    options = ["--masks", folder / "true", "--classes", folder / "classes.json"]
    said = run_as_people_do("evaluate.py", folder / "out", folder / "made", *options)
    found = evaluated(folder / "out")
    counts, rows = by_loops([(made[name], true[name]) for name in made], 5)
    assert counts[:, 5].sum() > 0
    assert found["confusion"] == counts.tolist()
    assert found["images"] == 3
    assert found["pixels"] + found["ignored"] == 5 * 7 + 8 * 3 + 6 * 6
    for name, row in zip("vwxyz", rows, strict=True):
        values = [found["classes"][name][column] for column in ("IoU", "Dice", "recall", "precision")]
        assert values == pytest.approx(row, rel=1e-9) if None not in row else values == pytest.approx(row)
    assert rows[3] == [None] * 4  # neither there nor predicted: in no mean
    assert found["mIoU"] == pytest.approx(np.mean([row[0] for row in rows if row[0] is not None]))
    assert found["mDice"] == pytest.approx(np.mean([row[1] for row in rows if row[1] is not None]))
    assert found["accuracy"] == pytest.approx(100 * counts[:, :5].trace() / counts.sum())
    assert f"mIoU {found['mIoU']:.1f}, mDice {found['mDice']:.1f}" in said
    with Image.open(folder / "out" / "confusion.png") as picture:
        assert min(picture.size) > 200
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 20


def test_masks_that_do_not_go_together(pair):
    folder = pair[0]
    options = ["--masks", folder / "true", "--classes", folder / "classes.json"]
    (folder / "made" / "d.png").unlink()
    said = fails("evaluate.py", folder / "out", folder / "made", *options)
    assert "1 true mask without a prediction: " in said
    assert "d.png; --partial leaves them out" in said
    run("evaluate.py", folder / "out", folder / "made", *options, "--partial")
    assert evaluated(folder / "out")["images"] == 2
    Image.fromarray(np.zeros((6, 5), np.uint8)).save(folder / "made" / "d.png")
    said = fails("evaluate.py", folder / "out", folder / "made", *options)
    assert "d: the prediction is (6, 5), the mask in " in said
    assert "(6, 6)" in said
    Image.fromarray(np.full((6, 6), 77, np.uint8)).save(folder / "made" / "d.png")
    said = fails("evaluate.py", folder / "out", folder / "made", *options)
    assert said.startswith(f"{folder}/made/d.png: expected ids of LabelMap(5 classes, 6 ids from 0 to 255), got 77 (36")
    Image.fromarray(np.arange(108, dtype=np.uint8).reshape(6, 6, 3)).save(folder / "made" / "d.png")
    assert fails("evaluate.py", folder / "out", folder / "made", *options) == (
        f"{folder}/made/d.png: expected one channel of class ids, got 3 channels of torch.uint8, and the label map has "
        "no colours; give it some (columns r, g, b in a .csv file for --classes), or save the masks with one channel"
    )
    (folder / "made" / "d.png").unlink()
    (folder / "true" / "a.png").unlink()
    said = fails("evaluate.py", folder / "out", folder / "made", *options)
    assert said == (
        f"{folder}/made, {folder}/true: 1 of 2 images have no mask: a; expected {folder}/true/a.png (or another "
        "suffix); there are b c.png, d.png. Set --mask-suffix if masks have other names, --names to select images, or "
        "--partial to leave out images without a mask"
    )
    assert "--classes" in fails("evaluate.py", folder / "out", folder / "made", "--masks", folder / "true")
    run("evaluate.py", folder / "out", folder / "true", *options)  # a mask is as good as itself
    assert evaluated(folder / "out")["mIoU"] == 100
    assert "no such folder, run or file" in fails("evaluate.py", folder / "out", folder / "nowhere", *options)


def test_images_without_masks_for_a_model(world, trained, tmp_path):
    """What is said are options, as people type them."""
    target, some = world / "aerial" / "target", tmp_path / "masks"
    some.mkdir()
    masks = sorted((target / "masks").iterdir())
    for path in masks[:6]:
        shutil.copy(path, some)
    words = [trained, "--images", target / "images", "--masks", some]
    said = fails("evaluate.py", tmp_path / "out", *words)
    names, suffix = [path.stem for path in masks], masks[0].suffix
    assert said == (
        f"{target}/images, {some}: 6 of 12 images have no mask: {', '.join(names[6:11])}, ...; "
        f"expected {some}/{names[6]}.png (or another suffix); "
        f"there are {', '.join(name + suffix for name in names[:5])}, .... Set --mask-suffix if masks have other "
        "names, --names to select images, or --partial to leave out images without a mask"
    )
    assert fails("evaluate.py", tmp_path / "out", *words, "--names", "x*") == (
        f"{target}/images, {some}: --names: no image matches 'x*'; images are named {', '.join(names[:5])}, ..."
    )
    Image.fromarray(np.arange(108, dtype=np.uint8).reshape(6, 6, 3)).save(some / masks[0].name)
    assert fails("evaluate.py", tmp_path / "out", *words, "--partial").endswith("or save the masks with one channel")
    shutil.copy(masks[0], some)
    assert "6 images, " in run("evaluate.py", tmp_path / "out", *words, "--partial")
    assert evaluated(tmp_path / "out")["images"] == 6


def without_out(folder, script, *words):
    """Run a command in a folder without --out."""
    words = [sys.executable, EXAMPLES / script, *words]
    done = subprocess.run(
        list(map(str, words)), cwd=folder, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_numbers_lie_with_what_they_are_of(pair, world, trained, tmp_path):
    """Their picture is not taken for a mask, whichever side it lies on."""
    folder, empty = pair[0], tmp_path / "empty"
    empty.mkdir()
    options = ["--masks", folder / "true", "--classes", folder / "classes.json"]
    without_out(empty, "evaluate.py", folder / "made", *options)
    first = evaluated(folder / "made" / "evaluation")
    assert (folder / "made" / "evaluation" / "confusion.png").is_file()
    run("evaluate.py", tmp_path / "again", folder / "made", *options)
    assert evaluated(tmp_path / "again") == first
    run("evaluate.py", tmp_path / "same", folder / "made", "--masks", folder / "made", *options[2:])
    assert evaluated(tmp_path / "same")["images"] == 3
    target, own = world / "aerial" / "target", shutil.copytree(trained, tmp_path / "run")
    without_out(empty, "evaluate.py", own / "model.pt", "--masks", target / "masks", "--images", target / "images")
    assert evaluated(own / "evaluation")["images"] == 12
    assert not list(empty.iterdir())


def test_help_says_what_options_do():
    words = [sys.executable, str(EXAMPLES / "evaluate.py"), "--help"]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300)
    said = " ".join(done.stdout.split())
    assert "--partial leave out predictions without a true mask, and true masks without a prediction" in said
    assert "end of a mask's name after the name of its image, such as _mask; such files are not read as images" in said


def test_a_model_has_the_numbers_of_its_masks(world, trained, tmp_path):
    target = world / "aerial" / "target"
    run("predict.py", tmp_path / "predicted", trained, target / "images")
    own = ["--masks", target / "masks", "--classes", world / "aerial" / "classes.json"]
    run("evaluate.py", tmp_path / "one", tmp_path / "predicted", *own)
    run("evaluate.py", tmp_path / "two", trained, "--masks", target / "masks", "--images", target / "images")
    assert evaluated(tmp_path / "one") == evaluated(tmp_path / "two")
    assert list(evaluated(tmp_path / "one")["classes"]) == list(IDS.values())
    masks, images = ["--masks", target / "masks"], ["--images", target / "images"]
    assert "is a model: expected --images" in fails("evaluate.py", tmp_path, trained, *masks)
    run("evaluate.py", tmp_path / "small", trained, *masks, *images, "--resize", 32, 32)
    assert evaluated(tmp_path / "small")["pixels"] == evaluated(tmp_path / "one")["pixels"]  # the truth stays as it is


def test_masks_beside_images(world, tmp_path, weights):
    """Streets by night: nested folders, masks among the images."""
    night, classes = world / "streets" / "night" / "val", world / "streets" / "classes.json"
    model = [weights, "--network", "small-unet", "--classes", classes, "--mask-suffix", "_mask"]
    said = run("predict.py", tmp_path / "predicted", weights, night, *model[1:])
    assert "4 images: 4 predicted" in said
    run("evaluate.py", tmp_path / "one", tmp_path / "predicted", "--masks", night, *model[3:])
    run("evaluate.py", tmp_path / "two", *model, "--masks", night, "--images", night)
    assert evaluated(tmp_path / "one") == evaluated(tmp_path / "two")


def test_subsets_of_cityscapes_classes(tmp_path):
    rng = np.random.default_rng(1)
    ids = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    true = {name: rng.choice([*ids, 0, 3], (20, 30)) for name in "ab"}
    made = {name: np.where(rng.random((20, 30)) < 0.6, mask, rng.choice(ids, (20, 30))) for name, mask in true.items()}
    write_masks(tmp_path / "true", true)
    write_masks(tmp_path / "made", made)
    run("evaluate.py", tmp_path / "out", tmp_path / "made", "--masks", tmp_path / "true", "--classes", "cityscapes")
    found = evaluated(tmp_path / "out")
    iou = {name: row["IoU"] for name, row in found["classes"].items()}
    without = {16: {"terrain", "truck", "train"}, 13: {"terrain", "truck", "train", "wall", "fence", "pole"}}
    assert len(iou) == 19
    assert found["mIoU"] == pytest.approx(np.mean(list(iou.values())))
    for size, names in without.items():
        kept = [value for name, value in iou.items() if name not in names]
        assert len(kept) == size
        assert found[f"mIoU-{size}"] == pytest.approx(np.mean(kept))


def test_a_network_of_transformers(world, tmp_path):
    """By its folder alone; one without a head for these classes is not taken with random weights."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    settings = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 1, 2, 2]}
    config = transformers.SegformerConfig(**settings, decoder_hidden_size=16, num_labels=3)
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "segformer")
    images = world / "fundus" / "target" / "images"
    model = f"hf:{tmp_path / 'segformer'}"
    run("predict.py", tmp_path / "out", model, images, "--classes", world / "fundus" / "classes.csv")
    assert len(list((tmp_path / "out" / "masks").glob("*.png"))) == 12
    said = fails("predict.py", tmp_path / "voc", model, images, "--classes", "voc")
    assert "has no weights for decode_head.classifier.bias" in said


def test_probabilities_of_0_can_be_resized():
    from _prediction.network import logits_of

    def sure(images):
        return torch.stack([images[:, 0] + 200, images[:, 0]], dim=1)

    how = {
        "device": "cpu",
        "resize": [2, 3],
        "tile": None,
        "overlap": 0.25,
        "amp": "no",
        "scales": (1.0,),
        "flip": True,
    }
    logits = logits_of(sure, torch.rand(1, 3, 4, 6), SimpleNamespace(**how))
    assert logits.isfinite().all()
    assert not logits.argmax(dim=1).any()
