"""The rules of the house that a machine can check, read from the source."""

import ast
import functools
import inspect
import re
from pathlib import Path

import pytest

import selftrain_seg

ROOT = Path(selftrain_seg.__file__).parent.parent
PACKAGE = ROOT / "selftrain_seg"
FILES = sorted(path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py"))
SUBPACKAGES = sorted(selftrain_seg._SUBPACKAGES)

# Data flows one way. A stage may import the stages before it; all may stand on the ground floor.
STAGES = ("confidence", "thresholds", "selectors", "losses")
GROUND_FLOOR = ("ops", "types", "_state", "_checks", "_files", "_palette", "_progress", "outputs")
SIDE_ROOMS = ("mining", "teachers", "views", "datasets", "stopping", "store", "visualize", "distributed")
SIDE_ROOMS += ("batchnorm", "restyle")
SHARED = (*GROUND_FLOOR, "distributed")

# Asking where a tensor is or who is looking: left to PyTorch's dispatcher, and to ops where it cannot be.
DEVICE_QUESTION = re.compile(r"is_compiling|device\.type|\.is_cuda")

# Where the host may wait for the device, and why. Key: file, then the function's qualified name.
READS_VALUES = {
    ("selftrain_seg/mining/transform.py", "SmallClassCrop.extra_repr"): "text for people",
    ("selftrain_seg/mining/transform.py", "_checked_values"): "a few class numbers, on the CPU, once a round",
    ("selftrain_seg/teachers/block_drop.py", "drop_blocks"): "a few coins, thrown on the CPU",
    ("selftrain_seg/visualize/_host.py", "on_host"): "pictures are drawn on the host: the only way there",
}


@functools.cache
def parse(file):
    return ast.parse((ROOT / file).read_text(encoding="utf-8"), file)


def imports(tree):
    """Names of the modules of this package that a file imports, at the top or inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names = [node.module]
            if node.module == "selftrain_seg":
                names = [f"selftrain_seg.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "selftrain_seg":
                yield name.split(".")[1] if "." in name else ""


def may_import(room):
    if room in STAGES:
        return {*STAGES[: STAGES.index(room) + 1], *SHARED}
    if room in ("distributed", "ops"):
        return {room, "_checks", "types"}
    if room == "_state":
        return {"_checks", "types", "distributed"}
    if room == "store":
        return {room, *SHARED}
    if room in SIDE_ROOMS:
        return {*SHARED, *STAGES, *SIDE_ROOMS} - {"selectors", "losses"}
    if room == "__init__":
        return {"_checks", "types", "outputs"}
    return {"_checks", "types"}  # what else is on the ground floor


def forbidden_imports(room, tree):
    return sorted(set(imports(tree)) - may_import(room))


def room_of(file):
    return Path(file).parts[1].removesuffix(".py")


def test_every_room_is_known():
    assert selftrain_seg._STAGES == STAGES
    assert set(SUBPACKAGES) == {*STAGES, *SIDE_ROOMS}
    assert {room_of(file) for file in FILES} == {*STAGES, *SIDE_ROOMS, *GROUND_FLOOR, "__init__"}


@pytest.mark.parametrize("file", FILES)
def test_imports_flow_one_way(file):
    assert forbidden_imports(room_of(file), parse(file)) == []


@pytest.mark.parametrize(
    ("room", "source", "forbidden"),
    [
        ("thresholds", "from selftrain_seg.selectors import select_hard", ["selectors"]),
        ("thresholds", "def f():\n    import selftrain_seg.losses.core as core", ["losses"]),
        ("thresholds", "from selftrain_seg import selectors, confidence", ["selectors"]),
        ("losses", "from selftrain_seg import value_checks", ["value_checks"]),
        ("losses", "import selftrain_seg", [""]),
        ("mining", "from selftrain_seg.losses import mrkld_loss", ["losses"]),
        ("selectors", "from selftrain_seg.mining import crop", ["mining"]),
        ("store", "from selftrain_seg.mining import ClassIndex", ["mining"]),
        ("distributed", "from selftrain_seg.confidence import top_confidence", ["confidence"]),
        ("types", "from selftrain_seg.confidence import top_confidence", ["confidence"]),
        ("distributed", "from selftrain_seg import ops", ["ops"]),
        ("ops", "from selftrain_seg.confidence import top_confidence", ["confidence"]),
        ("ops", "from selftrain_seg.distributed import all_reduce_sum", ["distributed"]),
        ("ops", "from selftrain_seg._state import Stateful", ["_state"]),
        ("_state", "from selftrain_seg.distributed import all_reduce_sum", []),
        ("_state", "from selftrain_seg import ops", ["ops"]),
        ("_checks", "from selftrain_seg.distributed import all_reduce_sum", ["distributed"]),
        ("outputs", "from selftrain_seg import _checks, ops", ["ops"]),
        ("_files", "from selftrain_seg import _state", ["_state"]),
        ("store", "from selftrain_seg._files import whole_file", []),
        ("teachers", "from selftrain_seg.outputs import as_logits", []),
        ("confidence", "from selftrain_seg import ops", []),
        ("losses", "from selftrain_seg.selectors import select_hard\nimport torch", []),
        ("mining", "from selftrain_seg import _checks\nfrom selftrain_seg.thresholds import x", []),
    ],
)
def test_the_rule_itself(room, source, forbidden):
    assert forbidden_imports(room, ast.parse(source)) == forbidden


def device_questions(file):
    """Lines in which a file asks for a device or a compiler."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    return [f"{file}:{number}" for number, line in enumerate(lines, 1) if DEVICE_QUESTION.search(line)]


@pytest.mark.parametrize("file", [file for file in FILES if room_of(file) != "ops"])
def test_only_ops_asks_for_a_device_or_a_compiler(file):
    assert device_questions(file) == []


def test_ops_seldom_asks_for_a_device_or_a_compiler():
    found = [line for file in FILES if room_of(file) == "ops" for line in device_questions(file)]
    assert 0 < len(found) <= 12


@pytest.mark.parametrize("file", FILES)
def test_no_assert_on_user_input(file):
    assert [node.lineno for node in ast.walk(parse(file)) if isinstance(node, ast.Assert)] == []


def value_reads(tree):
    """(qualified name of the function, line) of every call that would make the host wait for the device."""

    def visit(node, name):
        for child in ast.iter_child_nodes(node):
            inner = name
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                inner = f"{name}.{child.name}" if name else child.name
            called = child.func if isinstance(child, ast.Call) else None
            if isinstance(called, ast.Attribute) and called.attr in ("item", "cpu", "tolist", "numpy"):
                yield name, child.lineno
            yield from visit(child, inner)

    return list(visit(tree, ""))


@pytest.mark.parametrize("file", FILES)
def test_no_host_reads(file):
    assert [(name, line) for name, line in value_reads(parse(file)) if (file, name) not in READS_VALUES] == []


def test_allow_list_of_host_reads_is_not_stale():
    assert {(file, name) for file in FILES for name, _ in value_reads(parse(file))} >= READS_VALUES.keys()
    assert value_reads(ast.parse("class A:\n    def f(self, x):\n        return x.item()")) == [("A.f", 3)]


# What is done in one place. Key: name; then the file, and what it is recognised by in a syntax tree.
ONCE = {
    "renaming": ("selftrain_seg/_files.py", lambda node: _calls(node, "replace", "rename")),
    "syncing": ("selftrain_seg/_files.py", lambda node: _calls(node, "fsync")),
    "progress bars": ("selftrain_seg/_progress.py", lambda node: _names(node, "tqdm")),
}


def _calls(node, *names):
    """Whether it calls one of some methods or functions of a module; `text.replace(old, new)` has two arguments."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names):
        return False
    return ast.unparse(node.func.value) == "os" or (len(node.args) == 1 and not node.keywords)


def _names(node, package):
    """Whether it imports a package, or says its name to `import_module`."""
    if isinstance(node, ast.Import):
        return package in [alias.name.split(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").split(".")[0] == package
    return isinstance(node, ast.Constant) and node.value == package


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a.replace(b)", ["renaming"]),
        ("os.replace(a, b)", ["renaming"]),
        ("folder.rename(other)", ["renaming"]),
        ("text.replace('a', 'b')", []),
        ("os.fsync(file.fileno())", ["syncing"]),
        ("def f():\n    from tqdm.auto import tqdm", ["progress bars"]),
        ("import_module('tqdm')", ["progress bars"]),
    ],
)
def test_what_is_recognised(source, expected):
    tree = ast.parse(source)
    assert [what for what, (_, found) in ONCE.items() if any(map(found, ast.walk(tree)))] == expected


@pytest.mark.parametrize("what", ONCE)
def test_one_place_does_it(what):
    place, found = ONCE[what]
    assert {file for file in FILES if any(map(found, ast.walk(parse(file))))} == {place}


def bodies(tree):
    """(name, text) of each function of more than a line or two, without its docstring and type hints of the head."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            text = "\n".join(map(ast.unparse, node.body[ast.get_docstring(node) is not None :]))
            if len(text) > 120:
                yield node.name, text


def test_no_function_is_written_twice():
    places = {}
    for file in FILES:
        for name, text in bodies(parse(file)):
            places.setdefault(text, []).append(f"{file}: {name}")
    assert [found for found in places.values() if len(found) > 1] == []
    assert len(places) > 500


@pytest.mark.parametrize("file", FILES)
def test_at_most_400_lines(file):
    assert len((ROOT / file).read_text(encoding="utf-8").splitlines()) <= 400


def public_objects():
    for name in SUBPACKAGES:
        module = getattr(selftrain_seg, name)
        for public in module.__all__:
            value = getattr(module, public)
            if inspect.isfunction(value) or inspect.isclass(value):
                yield pytest.param(value, id=f"{name}.{public}")
    yield pytest.param(selftrain_seg.value_checks, id="value_checks")
    for name in ("PseudoLabels", "as_logits", "pad_to_multiple"):
        yield pytest.param(getattr(selftrain_seg, name), id=name)


PUBLIC = list(public_objects())


@pytest.mark.parametrize("name", SUBPACKAGES)
def test_every_public_name_is_in_the_reference(name):
    page = (ROOT / "docs" / "api" / f"{name}.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\.\. auto(?:function|class|data):: (?:[\w.]+\.)?(\w+)$", page, re.MULTILINE))
    assert documented == set(getattr(selftrain_seg, name).__all__)


