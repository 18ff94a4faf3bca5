import pytest
import torch


def pytest_configure(config):
    torch.set_num_threads(1)  # two threads on two busy cores can be ten times slower than one


def pytest_collection_modifyitems(config, items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
