import os

import pytest
import torch

try:
    import hypothesis
except ImportError:  # the tests on a GPU do without it
    pass
else:  # a busy machine is not a failure
    too_slow = hypothesis.HealthCheck.too_slow
    hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[too_slow])
    hypothesis.settings.load_profile("untimed")

MOST_WORKERS = 4  # each imports torch, collects all tests and needs about 1 GB


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_auto_num_workers():
    """The number of processes of ``pytest -n auto``."""
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def pytest_configure(config):
    torch.set_num_threads(1)  # two threads on two busy cores can be ten times slower than one


def pytest_collection_modifyitems(config, items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


def pytest_runtest_teardown(item):
    """What a test leaves on a GPU shows up in this test, not in the next one."""
    if item.get_closest_marker("gpu") and torch.cuda.is_available():
        torch.cuda.synchronize()  # raises what a kernel did wrong
        assert torch.cuda.get_sync_debug_mode() == 0
