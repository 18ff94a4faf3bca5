"""Lists of images, such as those that semi-supervised methods publish, pick images of Cityscapes."""

import pytest

from selftrain_seg.datasets import Cityscapes, SyntheticStreets


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    streets = SyntheticStreets("target", "train", length=4, size=(16, 32))
    return streets.export(tmp_path_factory.mktemp("cityscapes"))


def test_a_published_list_takes_its_images(root, tmp_path):
    names = Cityscapes(root).names
    labelled, others = tmp_path / "8_labeled_0.txt", tmp_path / "8_unlabeled_0.txt"
    labelled.write_text(f"{names[2]}\n", encoding="utf-8")  # as DST-CBC publishes them: city/image, in any order
    others.write_text("".join(f"{names[place]}\n" for place in (3, 0, 1)), encoding="utf-8")
    few, rest = Cityscapes(root, names=labelled), Cityscapes(root, names=str(others), labels=False)
    assert few.names == (names[2],)
    assert rest.names == (names[0], names[1], names[3])
    image, mask = few[0]
    whole = Cityscapes(root)[2]
    assert image.equal(whole[0])
    assert mask.equal(whole[1])
    assert rest[2][1] == names[3]


def test_images_that_are_not_taken_need_no_labels(root, tmp_path):
    names = Cityscapes(root).names
    masks = sorted((root / "gtFine" / "train").rglob("*_gtFine_labelIds.png"))
    bytes_of = masks[1].read_bytes()
    masks[1].unlink()
    try:
        with pytest.raises(FileNotFoundError):
            Cityscapes(root)
        assert Cityscapes(root, names=[names[0]]).names == (names[0],)
    finally:
        masks[1].write_bytes(bytes_of)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        (["bonn/none"], ValueError, r"`names`: 1 of 1 names match no image, or several: 'bonn/none'"),
        ("no/such.txt", FileNotFoundError, "expected a file of names"),
        ("paris/*", ValueError, "no image matches 'paris/"),
        ([], ValueError, "expected names, got none"),
    ],
)
def test_names_that_are_not_there(root, given, error, said):
    with pytest.raises(error, match=said):
        Cityscapes(root, names=given)
