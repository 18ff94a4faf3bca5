"""Real gloo process groups: several ranks must give what one process over all the data gives."""

import pytest
import torch

from selftrain_seg.distributed import all_reduce_sum
from tests.distributed import workers
from tests.ranks import free_port, start

# Uneven and empty shards, two ranks and three.
SHARDS = [[[0, 1, 2, 3, 4], [5, 6]], [[4, 1, 6, 0], [], [2, 5, 3]]]


@pytest.fixture(scope="module", params=SHARDS, ids=["2 ranks", "3 ranks"])
def ranks(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    start(workers.run, request.param, free_port(), str(folder), ranks=len(request.param))
    results = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(len(request.param))]
    assert len(results) == len(request.param)
    return request.param, results


def test_sum(ranks):
    shards, results = ranks
    for result in results:
        assert result["total"].item() == sum(range(1, len(shards) + 1))
    assert all_reduce_sum(torch.tensor([3])).item() == 3  # and nothing in one process


def test_thresholds_and_counts_are_those_of_one_process_bit_for_bit(ranks):
    _, results = ranks
    alone = workers.statistics(workers.data(), workers.labels())
    for result in results:
        assert result["statistics"].keys() == alone.keys()
        for name, value in alone.items():
            if name in ("prior", "selected_confidence"):  # float sums: in another order, other roundings
                torch.testing.assert_close(result["statistics"][name], value, equal_nan=True)
            else:
                assert torch.equal(result["statistics"][name], value), name


def test_adaptive_selectors_are_those_of_one_process_with_the_joined_batches(ranks):
    shards, results = ranks
    logits = workers.data()
    joined = [
        torch.cat([logits[part] for part in parts])
        for parts in (shards, [mine[:1] for mine in shards], [mine[1:] for mine in shards])
    ]
    alone = workers.adaptive(joined)
    for result in results:
        for name, value in alone.items():
            torch.testing.assert_close(result["adaptive"][name], value, msg=name)
            assert torch.equal(result["adaptive"][name], results[0]["adaptive"][name])


def test_instance_adaptive_ranks_keep_in_step(ranks):
    """θ is the ranks' average, weighted by their numbers of images: replayed here with one selector a rank."""
    from selftrain_seg.selectors import InstanceAdaptiveSelector

    shards, results = ranks
    logits, theta = workers.data(), torch.full((workers.CLASSES,), 0.9, dtype=torch.float64)
    for step, cut in enumerate((slice(None), slice(0, 1), slice(1, None))):
        weighted, images = torch.zeros_like(theta), 0
        for mine in shards:
            selector = InstanceAdaptiveSelector(workers.CLASSES)
            selector.thresholds.copy_(theta)
            selector(logits[mine[cut]])
            weighted += len(mine[cut]) * selector.thresholds
            images += len(mine[cut])
        theta = weighted / images
        for result in results:
            torch.testing.assert_close(result["instance"][step], theta, rtol=1e-12, atol=0)
            assert torch.equal(result["instance"][step], results[0]["instance"][step])


def test_exact_mode_refuses_several_ranks(ranks):
    for result in ranks[1]:
        assert "`exact`: expected a single process" in result["exact"]
