import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch.utils.data import DataLoader, Dataset

from selftrain_seg.datasets import SyntheticStreets
from selftrain_seg.mining import ClassBalancedSampler, ClassIndex, ImportanceSampler, RareClassSampler
from selftrain_seg.mining import index as mining_index
from selftrain_seg.mining._order import Randomness
from tests.oracles import mixing as oracle

# Python 3.12 and later warn of any fork beside threads; torch has some.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
SAMPLERS = [ClassBalancedSampler, ImportanceSampler, RareClassSampler]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def masks(count=7, classes=5, seed=0):
    out = []
    for i in range(count):
        mask = torch.randint(-1, classes + 1, (5 + i, 9), generator=generator(seed + i))
        mask[0] = 255
        out.append(mask)
    return out


def random_index(images=60, classes=6, seed=0):
    """Class c in about every (c + 1)-th image, so that the last ones are rare; class 5 in none."""
    draws = torch.rand(images, classes, generator=generator(seed))
    counts = (draws < 1 / torch.arange(1, classes + 1)) * torch.randint(1, 90, draws.shape, generator=generator(1))
    counts[:, -1] = 0
    counts[:, 0] += 1
    return ClassIndex(counts, torch.full((images,), 600))


# --- the index


def test_counts_by_loops():
    index = ClassIndex.from_masks(masks(), 5)
    assert index.counts.tolist() == [oracle.count_by_loops(mask.tolist(), 5) for mask in masks()]
    assert index.counts.dtype == torch.int32
    assert index.pixels.tolist() == [9 * (5 + i) for i in range(7)]
    assert index.class_counts.tolist() == index.counts.sum(0).tolist()
    assert (len(index), index.num_classes) == (7, 5)
    assert "7 images, 5 classes" in repr(index)


def test_any_iterable_of_any_masks():
    plain = [mask.clamp(min=0).to(torch.uint8) for mask in masks()]
    expected = ClassIndex.from_masks(plain, 5).counts
    same = torch.stack([mask[:5] for mask in plain])
    for kind in (
        (mask.numpy() for mask in plain),
        (mask.numpy().astype(np.uint16) for mask in plain),
        (Image.fromarray(mask.numpy()) for mask in plain),
        (mask[None] for mask in plain),
    ):
        assert torch.equal(ClassIndex.from_masks(kind, 5).counts, expected)
    batches = DataLoader(list(same), batch_size=3)
    assert torch.equal(ClassIndex.from_masks(batches, 5).counts, ClassIndex.from_masks(same, 5).counts)
    many = ClassIndex.from_masks(torch.zeros(3, 400, 1, 1, dtype=torch.uint8), 2)  # grows several times
    assert many.counts.tolist() == [[1, 0]] * 1200
    assert len(ClassIndex.from_masks([], 3)) == 0


def test_contains_is_a_share_of_the_image():
    index = ClassIndex(torch.tensor([[10, 1, 0], [1000, 100, 99]]), torch.tensor([100, 10000]))
    assert index.contains().tolist() == [[True, True, False], [True, True, True]]
    assert index.contains(0.01).tolist() == [[True, True, False], [True, True, False]]  # at both resolutions
    for percent in range(1, 101):  # 100 * 0.07 is 7.000000000000001
        counts, pixels = torch.tensor([[percent, percent - 1]]), torch.tensor([200])
        assert ClassIndex(counts, pixels).contains(percent / 200).tolist() == [[True, False]]
        assert ClassIndex(counts, pixels).contains(0.5 * percent / 100).tolist() == [[True, False]]
    assert index.contains(0.011).tolist() == [[True, False, False], [True, False, False]]


