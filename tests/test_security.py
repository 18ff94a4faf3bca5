"""Read from the source: no file from elsewhere can run code, no command line or temporary file can be hijacked.

And run: folders whose names mean something to shells, URLs, patterns and HTML are folders like others.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from selftrain_seg import IGNORE_INDEX
from selftrain_seg.datasets import GTA5, Cityscapes, SyntheticStreets
from selftrain_seg.mining import ClassIndex
from tests.examples.trainers import run
from tests.store.cases import open_store, pseudo, write_all

ROOT = Path(__file__).parent.parent
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("selftrain_seg", "examples", "docs", "tests/benchmarks", "tests/gpu", ".ci")
    for path in (ROOT / folder).rglob("*.py")
    if "_build" not in path.parts
)

UNSAFE_MODULES = {"cPickle", "cloudpickle", "dill", "joblib", "marshal", "pickle", "ruamel", "shelve", "yaml"}
UNSAFE_CALLS = {
    *("eval", "exec", "os.execv", "os.execvp", "os.popen", "os.system", "pandas.read_pickle", "shutil.unpack_archive"),
    *("subprocess.getoutput", "subprocess.getstatusoutput", "tempfile.mktemp", "torch.hub.load"),
    *("torch.serialization.load",),
}
TORCH_LOADERS = {"torch.load", "torch.hub.load_state_dict_from_url"}  # both unpickle unless told not to
TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 -- names to look for


def full_names(tree: ast.AST) -> dict[str, str]:
    """What each imported name stands for: ``np`` for ``numpy``, ``load`` for ``torch.load``."""
    out = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                out[alias.asname or alias.name.split(".")[0]] = alias.name if alias.asname else alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                out[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return out


def dotted(node: ast.AST, names: dict[str, str]) -> str:
    """``torch.load`` for whatever it is called here; empty for what is no name."""
    if isinstance(node, ast.Attribute):
        before = dotted(node.value, names)
        return f"{before}.{node.attr}" if before else ""
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def is_constant(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def of_objects(node: ast.expr | None) -> bool:
    return isinstance(node, (ast.Name, ast.Constant)) and "object" in (
        getattr(node, "id", ""),
        getattr(node, "value", ""),
    )


def problems(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, what is wrong with it)."""
    names = full_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        else:
            modules = []
        for module in modules:
            if module.split(".")[0] in UNSAFE_MODULES:
                yield node.lineno, f"import of {module}"
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(TEMPORARY):
            yield node.lineno, f"fixed path {node.value}"
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func, names)
        options = {one.arg: one.value for one in node.keywords}
        if name in UNSAFE_CALLS or (name == "__import__" and node.args):
            yield node.lineno, name
        elif name == "importlib.import_module" and node.args and isinstance(node.args[0], ast.Constant):
            if str(node.args[0].value).split(".")[0] in UNSAFE_MODULES:
                yield node.lineno, f"import of {node.args[0].value}"
        elif name in TORCH_LOADERS and not is_constant(options.get("weights_only"), True):
            yield node.lineno, f"{name} without weights_only=True"
        elif name.startswith("numpy.") and not is_constant(options.get("allow_pickle", ast.Constant(False)), False):
            yield node.lineno, f"{name} with allow_pickle"
        elif name.startswith("numpy.") and of_objects(options.get("dtype")):
            yield node.lineno, f"{name} of objects"
        if "shell" in options and not is_constant(options["shell"], False):
            yield node.lineno, "shell"


