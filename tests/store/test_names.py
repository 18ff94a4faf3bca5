"""Names of images as file names: odd ones work, dangerous ones don't."""

import pytest
import torch

from tests.store.cases import open_store, pseudo, tree, write_all

ODD = [
    "frankfurt/frankfurt_000000_000294",
    "with space/and  two",
    "Zürich/東京 😀",
    "100%/50%25",
    "100%25/50%",
    "brackets [1] (2) {3}",
    "a.png",
    "a",
    "CASE'quote\"double",
    "back\\slash",
    "C:drive",
    "C%3Adrive",
    "C:/drive",
    "star*question?pipe|<>",
    "tab\tnewline\nline\u2028separator\x85",
    "~/home",
    "-rf",
    ".hidden/..almost",
    "...",
    "a/b/c/d/e/f",
    "nul\0byte",
    "x" * 251,
]


def test_odd_names(tmp_path):
    stored = write_all(tmp_path / "s", names=ODD)
    assert stored.names == tuple(ODD)
    for name in ODD:
        assert torch.equal(stored.read(name).labels, pseudo(name).labels[0]), name
    store = open_store(tmp_path / "s")
    assert store.verify(0) == []
    assert store.write(0, ODD, thresholds=stored.thresholds, portion=0.2).missing() == []
    assert (tmp_path / "s/round-0000/labels/frankfurt/frankfurt_000000_000294.png").exists()
    assert (tmp_path / "s/round-0000/labels/Zürich/東京 😀.png").exists()
    files = [path for path in tree(tmp_path / "s") if path.startswith("round-0000/labels/")]
    assert len(files) == len(ODD)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]  # nothing beside the store


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "..", ".", "a/./b", "/x", "/", "", "a//b", "a/", "//server/share", "./x"]
)
def test_paths_that_lead_elsewhere(tmp_path, name):
    with pytest.raises(ValueError, match="`names`: expected relative paths with no part empty"):
        open_store(tmp_path / "s").write(0, ["a", name])
    assert not (tmp_path / "s").exists()


def test_names_that_no_file_can_have(tmp_path):
    store = open_store(tmp_path / "s")
    with pytest.raises(ValueError, match="`names`: expected parts of at most 255 bytes, got 256 in 'xxx"):
        store.write(0, ["x" * 252])
    with pytest.raises(ValueError, match=r"`names`: expected parts of at most 255 bytes, got 256 in .ü"):
        store.write(0, ["ü" * 128 + "/a"])
    with pytest.raises(ValueError, match=r"`names`: expected Unicode text, got 'a\\ud800'"):
        store.write(0, ["a\ud800"])
    with pytest.raises(ValueError, match="`names`: expected different names, got 'b' twice"):
        store.write(0, ["a", "b", "b"])
    with pytest.raises(ValueError, match=r"`names`: expected no folder 'x.png' beside the image 'x', got both"):
        store.write(0, ["x.png/y", "x"])
    with pytest.raises(ValueError, match="`names`: expected at least one name, got none"):
        store.write(0, [])
    with pytest.raises(TypeError, match="`names`: expected several names, got one str"):
        store.write(0, "name")
    with pytest.raises(TypeError, match="`names`: expected str, got int"):
        store.write(0, ["a", 1])
    assert not (tmp_path / "s").exists()