def test_cache(tmp_path, monkeypatch):
    path = tmp_path / "new" / "index.pt"
    first = ClassIndex.from_masks(masks(), 5, cache=path)
    assert [file.name for file in path.parent.iterdir()] == ["index.pt"]  # no temporary file is left
    with monkeypatch.context() as patch:
        patch.setattr(mining_index, "_count", None)  # nothing is counted again
        for kind in (masks(), tuple(masks()), [mask.numpy() for mask in masks()], DataLoader(masks(), batch_size=2)):
            read = ClassIndex.from_masks(kind, 5, cache=path)
            assert torch.equal(read.counts, first.counts)
            assert torch.equal(read.pixels, first.pixels)
    for change, found in (
        ({"num_classes": 6}, "num_classes 6, got 5"),
        ({"ignore_index": -1}, "ignore_index -1, got 255"),
    ):
        with pytest.raises(ValueError, match=f"`cache`: expected an index with {found}"):
            ClassIndex.from_masks(masks(), **{"num_classes": 5, "cache": path, **change})
    for number in (8, 3):
        assert len(ClassIndex.from_masks(masks(number), 5, cache=path)) == number


def test_a_cache_knows_a_changed_mask(tmp_path):
    path, maps = tmp_path / "index.pt", masks()
    ClassIndex.from_masks(maps, 5, cache=path)
    maps[3] = maps[3].clone()
    maps[3][2, 2] = (maps[3][2, 2] + 1) % 5
    assert torch.equal(ClassIndex.from_masks(maps, 5, cache=path).counts, ClassIndex.from_masks(maps, 5).counts)
    swapped = [maps[1], maps[0], *maps[2:]]
    assert torch.equal(ClassIndex.from_masks(swapped, 5, cache=path).counts, ClassIndex.from_masks(swapped, 5).counts)


def test_a_cache_of_files_knows_a_changed_file(tmp_path):
    files = [tmp_path / "a" / f"{number}.png" for number in range(4)]
    files[0].parent.mkdir()
    for number, file in enumerate(files):
        Image.fromarray(np.full((4, 6), number, np.uint8)).save(file)

    def read(where=files):
        opened = (Image.open(file) for file in where)
        return ClassIndex.from_masks(opened, 5, cache=tmp_path / "index", files=where).counts.argmax(1).tolist()

    assert read() == [0, 1, 2, 3]
    Image.fromarray(np.full((4, 6), 4, np.uint8)).save(files[1])  # as many bytes as before
    assert read() == [0, 4, 2, 3]
    before = (tmp_path / "index").read_bytes()
    moved = files[0].parent.rename(tmp_path / "b")  # a folder may move
    assert read([moved / file.name for file in files]) == [0, 4, 2, 3]
    assert (tmp_path / "index").read_bytes() == before
    with pytest.raises(FileNotFoundError, match=r"0.png"):
        read()
    for unknown in ((mask for mask in masks()), Samples(), DataLoader(Samples())):
        with pytest.raises(ValueError, match="`files`: expected the files that the masks are read from, as `cache` "):
            ClassIndex.from_masks(unknown, 5, cache=tmp_path / "other")


@pytest.mark.parametrize("shape", [(8, 10, 3), (8, 10, 4)])
def test_an_image_in_colours_is_no_mask(shape):
    """(H, W, 3) was taken for H label maps three pixels wide."""
    pixels = np.zeros(shape, np.uint8)
    for image in (pixels, torch.from_numpy(pixels), Image.fromarray(pixels)):
        with pytest.raises(
            ValueError, match=r"`masks`: .*got \(8, 10, \d\), which looks like a colour image \(H, W, channels\)"
        ):
            ClassIndex.from_masks([image], 5)


def test_an_image_of_two_bands_is_no_mask():
    with pytest.raises(
        ValueError, match=r"`masks`: .*got \(4, 6, 2\), which looks like a colour image \(H, W, channels\)"
    ):
        ClassIndex.from_masks([Image.new("LA", (6, 4))], 5)


