"""Every kind of damage is found, and the file named."""

import json
import os

import pytest
import torch

from selftrain_seg.store import _files
from tests.store.cases import NAMES, THRESHOLDS, joined, open_store, pseudo, tree, write_all


@pytest.fixture
def written(tmp_path):
    stored = write_all(tmp_path, keep=("confidence", "soft", "pixel_weight", "predicted"))
    return tmp_path, stored


def flip(path, place=None):
    data = bytearray(path.read_bytes())
    place = len(data) // 2 if place is None else place
    data[place] ^= 1
    path.write_bytes(bytes(data))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def grow(path):
    path.write_bytes(path.read_bytes() + b"\0")


def empty(path):
    path.write_bytes(b"")


def delete(path):
    path.unlink()


def mend(root):
    store = open_store(root, keep=("confidence", "soft", "pixel_weight", "predicted"))
    with store.write(0, NAMES, thresholds=THRESHOLDS, portion=0.2) as writer:
        missing = writer.missing()
        if missing:
            assert store.rounds() == []  # complete no longer, until it is mended
            writer.add(missing, joined(missing))
        writer.finish()
    return missing


@pytest.mark.parametrize("damage", [flip, truncate, grow, empty, delete])
@pytest.mark.parametrize("kind", ["labels", "confidence", "soft", "pixel_weight", "predicted"])
def test_files_of_an_image(written, kind, damage):
    root, stored = written
    before, name = tree(root), NAMES[7]
    file = f"round-0000/{kind}/{name}.png"
    damage(root / file)
    assert open_store(root).verify(0) == [file]
    error = FileNotFoundError if damage is delete else OSError
    with pytest.raises(error, match=f"{kind}/{name}.png") as caught:
        stored.read(name)
    if damage is not delete:
        assert "damaged file, its checksum is not the manifest's" in str(caught.value)
    with pytest.raises(error, match=f"{kind}/{name}.png"):
        stored.dataset(kind)[7]
    assert torch.equal(stored.read(NAMES[6]).labels, pseudo(NAMES[6]).labels[0])  # the others are read
    assert mend(root) == [name]
    assert tree(root) == before


def test_every_byte_of_a_file_counts(tmp_path):
    write_all(tmp_path, names=["a"], keep=())
    path = tmp_path / "round-0000/labels/a.png"
    for place in range(len(path.read_bytes())):
        flip(path, place)
        assert open_store(tmp_path).verify(0) == ["round-0000/labels/a.png"]
        flip(path, place)
    assert open_store(tmp_path).verify(0) == []


def test_swapped_files(written):
    root, stored = written
    a, b = (root / f"round-0000/labels/{name}.png" for name in NAMES[:2])
    os.replace(a, root / "aside")
    os.replace(b, a)
    os.replace(root / "aside", b)
    assert open_store(root).verify(0) == [f"round-0000/labels/{name}.png" for name in NAMES[:2]]
    with pytest.raises(OSError, match=f"labels/{NAMES[0]}.png: damaged"):
        stored.read(0)


def test_all_damage_is_named_at_once(written, capfd):
    root, _ = written
    folder = root / "round-0000"
    expected = []
    for kind, name in (("labels", NAMES[0]), ("soft", NAMES[0]), ("pixel_weight", NAMES[5]), ("predicted", NAMES[11])):
        flip(folder / f"{kind}/{name}.png")
        expected.append(f"round-0000/{kind}/{name}.png")
    (folder / f"confidence/{NAMES[3]}.png").unlink()
    expected.append(f"round-0000/confidence/{NAMES[3]}.png")
    flip(folder / "settings.json")
    expected.append("round-0000/settings.json")
    assert capfd.readouterr().err == ""
    assert sorted(open_store(root).verify(0, progress=True)) == sorted(expected)
    bar = capfd.readouterr().err
    assert "verify round 0" in bar
    assert "12/12" in bar