@pytest.mark.parametrize("file", FILES)
def test_nothing_unsafe(file):
    source = (ROOT / file).read_text(encoding="utf-8")
    assert [f"{file}:{line}: {what}" for line, what in problems(ast.parse(source, file))] == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch\ntorch.load(f)", "torch.load without weights_only=True"),
        ("import torch\ntorch.load(f, weights_only=False)", "torch.load without weights_only=True"),
        ("import torch\ntorch.load(f, weights_only=safe)", "torch.load without weights_only=True"),
        ("from torch import load as get\nget(f)", "torch.load without weights_only=True"),
        ("import torch as t\nt.load(f, map_location='cpu')", "torch.load without weights_only=True"),
        ("import torch.hub\ntorch.hub.load_state_dict_from_url(u)", "torch.hub.load_state_dict_from_url without"),
        ("import pickle", "import of pickle"),
        ("def f():\n    from pickle import loads", "import of pickle"),
        ("import dill as store", "import of dill"),
        ("import shelve", "import of shelve"),
        ("import joblib.numpy_pickle", "import of joblib.numpy_pickle"),
        ("from cloudpickle import dumps", "import of cloudpickle"),
        ("import yaml", "import of yaml"),
        ("from ruamel.yaml import YAML", "import of ruamel.yaml"),
        ("import importlib\nimportlib.import_module('pickle')", "import of pickle"),
        ("__import__('pickle')", "__import__"),
        ("import numpy as np\nnp.load(f, allow_pickle=True)", "numpy.load with allow_pickle"),
        ("import numpy as np\nnp.load(f, allow_pickle=flag)", "numpy.load with allow_pickle"),
        ("import numpy as np\nnp.save(f, np.array(x, dtype=object))", "numpy.array of objects"),
        ("from numpy import full\nfull(3, None, dtype='object')", "numpy.full of objects"),
        ("eval(text)", "eval"),
        ("exec(text)", "exec"),
        ("import os\nos.system('ls')", "os.system"),
        ("from os import popen\npopen('ls')", "os.popen"),
        ("import subprocess\nsubprocess.run('ls', shell=True)", "shell"),
        ("import tempfile\ntempfile.mktemp()", "tempfile.mktemp"),
        ("from pathlib import Path\nPath('/tmp/x')", "fixed path /tmp/x"),
    ],
)
def test_the_rules_themselves(source, found):
    assert [what.startswith(found) for _, what in problems(ast.parse(source))] == [True]


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(f, weights_only=True)\ntorch.hub.load_state_dict_from_url(u, weights_only=True)",
        "import numpy as np\nnp.load(f)\nnp.load(f, allow_pickle=False)\nnp.zeros(3, dtype=np.uint8)",
        "import subprocess, tempfile\nsubprocess.run(['ls'])\ntempfile.mkdtemp()",
        "model.eval()\nregex.exec\nload(f)\nmodel.load(f)",
        "import json\njson.load(f)",
    ],
)
def test_what_is_allowed(source):
    assert list(problems(ast.parse(source))) == []


def test_all_folders_are_read():
    assert {file.split("/")[0] for file in FILES} >= {"selftrain_seg", "examples", "docs", "tests"}
    assert len(FILES) > 100


# Everything that a shell, HTML, URLs, format strings and patterns take for something else.
ODD = "weiß & \"q' <b>  #1%20 [x] {0} $HOME ~ 東京;*?"


def test_store_in_an_odd_folder(tmp_path):
    stored = write_all(tmp_path / ODD, names=[ODD, f"{ODD}/a"])
    assert torch.equal(stored.read(ODD).labels, pseudo(ODD).labels[0])
    store = open_store(tmp_path / ODD)
    assert store.rounds() == [0]
    assert store.verify(0) == []
    assert store.round(0).names == (ODD, f"{ODD}/a")


def test_data_sets_in_an_odd_folder(tmp_path):
    streets = SyntheticStreets("source", "train", size=(64, 128), length=2)
    assert streets.export(tmp_path / ODD / "gta", "gta5") == tmp_path / ODD / "gta"
    streets.export(str(tmp_path / ODD), "cityscapes")
    for dataset in (GTA5(tmp_path / ODD / "gta"), Cityscapes(str(tmp_path / ODD))):
        dataset.verify()
        image, labels = dataset[1]
        assert torch.equal(image, (streets[1][0] * 255).round().byte())
        assert torch.equal(labels == IGNORE_INDEX, streets[1][1] == IGNORE_INDEX)
    broken = tmp_path / ODD / "gta/labels/00001.png"
    broken.write_bytes(b"")
    with pytest.raises(ValueError, match=re.escape(str(broken))):
        GTA5(tmp_path / ODD / "gta").verify()


def test_class_index_in_an_odd_file(tmp_path):
    masks = [torch.tensor([[0, 1], [1, 255]]), torch.tensor([[2, 2], [2, 2]])]
    file = tmp_path / ODD / ODD
    made = ClassIndex.from_masks(masks, 3, cache=file)
    assert torch.equal(ClassIndex.from_masks(masks, 3, cache=str(file)).counts, made.counts)
    assert torch.equal(ClassIndex.load(str(file)).counts, torch.tensor([[1, 2, 0], [0, 0, 4]]))
    assert [path.name for path in file.parent.iterdir()] == [ODD]


@pytest.mark.slow
def test_a_trainer_runs_and_goes_on_in_an_odd_folder(tmp_path):
    out, root = tmp_path / ODD / "run", tmp_path / ODD / "streets"
    options = ["--root", root, "--smoke", "--images", 4, 4, 2, "--batch", 2, "--steps", 1]
    run("cbst.py", out, *options, "--rounds", 1)
    first = (out / "model.pt").read_bytes()
    run("cbst.py", out, *options, "--rounds", 2)
    assert (out / "model.pt").read_bytes() != first
    assert len(list((out / "pseudo-labels").glob("round-*"))) == 2
    assert {path.name for path in tmp_path.iterdir()} == {ODD}