def test_a_crash_leaves_no_cache(tmp_path, monkeypatch):
    def crash(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(KeyboardInterrupt):
        ClassIndex.from_masks(masks(), 5, cache=tmp_path / "index.pt")
    assert list(tmp_path.iterdir()) == []


class Mischief:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_save_load_and_foreign_files(tmp_path):
    index = random_index()
    index.save(tmp_path / "a.pt")
    index.save(str(tmp_path / "a.pt"))
    assert torch.equal(ClassIndex.load(tmp_path / "a.pt").counts, index.counts)
    (tmp_path / "b.pt").write_bytes(b"nothing")
    torch.save({"format": Mischief(tmp_path / "harm")}, tmp_path / "c.pt")
    torch.save({"format": 2}, tmp_path / "d.pt")
    for name in "bcd":
        with pytest.raises(ValueError, match="expected the file of a ClassIndex"):
            ClassIndex.load(tmp_path / f"{name}.pt")
        with pytest.raises(ValueError, match=r"`cache`: .*expected the file of a ClassIndex"):
            ClassIndex.from_masks([], 3, cache=tmp_path / f"{name}.pt")
    assert not (tmp_path / "harm").exists()
    with pytest.raises(FileNotFoundError):
        ClassIndex.load(tmp_path / "e.pt")


def test_progress(capsys, monkeypatch):
    ClassIndex.from_masks(masks(), 5)
    assert capsys.readouterr().err == ""
    ClassIndex.from_masks(masks(), 5, progress=True)
    assert "class index" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert len(ClassIndex.from_masks(masks(), 5, progress=True)) == 7
    assert capsys.readouterr().err == ""


# --- the laws


@pytest.mark.parametrize("sub_epoch", [500, 40, 1])
def test_balanced_order_by_loops(sub_epoch):
    index = random_index()
    sampler = ClassBalancedSampler(index, num_samples=1200, sub_epoch=sub_epoch, seed=3)
    sampler.set_epoch(2)
    source, contains = Randomness(3, 2), index.contains()
    lists = [contains[:, c].nonzero()[:, 0].numpy() for c in range(6)]
    numbers = [source.uniform(place)[0] for place in range(1200)]
    expected = oracle.balanced_order(
        contains.tolist(), numbers, lambda c, turn: source.shuffle(lists[c], c, turn), sub_epoch
    )
    assert list(sampler) == expected


def test_the_random_numbers_are_uniform_and_their_own():
    numbers = np.array([Randomness(0, 0).uniform(place) for place in range(0, 512 * 40, 41)])
    assert stats.kstest(numbers.ravel(), "uniform").pvalue > 1e-3
    source = Randomness(0, 0)
    rows = [tuple(source.uniform(place)) for place in range(2000)]
    assert len(set(rows)) == 2000
    assert tuple(source.uniform(3)) == rows[3]
    assert tuple(Randomness(0, 1).uniform(3)) != rows[3] != tuple(Randomness(1, 0).uniform(3))
    orders = np.array([Randomness(seed, 0).shuffle(np.arange(3), 1, 0) for seed in range(3000)])
    _, counts = np.unique(orders @ [9, 3, 1], return_counts=True)
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > 1e-3
    drawn = {tuple(Randomness(0, 0).shuffle(np.arange(20), c, turn)) for c in range(3) for turn in range(3)}
    assert len(drawn) == 9


def test_balanced_law():
    """One class an image, so the drawn class is seen: its counts must be those its probabilities foretell."""
    sizes = [500, 60, 9, 1]
    classes = np.repeat(np.arange(4), sizes)
    counts = torch.nn.functional.one_hot(torch.from_numpy(classes), 5)
    index = ClassIndex(counts, torch.ones(570, dtype=torch.long))
    order = list(ClassBalancedSampler(index, num_samples=3000, sub_epoch=100))
    shown, expected, variance, observed = [0] * 5, np.zeros(4), np.zeros(4), np.zeros(4)
    for place, image in enumerate(order):
        shown = [0] * 5 if place % 100 == 0 else shown
        p = np.array(oracle.balanced_weights(shown, [True] * 4 + [False])[:4])
        expected, variance = expected + p, variance + p * (1 - p)
        observed[classes[image]] += 1
        shown[classes[image]] += 1
    assert np.all(np.abs(observed - expected) < 4 * np.sqrt(variance))
    assert observed.min() > 600  # about a quarter each, though there are 500 of one and 1 of another
    for c, size in enumerate(sizes):  # the list of a class is gone through before it begins again
        drawn = [image for image in order if classes[image] == c]
        for start in range(0, len(drawn) - size, size):
            assert len(set(drawn[start : start + size])) == size
        if c == 1:
            assert drawn[:size] != drawn[size : 2 * size]


@pytest.mark.parametrize(("temperature", "min_share"), [(0.01, 0.0), (0.3, 0.0), (0.3, 0.05), (100.0, 0.0)])
def test_rare_law(temperature, min_share):
    index = random_index(12)
    sampler = RareClassSampler(index, temperature=temperature, min_share=min_share, num_samples=20000)
    contains = index.contains(min_share)
    expected = 20000 * oracle.rare_image_probabilities(index.counts.tolist(), contains.tolist(), temperature)
    observed = np.bincount(list(sampler), minlength=12)
    assert observed[expected == 0].sum() == 0
    often = expected > 5
    assert (
        stats.chisquare(
            np.append(observed[often], observed[~often].sum() + 10),
            np.append(expected[often], expected[~often].sum() + 10),
        ).pvalue
        > 1e-3
    )
    assert sampler.class_probabilities[5] == 0  # no image shows it
    assert sampler.class_probabilities.sum().item() == pytest.approx(1)


@pytest.mark.parametrize(("uniform", "min_share"), [(0.25, 0.0), (0.0, 0.0), (1.0, 0.0), (0.25, 0.05)])
def test_importance_law(uniform, min_share):
    index = random_index(12)
    sampler = ImportanceSampler(index, uniform=uniform, min_share=min_share, num_samples=20000)
    contains = index.contains(min_share)
    expected = oracle.importance_probabilities(index.counts.tolist(), contains.tolist(), uniform)
    np.testing.assert_allclose(sampler.image_probabilities.numpy(), expected, rtol=1e-12)
    observed, expected = np.bincount(list(sampler), minlength=12), 20000 * expected
    assert observed[expected == 0].sum() == 0
    often = expected > 5
    merged = (np.append(counts[often], counts[~often].sum() + 10) for counts in (observed, expected))
    assert stats.chisquare(*merged).pvalue > 1e-3


def test_importance_with_candidates_and_many_pixels():
    counts = torch.full((4, 2), 2**30)
    counts[:, 1] = torch.tensor([0, 0, 0, 7])
    index = ClassIndex(counts, torch.full((4,), 2**31 - 1))
    assert ImportanceSampler(index, uniform=0.0).image_probabilities.tolist() == [0.125, 0.125, 0.125, 0.625]
    candidates = torch.tensor([[True, True], [False, False], [True, True], [False, False]])
    sampler = ImportanceSampler(index, uniform=0.0, candidates=candidates, num_samples=500)
    assert sampler.image_probabilities.tolist() == [0.5, 0.0, 0.5, 0.0]  # class 1 may be drawn nowhere
    assert set(sampler) == {0, 2}
    assert set(ImportanceSampler(index, uniform=1.0, candidates=candidates, num_samples=500)) == {0, 2}


def test_defaults_are_the_papers():
    assert ImportanceSampler(random_index()).uniform == 0.25
    assert ClassBalancedSampler(random_index()).sub_epoch == 500
    assert RareClassSampler(random_index()).temperature == 0.01


def test_rare_images_are_shown_more_often_on_the_synthetic_benchmark():
    streets = SyntheticStreets("source", "train", length=60, seed=0)
    index = ClassIndex.from_masks((streets[i][1] for i in range(60)), len(streets.classes))
    contains = index.contains(0.0015)
    holds = contains[:, contains.sum(0).argmin()]
    assert 0 < holds.float().mean() < 0.9
    for kind in SAMPLERS:
        order = torch.tensor(list(kind(index, min_share=0.0015, num_samples=2000)))
        assert holds[order].float().mean() > holds.float().mean() + 0.03


# --- epochs, ranks, workers


@pytest.mark.parametrize("kind", SAMPLERS)
def test_epochs_and_seeds(kind):
    index = random_index()
    sampler = kind(index)
    first = list(sampler)
    assert len(first) == len(sampler) == 60
    assert all(type(image) is int for image in first)
    second, third = list(sampler), list(sampler)  # epochs follow one another
    assert first != second != third != first
    sampler.set_epoch(1)
    assert list(sampler) == second
    assert list(sampler) == third
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(kind(index, seed=1)) != first
    state = torch.random.get_rng_state()
    list(sampler)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_plain_loop_shows_every_image(kind):
    """Twenty epochs of a thousand equal images: 611 were seen when each epoch had the order of the first."""
    sampler = kind(ClassIndex(torch.ones(1000, 1, dtype=torch.long), torch.ones(1000, dtype=torch.long)))
    loader = DataLoader(range(1000), batch_size=50, sampler=sampler)
    seen = {int(image) for _ in range(20) for batch in loader for image in batch}
    assert len(seen) == 1000


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("workers", [0, 2])
def test_iterators_do_not_disturb_each_other(kind, workers):
    index = random_index()
    sampler, first, second = kind(index), list(kind(index)), None
    loaders = [DataLoader(Samples(), batch_size=6, sampler=sampler, num_workers=workers) for _ in range(2)]
    pairs = list(zip(*loaders, strict=True))
    assert [torch.cat(column).tolist() for column in zip(*pairs, strict=True)] == [first, first]
    sampler.set_epoch(0)
    got = []
    for image in sampler:
        got.append(image)
        if len(got) == 10:
            assert list(sampler) == first
        if len(got) == 20:
            assert sampler.state_dict()["consumed"] == 20  # of the one that goes on
        if len(got) == 30:
            second = list(sampler)  # of the next epoch, since one iteration of this one has ended
            break
    assert got == first[:30]
    assert second not in (None, first)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_an_iterator_of_an_epoch_that_is_over_says_so(kind):
    index = random_index()
    sampler, first = kind(index), list(kind(index))
    iterator = iter(sampler)
    assert next(iterator) == first[0]
    sampler.set_epoch(3)
    with pytest.raises(RuntimeError, match="this iterator's epoch is over"):
        next(iterator)
    drawn = iter(sampler)
    next(drawn)
    list(sampler)  # all images of the epoch are drawn
    sampler.set_epoch(4)
    assert len(list(drawn)) == 59


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_loop_that_always_breaks_off_is_told(kind, recwarn):
    sampler = kind(random_index())
    for _ in range(2):
        next(iter(sampler))
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"starts for the third time.*set_epoch\(1\)"):
        next(iter(sampler))
    recwarn.clear()
    for epoch in range(5):
        sampler.set_epoch(epoch)
        next(iter(sampler))
    assert not recwarn.list


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_ranks_share_one_order(kind, ranks):
    index = random_index()
    parts = [list(kind(index, num_samples=50, seed=5, rank=rank, num_replicas=ranks)) for rank in range(ranks)]
    assert len({len(part) for part in parts}) == 1
    together = [image for row in zip(*parts, strict=True) for image in row]
    assert together == list(kind(index, num_samples=len(together), seed=5))
    assert 50 <= len(together) < 50 + ranks