@pytest.mark.parametrize("damage", [flip, truncate, empty])
def test_manifest(written, damage):
    root, _ = written
    before = tree(root)
    damage(root / "round-0000/manifest.json")
    store = open_store(root)
    assert store.verify(0) == ["round-0000/manifest.json"]
    for call in (store.rounds, store.latest, lambda: store.round(0)):
        with pytest.raises(OSError, match=r"round-0000/manifest.json: damaged file"):
            call()
    assert mend(root) == []
    assert tree(root) == before


def test_every_byte_of_the_manifest_counts(tmp_path):
    write_all(tmp_path, names=["a"], keep=())
    path = tmp_path / "round-0000/manifest.json"
    data = path.read_bytes()
    for place in range(0, len(data), 7):
        flip(path, place)
        assert open_store(tmp_path).verify(0) == ["round-0000/manifest.json"], place
        flip(path, place)


def test_list_of_images(written):
    root, _ = written
    before, path = tree(root), root / "round-0000/images.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4] + lines[5:]))
    store = open_store(root)
    assert store.verify(0) == ["round-0000/images.jsonl"]
    with pytest.raises(OSError, match=r"images.jsonl: damaged file, its checksum is not the manifest's"):
        store.round(0)
    assert mend(root) == [NAMES[4]]
    assert tree(root) == before
    path.unlink()
    assert store.verify(0) == ["round-0000/images.jsonl"]
    with pytest.raises(FileNotFoundError, match=r"images.jsonl"):
        store.latest()
    assert mend(root) == NAMES
    assert tree(root) == before


def test_manifest_of_another_round(written):
    root, _ = written
    write_all(root, 1)
    for name in ("manifest.json", "images.jsonl", "settings.json"):
        (root / "round-0001" / name).write_bytes((root / "round-0000" / name).read_bytes())
    store = open_store(root)
    with pytest.raises(OSError, match=r"round-0001/manifest.json: damaged file, it belongs to round 0"):
        store.round(1)
    assert "round-0001/manifest.json" in store.verify(1)


@pytest.mark.parametrize("damage", [flip, delete])
def test_settings(written, damage):
    root, _ = written
    before = tree(root)
    damage(root / "round-0000/settings.json")
    store = open_store(root, keep=("confidence", "soft", "pixel_weight", "predicted"))
    assert store.verify(0) == ["round-0000/settings.json"]
    assert store.latest().read(0).labels.shape == (9, 13)  # is not needed for reading
    with pytest.raises(OSError, match=r"settings.json: missing or damaged file; overwrite=True restarts the round"):
        store.write(0, NAMES, thresholds=THRESHOLDS, portion=0.3)
    assert mend(root) == []  # the same settings again: the manifest knows them
    assert tree(root) == before


def test_settings_of_an_interrupted_round(tmp_path):
    store = open_store(tmp_path)
    with store.write(0, NAMES) as writer:
        writer.add(NAMES[:1], pseudo(NAMES[0]))
    flip(tmp_path / "round-0000/settings.json")
    for call in (lambda: store.write(0, NAMES), lambda: store.settings(0)):
        with pytest.raises(OSError, match=r"settings.json"):
            call()
    assert len(store.write(0, NAMES, overwrite=True).missing()) == 12


def test_not_complete_unless_the_manifest_says_so(written):
    root, _ = written
    path = root / "round-0000/manifest.json"
    content = json.loads(path.read_text())
    content.pop("checksum")
    path.write_bytes(_files.to_json({**content, "complete": False}))
    store = open_store(root)
    assert store.rounds() == []
    assert store.latest() is None
    with pytest.raises(ValueError, match="got 0, whose manifest says it is not complete"):
        store.round(0)


def test_a_later_format_is_refused(written):
    root, _ = written
    path = root / "round-0000/manifest.json"
    content = json.loads(path.read_text())
    content.pop("checksum")
    path.write_bytes(_files.to_json({**content, "format": 3}))
    with pytest.raises(OSError, match=r"manifest.json: format 3, this version reads 2"):
        open_store(root).round(0)
