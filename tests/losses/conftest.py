import pytest

from selftrain_seg.losses import _core


@pytest.fixture(params=["operators", "traced"])
def compiled_path(request, monkeypatch):
    """What torch.compile sees of a loss: on CPU two operators, on other devices, tried here too, plain operations."""
    if request.param == "traced":
        monkeypatch.setattr(_core, "_OPAQUE", ())
    return request.param