def missing_sections(value):
    """What a docstring lacks: Args, Returns or Attributes, Example, where there is something to say in them."""
    if inspect.isclass(value) and issubclass(value, tuple):
        wanted = ["Attributes:"]
    else:
        signature = inspect.signature(value)
        wanted = ["Args:", "Example:"] if signature.parameters else []
        manager = inspect.isgeneratorfunction(inspect.unwrap(value))  # used in `with`, returns nothing
        if inspect.isfunction(value) and signature.return_annotation not in (None, "None") and not manager:
            wanted.append("Returns:")
    lines = [line.strip() for line in (value.__doc__ or "").splitlines()]
    return [section for section in wanted if section not in lines]


@pytest.mark.parametrize("value", PUBLIC)
def test_docstrings_are_complete(value):
    assert value.__doc__
    assert missing_sections(value) == []


@pytest.mark.parametrize("value", PUBLIC)
def test_every_argument_is_described(value):
    if inspect.isclass(value) and issubclass(value, tuple):
        names = value._fields
    else:
        names = inspect.signature(value).parameters
    described = {line.strip().split(":")[0] for line in (value.__doc__ or "").splitlines() if ":" in line}
    assert [name for name in names if name not in described] == []


@pytest.mark.parametrize("value", PUBLIC)
def test_public_methods_say_what_they_do(value):
    if inspect.isclass(value):
        methods = [
            (name, method)
            for name, method in vars(value).items()
            if callable(getattr(value, name)) and not name.startswith("_") and name != "forward"
        ]
        assert [name for name, method in methods if not inspect.getdoc(getattr(value, name))] == []
