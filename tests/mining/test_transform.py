import copy
import pickle

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from selftrain_seg.mining import SmallClassCrop
from tests.oracles.mining import corner_distribution, crop_by_loops

# Python 3.12 and later warn of any fork beside threads; torch has some.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

MASK = torch.tensor(
    [
        [0, 0, 0, 0, 0],
        [0, 1, 1, 0, 2],
        [0, 1, 0, 255, 0],
        [0, 0, 0, 255, 2],
    ],
    dtype=torch.uint8,
)
PLACES = tv_tensors.Image(torch.arange(20, dtype=torch.float32).view(1, 4, 5))  # every pixel says where it was


def corner(image):
    return divmod(int(image[0, 0, 0]), 5)


@pytest.mark.parametrize(
    ("classes", "fallback", "chance"),
    [
        ([1, 2], None, 1.0),
        ([1], None, 0.7),
        ([7], [2], 0.9),
        ([7], None, 1.0),
        ([1, 255], None, 0.0),
        ([], [1], 0.8),
    ],
)
def test_follows_the_law(classes, fallback, chance):
    size, draws = (2, 3), 3000
    transform = SmallClassCrop(
        torch.tensor(classes, dtype=torch.long),
        size,
        fallback=None if fallback is None else torch.tensor(fallback),
        chance=chance,
    )
    expected = draws * corner_distribution(MASK.numpy(), classes, size, chance=chance, fallback=fallback or ())
    observed = np.zeros_like(expected)
    torch.manual_seed(0)
    for _ in range(draws):
        image, mask = transform(PLACES, tv_tensors.Mask(MASK))
        top, left = corner(image)
        assert torch.equal(mask, MASK[top : top + 2, left : left + 3])
        observed[top, left] += 1
    possible = expected > 0
    assert observed[~possible].sum() == 0
    assert stats.chisquare(observed[possible], expected[possible]).pvalue > 1e-3


def test_structures_and_types():
    transform = SmallClassCrop(torch.tensor([2]), (2, 2), chance=1.0)
    box = tv_tensors.BoundingBoxes([[0, 0, 5, 4]], format="XYXY", canvas_size=(4, 5))
    sample = {"image": PLACES, "mask": tv_tensors.Mask(MASK[None]), "name": "frame", "boxes": box}
    out = transform(sample)
    assert type(out["image"]) is tv_tensors.Image
    assert type(out["mask"]) is tv_tensors.Mask
    assert out["mask"].shape == (1, 2, 2)
    assert out["name"] == "frame"
    assert out["boxes"].canvas_size == (2, 2)
    assert sample["image"].shape == (1, 4, 5)
    picture = v2.functional.to_pil_image(PLACES / 20)
    assert transform(picture, tv_tensors.Mask(MASK))[0].size == (2, 2)


def test_pads_small_samples():
    transform = SmallClassCrop(torch.tensor([2]), (6, 3), chance=1.0, fill=-1.0)
    image, mask = transform(PLACES, tv_tensors.Mask(MASK))
    left = int(image[0, 0, 0])
    expected = crop_by_loops(PLACES.numpy(), [(0, left)], (6, 3), -1.0)
    assert torch.equal(image, torch.from_numpy(expected))
    assert torch.equal(mask, torch.from_numpy(crop_by_loops(MASK[None].numpy(), [(0, left)], (6, 3), 255))[0])
    both = SmallClassCrop(torch.tensor([2]), (6, 7), ignore_index=9)(PLACES, tv_tensors.Mask(MASK))
    assert (both[1][4:] == 9).all()
    assert (both[1][:, 5:] == 9).all()
    assert (both[0][0, 4:] == 0).all()
    assert torch.equal(both[0][:, :4, :5], PLACES)


def test_classes_of_8_bits_are_not_a_mask():
    transform = SmallClassCrop(torch.tensor([1, 2], dtype=torch.uint8), (1, 1), fallback=torch.tensor([3]).byte())
    assert [row.nonzero()[:, 0].tolist() for row in transform.mined] == [[1, 2], [3]]


def test_ignore_index():
    transform = SmallClassCrop(torch.tensor([1, 2]), (1, 1), chance=1.0, ignore_index=2)
    assert all(transform(PLACES, tv_tensors.Mask(MASK))[1] == 1 for _ in range(50))


def test_set_classes_state_and_copies():
    transform = SmallClassCrop(torch.tensor([1]), (1, 1), fallback=torch.tensor([9]), chance=1.0)
    assert "classes=[1], fallback=[9], size=(1, 1), chance=1.0" in repr(transform)
    resumed = SmallClassCrop(torch.tensor([0]), (1, 1), chance=1.0)
    resumed.load_state_dict(transform.state_dict())
    for other in (resumed, copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):  # noqa: S301
        assert other.mined.is_shared()
        assert torch.equal(other.mined, transform.mined)
        assert all(other(PLACES, tv_tensors.Mask(MASK))[1] == 1 for _ in range(20))
        other.set_classes(torch.tensor([2]))
        assert all(other(PLACES, tv_tensors.Mask(MASK))[1] == 2 for _ in range(20))
        assert not other.mined[1].any()
    assert transform.mined[0].nonzero().tolist() == [[1]]