class Samples(Dataset):
    def __len__(self):
        return 60

    def __getitem__(self, index):
        return index


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("workers", [0, 2])
def test_in_a_data_loader(kind, workers):
    """Candidates changed while workers run take effect, after the batches already asked for."""
    index = random_index()
    only = torch.zeros(60, 6, dtype=torch.bool)
    only[7, 0] = True
    sampler, other = kind(index, min_share=0.0), kind(index, min_share=0.0)
    loader = DataLoader(Samples(), batch_size=2, sampler=sampler, num_workers=workers, persistent_workers=workers > 0)
    assert torch.cat(list(loader)).tolist() == list(kind(index, min_share=0.0))
    drawn = []
    for step, batch in enumerate(loader):
        if step == 4:
            sampler.update(candidates=only)
        drawn.append(batch)
    ahead = 2 * workers
    assert not all((batch == 7).all() for batch in drawn[: 5 + ahead])
    assert (torch.stack(drawn[5 + ahead :]) == 7).all()
    assert (torch.cat(list(loader)) == 7).all()  # and the next epoch, with the same workers
    sampler.update()
    other.set_epoch(3)
    assert torch.cat(list(loader)).tolist() == list(other)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_update_with_another_index(kind):
    index = random_index()
    sampler = kind(index)
    other = random_index(seed=9)
    sampler.update(other)
    again = kind(other)
    assert set(sampler) == set(again)
    sampler.set_epoch(0)
    again.set_epoch(0)
    if kind is not ClassBalancedSampler:
        assert list(sampler) == list(again)
    if kind is RareClassSampler:
        assert torch.equal(sampler.class_probabilities, again.class_probabilities)
    if kind is ImportanceSampler:
        assert torch.equal(sampler.image_probabilities, again.image_probabilities)


