"""BatchNorm's statistics and validation on restyled source with real process groups: as one process has them."""

import pytest
import torch

from tests.batchnorm.nets import trained
from tests.distributed import batchnorm_workers as workers
from tests.ranks import free_port, start

SHARDS = [[4, 1, 0], [], [2, 3]]  # uneven, and one without images


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batchnorm")
    start(workers.run, SHARDS, free_port(), str(folder), ranks=len(SHARDS))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(len(SHARDS))]


def test_as_one_process(ranks):
    expected = workers.measured(trained(dropout=0.0), list(range(workers.BATCHES)))
    for result in ranks:
        assert result["plain"].keys() == expected.keys()
        for name, tensor in expected.items():
            # Sums in another order: float64 inside, so float32 is off by its last bit at most.
            torch.testing.assert_close(result["plain"][name], tensor, rtol=2e-7, atol=1e-9, msg=name)
            assert torch.equal(result["plain"][name], ranks[0]["plain"][name])
        assert torch.equal(result["plain"]["counts"], expected["counts"])


def test_with_wrappers_and_sync_batchnorm(ranks):
    for result in ranks:
        for wrapper in ("synced", "parallel"):
            for name, tensor in result[wrapper].items():
                assert torch.equal(tensor, result["plain"][name]), name


def test_a_rank_that_fails_stops_all(ranks):
    errors = [result["error"] for result in ranks]
    assert errors[0] == "OSError: a file is gone"
    assert {*errors[1:]} == {"RuntimeError: `batches`: another rank failed while statistics were estimated"}
    assert all(result["unchanged"] for result in ranks)


def test_domains_in_parallel_training(ranks):
    """Weights are those of all ranks, and a domain's statistics are sent along while another is in use."""
    for result in ranks[1:]:
        for name, tensor in result["domains"].items():
            assert torch.equal(tensor, ranks[0]["domains"][name]), name
