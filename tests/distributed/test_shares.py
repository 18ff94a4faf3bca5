"""What ranks count is each one's own share: under DistributedDataParallel, and in checkpoints. Real gloo processes."""

import pytest
import torch

from tests.distributed import share_workers as workers
from tests.ranks import free_port, start
from tests.stateful import KINDS

EACH = pytest.mark.parametrize("name", workers.ADDED)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shares")
    for name in workers.ADDED:  # what one process saved
        module = KINDS[name].make()
        workers.feed(name, module, [0, 1], range(2))
        torch.save(module.state_dict(), folder / f"{name}, alone.pt")
    start(workers.run, free_port(), str(folder), ranks=workers.RANKS)
    results = [torch.load(folder / f"result{rank}.pt", weights_only=True) for rank in range(workers.RANKS)]
    assert len(results) == workers.RANKS
    return results


def alone(name, steps):
    module = KINDS[name].make()
    workers.feed(name, module, [0, 1], steps)
    return workers.totals(module)


def assert_totals(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value.is_floating_point():  # in another order, other roundings
            torch.testing.assert_close(found[name], value, rtol=1e-12, atol=0)
        else:
            assert torch.equal(found[name], value), name


def test_ddp_leaves_every_rank_what_it_counted(ranks):
    model = workers.train([0, 1], wrap=False)
    expected = workers.figures(model)
    pixels = workers.RANKS * workers.STEPS * workers.SIDE**2
    assert model.kc.class_counts().sum() == model.statistics.counts[0].sum() == pixels == 1536
    for result in ranks:
        assert result["trained"].keys() == expected.keys()
        for name, value in expected.items():
            found = result["trained"][name]
            if value.is_floating_point() and name != "thresholds":
                torch.testing.assert_close(found, value, msg=name)  # float sums: other roundings
            else:
                assert torch.equal(found, value), name
        assert result["trained"]["class_counts"].sum() == pixels


@EACH
def test_two_ranks_count_what_one_process_counts(ranks, name):
    for result in ranks:
        assert_totals(result["checkpoints"][name]["total"], alone(name, range(2)))


@EACH
def test_every_rank_loads_its_own(ranks, name):
    for result in ranks:
        said, total = result["checkpoints"][name]["own"]
        assert said == "loaded"
        assert_totals(total, alone(name, range(2)))
        assert_totals(result["checkpoints"][name]["own, later"], alone(name, range(3)))


@EACH
def test_what_rank_0_saved_is_refused_by_the_others(ranks, name):
    first, second = (result["checkpoints"][name] for result in ranks)
    assert first["rank 0's"] == "loaded"
    assert "state saved by rank 1 of 2 or by a single process" in second["rank 0's"]
    assert "got that of rank 0 of 2" in second["rank 0's"]
    assert "let every rank save and load its own" in second["rank 0's"]
    assert second["unchanged"]
    assert not first["unchanged"]


@EACH
def test_what_one_process_saved_counts_once(ranks, name):
    for result in ranks:
        said, total = result["checkpoints"][name]["alone"]
        assert said == "loaded"
        assert_totals(total, alone(name, range(2)))
        assert_totals(result["checkpoints"][name]["alone, later"], alone(name, range(3)))


@EACH
def test_another_number_of_ranks_is_refused(ranks, name):
    for rank, result in enumerate(ranks):
        assert f"state saved by rank {rank} of 2" in result["checkpoints"][name]["of three"]
        assert f"got that of rank {rank} of 3" in result["checkpoints"][name]["of three"]


def test_how_much_crosses(ranks):
    bins = 16_384
    for result in ranks:
        sizes = result["sizes"]
        for name in ("class_counts", "pooled class_counts", "sketch class_counts"):
            assert sizes[name] == [("torch.int64", workers.CLASSES)], name
        assert sizes["compute"] == [("torch.int64", workers.CLASSES * bins + 1)]
        assert sorted(sizes["statistics"]) == [("torch.float64", workers.CLASSES), ("torch.int64", 4 * workers.CLASSES)]
        assert sizes["update"] == []
        # One all-reduce for a and b, which share dtype and rule; none for e, the same on all ranks.
        assert sorted(sizes["mixed"]) == [("torch.float32", 7), ("torch.int64", 2)]
    values = [result["sizes"]["values"] for result in ranks]
    assert [value[1:] for value in values] == [[[14, 1], [[2.0, 2.0], [2.0, 2.0]], [2.0, 2.0, 2.0]]] * 2
    assert [value[0] for value in values] == [0, 1]


@EACH
def test_a_rank_without_data(ranks, name):
    module = KINDS[name].make()
    workers.feed(name, module, [0], range(2))
    expected = module.total() if name == "sketch" else module.compute()
    expected = list(expected) if isinstance(expected, tuple) else [expected]
    for result in ranks:
        for found, value in zip(result["without data"][name], expected, strict=True):
            assert torch.equal(found.nan_to_num(-1), value.nan_to_num(-1))