def test_update_shuffles_anew():
    sampler = ClassBalancedSampler(ClassIndex(torch.ones(50, 1, dtype=torch.long), torch.ones(50, dtype=torch.long)))
    order = []
    for image in sampler:
        order.append(image)
        if len(order) == 20:
            sampler.update()
    assert order[:20] != order[20:40]
    assert len(set(order[20:])) == 30  # its own list, from the start


# --- resuming


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("changed", [False, True])
def test_resume(tmp_path, kind, ranks, changed):
    index = random_index()
    half = torch.rand(60, 6, generator=generator(8)) < 0.5

    def make(rank):
        sampler = kind(index, num_samples=300, seed=2, rank=rank, num_replicas=ranks, min_share=0.0)
        sampler.set_epoch(4)
        return sampler

    samplers = [make(rank) for rank in range(ranks)]
    straight = []
    for sampler in samplers:
        order = []
        iterator = iter(sampler)
        for step in range(300 // ranks):
            if step == 61 and changed:
                sampler.update(candidates=half)
            if step == 70 and sampler is samplers[0]:
                torch.save(sampler.state_dict(), tmp_path / "all.pt")
                torch.save(sampler.state_dict(consumed=50), tmp_path / "ahead.pt")  # 20 wait in the DataLoader
            order.append(next(iterator))
        straight.append(order)
    for rank in range(ranks):
        for name, consumed in (("all", 70), ("ahead", 50)):
            resumed = make(rank)
            resumed.load_state_dict(torch.load(tmp_path / f"{name}.pt", weights_only=True))
            resumed.set_epoch(4)
            assert list(resumed) == straight[rank][consumed:]
            resumed.set_epoch(5)
            assert len(list(resumed)) == 300 // ranks
        resumed.load_state_dict(torch.load(tmp_path / "all.pt", weights_only=True))
        resumed.set_epoch(5)  # another epoch than the one that was left
        assert len(list(resumed)) == 300 // ranks


def test_resume_twice_and_after_the_end():
    index = random_index()
    whole = list(ClassBalancedSampler(index))
    sampler = ClassBalancedSampler(index)
    iterator = iter(sampler)
    got = [next(iterator) for _ in range(10)]
    for _ in range(4):
        state = sampler.state_dict()
        sampler = ClassBalancedSampler(index, seed=9)  # the seed comes from the state
        sampler.load_state_dict(state)
        iterator = iter(sampler)
        got += [next(iterator) for _ in range(10)]
    assert got == whole[:50]
    with pytest.raises(ValueError, match=r"`consumed`: expected at least 40, got 39"):
        sampler.state_dict(consumed=39)
    list(iterator)
    ended = ClassBalancedSampler(index)
    ended.load_state_dict(sampler.state_dict())
    following = ClassBalancedSampler(index)
    following.set_epoch(1)
    assert list(ended) == list(following)  # nothing was left of that epoch: the next one
    ended.load_state_dict(sampler.state_dict(consumed=60))
    ended.set_epoch(0)  # asked for by name
    assert list(ended) == whole


def test_bad_states():
    index = random_index()
    sampler = ClassBalancedSampler(index)
    state = sampler.state_dict()
    with pytest.raises(ValueError, match="`state`: expected 2 ranks, got 1"):
        ClassBalancedSampler(index, rank=0, num_replicas=2).load_state_dict(state)
    with pytest.raises(ValueError, match="`state`: expected the state of a sampler with the same index"):
        ClassBalancedSampler(random_index(seed=4)).load_state_dict(state)
    narrow = ClassBalancedSampler(index, candidates=index.contains(0.1))
    other = ClassBalancedSampler(random_index(seed=4))
    with pytest.raises(ValueError, match="`state`: expected the state of a sampler with the same index"):
        other.load_state_dict(narrow.state_dict())
    assert list(other) == list(ClassBalancedSampler(random_index(seed=4)))  # it stays as it was
    begun, whole = ClassBalancedSampler(index), list(ClassBalancedSampler(index))
    iterator = iter(begun)
    assert [next(iterator) for _ in range(9)] == whole[:9]
    with pytest.raises(ValueError, match="`state`: expected the state of a sampler with the same index"):
        begun.load_state_dict(other.state_dict())
    assert list(iterator) == whole[9:]  # in the middle of an epoch, too
    with pytest.raises(
        ValueError, match=r"`state`: expected the state of a sampler with .*sub_epoch': 7.*got one with"
    ):
        ClassBalancedSampler(index, sub_epoch=7).load_state_dict(state)
    with pytest.raises(
        ValueError, match=r"`state`: expected the state of a sampler with .*RareClassSampler.*got one with"
    ):
        RareClassSampler(index).load_state_dict(state)
    with pytest.raises(
        ValueError, match=r"`state`: expected the state of a sampler with .*'uniform': 0.5.*got one with"
    ):
        ImportanceSampler(index, uniform=0.5).load_state_dict(ImportanceSampler(index).state_dict())
    swapped = ClassIndex(index.counts.flip(0), index.pixels)  # as many images of each class, but others
    with pytest.raises(ValueError, match="`state`: expected the state of a sampler with the same index"):
        ClassBalancedSampler(swapped).load_state_dict(state)
    with pytest.raises(ValueError, match="`state`: expected the state of a sampler, got one without candidates, con"):
        sampler.load_state_dict({"epoch": 3, "seed": 0})
    with pytest.raises(ValueError, match=r"`consumed`: expected at most the 0 images drawn, got 1"):
        sampler.state_dict(consumed=1)
    with pytest.raises(ValueError, match="`consumed`: expected at least 0"):
        sampler.state_dict(consumed=-1)
    with pytest.raises(TypeError, match="`consumed`"):
        sampler.state_dict(consumed=1.0)


# --- errors


def test_bad_masks():
    def fails(error, message, *arguments, **keywords):
        with pytest.raises(error, match=message):
            ClassIndex.from_masks(*arguments, **keywords)

    fails(TypeError, "`num_classes`: expected an int", [], 2.0)
    fails(ValueError, "`num_classes`: expected at least 1", [], 0)
    fails(TypeError, "`ignore_index`", [], 2, ignore_index="255")
    fails(ValueError, r"`ignore_index`: expected a value outside the classes \[0, 2\)", [], 2, ignore_index=1)
    fails(ValueError, r"`ignore_index`: expected a value outside the classes \[0, 300\).*got 255", [], 300)
    fails(TypeError, "`masks`: expected an integer dtype", [torch.zeros(2, 2)], 2)
    fails(ValueError, r"`masks`: expected \(H, W\) or \(B, H, W\) with pixels, got \(3,\)", [torch.zeros(3).int()], 2)
    fails(ValueError, r"`masks`: .* got \(0, 4\)", [torch.zeros(0, 4).int()], 2)
    fails(TypeError, "`masks`: expected label maps, got the path 'a.png'; open it", [Path("a.png")], 2)


def test_bad_index():
    def fails(error, message, counts, pixels):
        with pytest.raises(error, match=message):
            ClassIndex(counts, pixels)

    counts, pixels = torch.tensor([[1, 2]]), torch.tensor([3])
    fails(TypeError, "`counts`: expected an integer dtype", counts.float(), pixels)
    fails(TypeError, "`pixels`: expected an integer dtype", counts, pixels.float())
    fails(ValueError, r"`counts`: expected \(N, C\)", counts[0], pixels)
    fails(ValueError, r"`counts`: expected \(N, C\)", counts[:, :0], pixels)
    fails(ValueError, "`counts`: expected values of at least 0", -counts, pixels)
    fails(ValueError, r"`pixels`: expected \(N,\) = \(1,\), got \(2,\)", counts, torch.tensor([3, 3]))
    fails(ValueError, r"`pixels`: .* got 2 for image 0", counts, torch.tensor([2]))
    fails(ValueError, r"`pixels`: .* got 0 for image 0", counts * 0, torch.tensor([0]))
    fails(ValueError, r"`pixels`: .* got 2147483648 for image 0", counts, torch.tensor([2**31]))
    with pytest.raises(TypeError, match="`min_share`"):
        ClassIndex(counts, pixels).contains("0.1")
    with pytest.raises(ValueError, match="`min_share`"):
        ClassIndex(counts, pixels).contains(1.1)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_ranks_that_do_not_know_theirs(kind, monkeypatch):
    """All processes of torchrun drew the images of rank 0 where the sampler was made before the process group."""
    index = random_index()
    with pytest.raises(ValueError, match="`rank`: expected a rank, as 2 processes run without a process group"):
        kind(index, num_replicas=2)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="`rank`: expected a rank, as 4 processes run without a process group"):
        kind(index)
    assert kind(index, num_replicas=1).rank == kind(index, rank=0).rank == 0
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert kind(index).num_replicas == 1