class Samples(Dataset):
    """Forty equal samples; each reports the corner of its crop and the worker that made it."""

    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return 40

    def __getitem__(self, index):
        image, mask = self.transform(PLACES, tv_tensors.Mask(MASK))
        worker = torch.utils.data.get_worker_info()
        return torch.tensor([*corner(image), int(mask[0, 0]), -1 if worker is None else worker.id])


def epoch(loader):
    return torch.cat(list(loader))


def test_in_a_data_loader():
    def load(seed):
        samples = Samples(SmallClassCrop(torch.tensor([1, 2]), (1, 1)))
        source = torch.Generator().manual_seed(seed)
        return epoch(DataLoader(samples, batch_size=4, num_workers=2, generator=source))

    first = load(0)
    workers = first[:, 3]
    assert set(workers.tolist()) == {0, 1}
    assert not torch.equal(first[workers == 0, :2], first[workers == 1, :2])
    assert torch.equal(first, load(0))
    assert not torch.equal(first, load(1))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_set_classes_reaches_running_workers(context):
    transform = SmallClassCrop(torch.tensor([1]), (1, 1), chance=1.0)
    loader = DataLoader(Samples(transform), num_workers=1, persistent_workers=True, multiprocessing_context=context)
    assert (epoch(loader)[:, 2] == 1).all()
    transform.set_classes(torch.tensor([2]))
    assert (epoch(loader)[:, 2] == 2).all()


def test_bad_arguments():
    def fails(error, message, *arguments, **keywords):
        with pytest.raises(error, match=message):
            SmallClassCrop(*arguments, **keywords)

    classes = torch.tensor([1])
    fails(TypeError, r"`classes`: expected a torch.Tensor, got list", [1], (2, 2))
    fails(TypeError, r"`classes`: expected a torch.Tensor, got NoneType", None, (2, 2))
    fails(TypeError, r"`classes`: expected an integer dtype", torch.tensor([1.0]), (2, 2))
    fails(ValueError, r"`classes`: expected \(K,\), got \(1, 1\)", classes[None], (2, 2))
    fails(ValueError, r"`classes`: expected values in \[0, 256\), got \[256\]", torch.tensor([256]), (2, 2))
    fails(ValueError, r"`fallback`: expected values in \[0, 256\)", classes, (2, 2), fallback=torch.tensor([3, -1]))
    fails(TypeError, r"`fallback`: expected an integer dtype", classes, (2, 2), fallback=torch.tensor([1.0]))
    fails(ValueError, r"`fallback`: expected \(K,\)", classes, (2, 2), fallback=classes[None])
    fails(ValueError, r"`size`: expected \(height, width\)", classes, 2)
    fails(ValueError, r"`size\[0\]`: expected at least 1", classes, (0, 2))
    fails(TypeError, r"`size\[1\]`: expected an int", classes, (2, 2.5))
    fails(ValueError, r"`chance`: expected a value in", classes, (2, 2), chance=1.5)
    fails(TypeError, r"`chance`: expected a number", classes, (2, 2), chance="0.8")
    fails(TypeError, r"`fill`: expected a number", classes, (2, 2), fill="0")
    fails(TypeError, r"`ignore_index`: expected an int", classes, (2, 2), ignore_index=2.5)


def test_bad_samples():
    transform = SmallClassCrop(torch.tensor([1]), (2, 2))
    with pytest.raises(ValueError, match=r"expected a tv_tensors.Mask with the labels, got none"):
        transform(PLACES)
    with pytest.raises(ValueError, match=r"expected one mask \(H, W\) or \(1, H, W\), got \[\(4, 5\), \(4, 5\)\]"):
        transform(PLACES, tv_tensors.Mask(MASK), tv_tensors.Mask(MASK))
    with pytest.raises(ValueError, match=r"expected one mask \(H, W\) or \(1, H, W\), got \[\(2, 4, 5\)\]"):
        transform(PLACES, tv_tensors.Mask(MASK.expand(2, -1, -1)))


@pytest.mark.parametrize(
    ("keywords", "dtype", "name"),
    [
        ({"fill": 0.5}, torch.uint8, "fill"),  # became 0
        ({"fill": 300}, torch.uint8, "fill"),
        ({"ignore_index": -100}, torch.uint8, "ignore_index"),
        ({"ignore_index": 255}, torch.int8, "ignore_index"),
    ],
)
def test_padding_that_the_dtype_cannot_hold(keywords, dtype, name):
    transform = SmallClassCrop(torch.tensor([1]), (3, 3), **keywords)
    image, mask = torch.zeros(3, 2, 2, dtype=torch.uint8), torch.zeros(2, 2, dtype=dtype)
    with pytest.raises(ValueError, match=f"`{name}`: expected a value that torch.u?int8 can hold, got "):
        transform(tv_tensors.Image(image), tv_tensors.Mask(mask))
    transform(
        tv_tensors.Image(image[:, :1].repeat(1, 3, 2)), tv_tensors.Mask(mask[:1].repeat(3, 2))
    )  # nothing is padded
