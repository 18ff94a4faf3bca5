"""The package as a stranger meets it: what importing costs, what it promises by name."""

import importlib
import importlib.metadata
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import selftrain_seg

PACKAGE = Path(selftrain_seg.__file__).parent
SUBPACKAGES = sorted(selftrain_seg._SUBPACKAGES)
FOLDERS = sorted(module.name for module in pkgutil.iter_modules(selftrain_seg.__path__) if module.ispkg)

# Names that users build on. Everything else may change; these stay importable.
PROMISED = {
    "confidence": ["SpatialPrior", "fuse_views", "top_confidence"],
    "thresholds": ["ClassBalancedThreshold", "ConfidenceSketch", "GlobalThreshold", "linear_portion"],
    "selectors": [
        "InstanceAdaptiveSelector",
        "RunningConfidenceSelector",
        "select_hard",
        "select_reweighted",
        "select_soft",
    ],
    "losses": [
        "cross_entropy",
        "dynamic_loss",
        "dynamic_mutual_loss",
        "mrent_loss",
        "mrkld_loss",
        "mrl2_loss",
        "negative_loss",
        "region_guided_loss",
    ],
    "mining": [
        "ClassBalancedSampler",
        "RareClassSampler",
        "ReliabilityBank",
        "SmallClassCrop",
        "class_mix",
        "classes_below",
        "crop",
        "mine_crops",
        "paste_classes",
        "rare_classes",
    ],
    "views": ["WeakStrongViews", "replay"],
    "teachers": ["DualTeacher", "DynamicTeacher", "MeanTeacher", "soft_neighbourhood_density"],
    "datasets": [
        "BDD100K",
        "Cityscapes",
        "GTA5",
        "LabelMap",
        "SYNTHIA",
        "SegmentationFolder",
        "SyntheticStreets",
        "Tiles",
        "VOCSegmentation",
    ],
    "store": ["PseudoLabelStore"],
    "visualize": ["colorize", "overlay", "report"],
}


def modules_after(statement):
    """Names of all modules loaded by a statement in a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    return set(done.stdout.split())


def test_import_is_light():
    loaded = modules_after("import selftrain_seg")
    assert "torch" in loaded
    assert not loaded & {"kornia", "torchvision", "matplotlib", "scipy", "torchmetrics"}
    assert not {f"selftrain_seg.{name}" for name in FOLDERS} & loaded  # imported when first used


def test_numerical_stages_need_torch_only():
    stages = ("confidence", "thresholds", "selectors", "losses", "mining", "views", "teachers", "distributed", "store")
    stages += ("visualize", "batchnorm", "restyle")
    loaded = modules_after("\n".join(f"import selftrain_seg.{name}" for name in stages))
    assert not loaded & {"kornia", "torchvision", "matplotlib", "scipy"}


def test_init_is_short():
    assert len((PACKAGE / "__init__.py").read_text(encoding="utf-8").splitlines()) < 40


def test_marked_as_typed():
    assert (PACKAGE / "py.typed").is_file()


def test_version():
    # The public part of PEP 440's grammar.
    grammar = r"(\d+!)?\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?"
    assert re.fullmatch(grammar, selftrain_seg.__version__)
    assert importlib.metadata.version("selftrain-seg") == selftrain_seg.__version__


def test_subpackages_are_reachable_from_the_package():
    assert sorted([*SUBPACKAGES, "ops"]) == FOLDERS  # the ground floor is for the library itself
    assert set(SUBPACKAGES) <= set(selftrain_seg.__all__)
    assert set(selftrain_seg.__all__) <= set(dir(selftrain_seg))
    for name in SUBPACKAGES:
        assert getattr(selftrain_seg, name) is importlib.import_module(f"selftrain_seg.{name}")
    with pytest.raises(AttributeError, match="module 'selftrain_seg' has no attribute 'nothing'"):
        _ = selftrain_seg.nothing


@pytest.mark.parametrize("name", ["", *SUBPACKAGES])
def test_every_name_in_all_exists(name):
    module = importlib.import_module(f"selftrain_seg.{name}".rstrip("."))
    assert len(set(module.__all__)) == len(module.__all__)
    for public in module.__all__:
        assert hasattr(module, public)
        assert not public.startswith("_") or public == "__version__"


@pytest.mark.parametrize("name", PROMISED)
def test_promised_names(name):
    assert set(PROMISED[name]) <= set(importlib.import_module(f"selftrain_seg.{name}").__all__)


def test_every_file_can_be_imported():
    for module in pkgutil.walk_packages(selftrain_seg.__path__, "selftrain_seg."):
        importlib.import_module(module.name)