def test_a_tiny_temperature_draws_the_rarest_class():
    index = random_index(12)
    probabilities = RareClassSampler(index, temperature=1e-320).class_probabilities
    rarest = torch.where(index.class_counts > 0, index.class_counts, 10**9).argmin()
    assert torch.equal(probabilities, torch.nn.functional.one_hot(rarest, 6).double())


@pytest.mark.parametrize("kind", SAMPLERS)
def test_bad_arguments(kind):
    index = random_index()

    def fails(error, message, index=index, **keywords):
        with pytest.raises(error, match=message):
            kind(index, **keywords)

    candidates = index.contains()
    fails(TypeError, "`index`: expected a ClassIndex, got Tensor", index.counts)
    fails(ValueError, "`index`: expected at least 1, got 0", ClassIndex.from_masks([], 3))
    fails(ValueError, "`index`: expected at least one image", ClassIndex(index.counts * 0, index.pixels))
    fails(ValueError, "`index`: expected at least one image", min_share=1.0)
    fails(TypeError, "`min_share`", min_share=None)
    fails(ValueError, "`min_share`", min_share=-0.1)
    fails(TypeError, "`candidates`: expected dtype torch.bool", candidates=candidates.int())
    fails(TypeError, "`candidates`: expected a torch.Tensor", candidates=[True])
    fails(ValueError, r"`candidates`: expected \(N, C\) = \(60, 6\), got \(59, 6\)", candidates=candidates[1:])
    fails(ValueError, "`candidates`: expected at least one image", candidates=candidates & False)
    fails(TypeError, "`num_samples`", num_samples=2.5)
    fails(ValueError, "`num_samples`", num_samples=0)
    fails(TypeError, "`seed`", seed=None)
    fails(ValueError, "`seed`", seed=-1)
    fails(TypeError, "`rank`", rank=0.0)
    fails(ValueError, "`rank`: expected at most 0, got 1", rank=1)
    fails(ValueError, "`rank`: expected at least 0", rank=-1)
    fails(TypeError, "`num_replicas`", num_replicas="2", rank=0)
    fails(ValueError, "`num_replicas`", num_replicas=0)
    if kind is ClassBalancedSampler:
        fails(TypeError, "`sub_epoch`", sub_epoch=1.5)
        fails(ValueError, "`sub_epoch`", sub_epoch=0)
    elif kind is ImportanceSampler:
        fails(TypeError, "`uniform`", uniform="a little")
        fails(ValueError, "`uniform`", uniform=1.5)
        fails(ValueError, "`uniform`", uniform=-0.1)
    else:
        fails(TypeError, "`temperature`", temperature="low")
        fails(ValueError, "`temperature`", temperature=0.0)
    sampler = kind(index)
    with pytest.raises(TypeError, match="`index`"):
        sampler.update(index.counts)
    with pytest.raises(ValueError, match=r"`index`: expected \(N, C\) = \(60, 6\), got \(59, 6\)"):
        sampler.update(random_index(59))
    with pytest.raises(TypeError, match="`epoch`"):
        sampler.set_epoch(0.5)
    with pytest.raises(ValueError, match="`epoch`"):
        sampler.set_epoch(-1)
    assert list(sampler) == list(kind(index))  # a refused update changes nothing
