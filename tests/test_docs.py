"""The hand-written pages do what they say: Python runs, commands, options, files and links exist.

Names of functions are checked when the pages are built, the built pages by docs/check_site.py, and links to elsewhere,
before a release, by ``sphinx-build -b linkcheck docs docs/_build/linkcheck``.
"""

from __future__ import annotations

import ast
import functools
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import pytest

import selftrain_seg

ROOT = Path(__file__).parent.parent
DOCS = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [
    "CHANGELOG.md",
    "README.md",
    *(page for page in DOCS if not page.startswith(("docs/_build", "docs/_generated"))),
]
FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<kind>[^\n`]*)\n(?P<body>.*?)^ *(?P=fence) *$", re.DOTALL | re.MULTILINE
)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")

# What a page takes for granted: data, and the reader's own names.
SETUP = {
    "docs/api/datasets.md": """
import numpy
from PIL import Image
from pathlib import Path
from selftrain_seg.datasets import SyntheticStreets
streets = SyntheticStreets(size=(512, 1024), length=2)
streets.export("data/GTA5", "gta5")
streets.export("data/Cityscapes", "cityscapes")
for place in ("clinic_a/images/1.JPG", "clinic_a/masks/1.png", "clinic_b/1.tif"):
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(numpy.zeros((80, 100), numpy.uint8)).save(place)
""",
    "docs/settings.md": """
import numpy
from PIL import Image
from pathlib import Path
from selftrain_seg.datasets import SyntheticStreets
SyntheticStreets(length=3).export("data/Cityscapes", "cityscapes")
names = [f"source/source_{number:06}_000000" for number in range(3)]
Path("8_labeled_0.txt").write_text(names[1])
Path("8_unlabeled_0.txt").write_text(f"{names[2]}\\n{names[0]}\\n")
for place, name in (("JPEGImages", "a.jpg"), ("JPEGImages", "b.jpg"), ("SegmentationClassAug", "a.png")):
    Path("data/VOC2012", place).mkdir(parents=True, exist_ok=True)
    Image.fromarray(numpy.zeros((8, 9), numpy.uint8)).save(f"data/VOC2012/{place}/{name}")
Path("106_labeled_0.txt").write_text("a")
Path("106_unlabeled_0.txt").write_text("b")
""",
    "docs/api/store.md": """
import torch
from torch.utils.data import StackDataset
from selftrain_seg.mining import ClassBalancedSampler, ClassIndex
from selftrain_seg.selectors import select_reweighted
from selftrain_seg.store import PseudoLabelStore
classes, palette = [f"class {number}" for number in range(19)], [(number, 0, 0) for number in range(19)]
names, rank, world_size = ["bonn/000", "bonn/001"], 0, 1
network = torch.nn.Conv2d(3, 19, 1)
def estimate(network, number):
    return torch.full((19,), 0.05, dtype=torch.float64)
def loader_of(names):
    return [(torch.rand(len(names), 3, 8, 16), names)]
""",
}
# Runs files one after the other in one namespace.
TOGETHER = "import sys\nfor file in sys.argv[1:]:\n    exec(compile(open(file, encoding='utf-8').read(), file, 'exec'))"

pages = pytest.mark.parametrize("page", PAGES)


class Block(NamedTuple):
    kind: str
    line: int  # of the page, on which the body begins
    body: str


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(text: str) -> list[Block]:
    return [
        Block(found["kind"].strip(), text[: found.start("body")].count("\n") + 1, textwrap.dedent(found["body"]))
        for found in FENCE.finditer(text)
    ]


def script(text: str) -> str:
    """All Python of a page as one file, each line where it is on the page; empty if there is none."""
    lines: list[str] = []
    for kind, line, body in blocks(text):
        if kind == "python":
            lines += [""] * (line - 1 - len(lines)) + body.splitlines()
    return "\n".join(lines) + "\n" if lines else ""


@pytest.mark.parametrize("page", [page for page in PAGES if script(read(page))])
def test_python_runs(page, tmp_path):
    (tmp_path / "setup").write_text(SETUP.get(page, ""), encoding="utf-8")
    file = tmp_path / Path(page).name
    file.write_text(script(read(page)), encoding="utf-8")
    environment = {**os.environ, "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TOGETHER, "setup", file.name]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{page}:\n{done.stderr}"


def promises() -> list[str]:
    """The tests that "What can go wrong" names."""
    return re.findall(r"`([\w/]+\.py::test_\w+)`", read("docs/what_can_go_wrong.md"))


@pytest.mark.parametrize("promise", sorted(set(promises())))
def test_promises_are_tested(promise):
    file, name = promise.split("::")
    assert re.search(rf"^ *def {name}\(", (ROOT / "tests" / file).read_text(encoding="utf-8"), re.MULTILINE)


def test_every_row_of_what_can_go_wrong_names_a_test():
    rows = [row for row in read("docs/what_can_go_wrong.md").splitlines() if row.startswith("|")]
    rows = [row for row in rows if not row.startswith(("|---", "| What happens"))]
    assert len(rows) > 40
    assert [row for row in rows if "::test_" not in row.rsplit("|", 2)[1]] == []


@pages
def test_no_python_hides_under_another_name(page):
    kinds = {block.kind for block in blocks(read(page)) if not re.match(r"\{(?!code)", block.kind)}
    assert kinds <= {"bash", "python", "text"}


def test_setups_are_not_stale():
    assert [page for page in SETUP if not script(read(page))] == []


def test_python_is_found_where_it_is():
    text = "a\n\n```python\nx = 1\n```\n\n- b\n\n  ```python\n  if x:\n      y = 2\n  ```\n\n```text\nno\n```\n"
    assert script(text).splitlines() == ["", "", "", "x = 1", "", "", "", "", "", "if x:", "    y = 2"]
    assert script("```text\nx\n```\n") == ""


# Commands and options


def imported_modules(tree: ast.AST) -> Iterator[str]:
    for_types = {
        part
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for part in node.body
    }
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


@functools.cache
def options(file: Path) -> frozenset[str]:
    """Options of a script and of the modules beside it that it imports: of ``add_argument``, and fields of settings."""
    out: set[str] = set()
    found, waiting = {file}, [file]
    while waiting:
        tree = parsed(waiting.pop())
        out |= own_options(tree)
        for module in imported_modules(tree):
            for folder in (file.parent, file.parent.parent):
                path = folder / f"{module.replace('.', '/')}.py"
                path = path if path.is_file() else path.with_suffix("") / "__init__.py"
                if path.is_file() and path not in found and ROOT / "selftrain_seg" not in path.parents:
                    found.add(path)
                    waiting.append(path)
    if "parse_known_args" in file.read_text(encoding="utf-8"):  # it hands on what all trainers take
        out |= options(file.parent / "source_only.py")
    return frozenset(out)


@functools.cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def own_options(tree: ast.Module) -> set[str]:
    out: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            names = [one.value for one in node.args if isinstance(one, ast.Constant) and str(one.value).startswith("-")]
            action = next((ast.unparse(one.value) for one in node.keywords if one.arg == "action"), "")
            out.update(names)
            if action.endswith("BooleanOptionalAction"):
                out.update(f"--no-{name.removeprefix('--')}" for name in names)
        if isinstance(node, ast.ClassDef) and node.name.endswith("Settings"):
            for field in (field for field in node.body if isinstance(field, ast.AnnAssign)):
                name = ast.unparse(field.target).replace("_", "-")
                out.update([f"--{name}", f"--no-{name}"] if ast.unparse(field.annotation) == "bool" else [f"--{name}"])
    return out


def bad_words(words: list[str]) -> Iterator[str]:
    """What one command names and is not there."""
    own = [word for word in words if re.match(r"(docs|examples|tests)/(?!_build/)", word)]
    yield from (f"no file {word}" for word in own if not (ROOT / word).exists())
    scripts = [word for word in own if word.endswith(".py") and (ROOT / word).exists()]
    module = next((word for word in words if word in ("tests.benchmarks", "tests.gpu")), None)
    if not scripts and module is None:
        return
    file = ROOT / (scripts[0] if scripts else f"{module.replace('.', '/')}/__main__.py")
    rest = words[words.index(scripts[0] if scripts else module) + 1 :]
    for word in rest:
        if word.startswith("-") and not re.fullmatch(r"-[\d.]+", word) and word.split("=")[0] not in options(file):
            yield f"no option {word} in {file.relative_to(ROOT)}"
    names = rest[: next((number for number, word in enumerate(rest) if word.startswith("-")), None)]
    for name in names if module == "tests.benchmarks" else ():
        if not (file.parent / f"bench_{name}.py").exists():
            yield f"no benchmark {name}"


def bad_commands(text: str) -> Iterator[str]:
    """What the commands of a page name and is not there."""
    shell = [block.body for block in blocks(text) if block.kind in ("bash", "console", "sh", "text")]
    plain = FENCE.sub("", text)
    shell += [code for code in INLINE.findall(plain) if re.match(r"(python|torchrun|accelerate) ", code)]
    for line in "\n".join(shell).replace("\\\n", " ").splitlines():
        if re.search(r"\b(python|torchrun|accelerate) ", line):
            for command in re.split(r"&&|;|\|", line):
                yield from bad_words(shlex.split(command, comments=True))


def all_options() -> frozenset[str]:
    folders = (ROOT / "examples", ROOT / "docs", ROOT / "tests" / "benchmarks", ROOT / "tests" / "gpu")
    return frozenset().union(*(options(path) for folder in folders for path in folder.rglob("*.py")))


@pages
def test_commands_and_options_exist(page):
    assert list(bad_commands(read(page))) == []
    named = {word for code in INLINE.findall(FENCE.sub("", read(page))) for word in code.split() if word[:2] == "--"}
    assert {word.split("=")[0] for word in named} - all_options() - {"--nproc-per-node"} == set()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("```bash\npython examples/none.py\n```\n", ["no file examples/none.py"]),
        ("Run `python docs/none.py`.", ["no file docs/none.py"]),
        ("```text\npython examples/cbst.py --none 3\n```\n", ["no option --none in examples/cbst.py"]),
        ("```text\npip install x && python examples/cbst.py \\\n  --mine --no-mine --seed=1 --regularizer x\n```\n",
         ["no option --regularizer in examples/cbst.py"]),
        ("```text\ntorchrun --nproc-per-node 4 examples/crst.py --regularizer lrent --spatial-prior\n```\n",
         ["no option --spatial-prior in examples/crst.py"]),
        ("```bash\npython -m tests.benchmarks losses none --none\n```\n",
         ["no option --none in tests/benchmarks/__main__.py", "no benchmark none"]),
        ("```bash\npython -m tests.benchmarks losses --compile --markdown docs/_generated/none.md\n```\n",
         ["no file docs/_generated/none.md"]),
        ("Run `python -m tests.gpu --full --none`.", ["no option --none in tests/gpu/__main__.py"]),
        ("```python\npython = 'examples/none.py'\n```\n", []),
        ("```bash\npython -m sphinx docs docs/_build/html\n```\n", []),
        ("```text\npython train.py --mine\n```\n", []),
    ],
)  # fmt: skip
def test_the_rules_for_commands(text, found):
    assert list(bad_commands(text)) == found


# Links


def targets(text: str) -> Iterator[str]:
    """Links, pictures, pages in tables of contents, included files."""
    for kind, _, body in blocks(text):
        if found := re.match(r"\{(?:figure|image|include|literalinclude)\} *(.*)", kind):
            yield found[1]
        elif kind.startswith("{toctree}"):
            lines = (line.strip() for line in body.splitlines())
            yield from (f"{line}.md" for line in lines if line and not line.startswith(":"))
    text = FENCE.sub("", text)
    for role in re.findall(r"\{doc\}`([^`]+)`", text):
        yield re.sub(r".*<(.+)>", r"\1", role) + ".md"
    text = re.sub(r"\{[\w:]+\}`[^`]*`", "", text)
    text = INLINE.sub("", text)
    yield from (found.strip("<>") for found in re.findall(r"\]\(\s*(<[^>]*>|[^)\s]*)", text))
    yield from re.findall(r"(?:src|href)=\"([^\"]*)\"", text)
    yield from re.findall(r"^\[[^\]]+\]:\s*(\S+)", text, re.M)
    yield from re.findall(r"(?<![(\w\"])https?://[^\s)>\"]+", text)


def anchors(text: str) -> set[str]:
    """Of headings, as GitHub makes them, and of labels."""
    headings = re.findall(r"^#+ +(.+?) *$", FENCE.sub("", text), re.M)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r"^\(([\w-]+)\)=$", text, re.M))


def bad_link(target: str, page: Path) -> str:
    """Why it leads nowhere; empty if it does not."""
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        good = parts.scheme == "https" and "." in parts.netloc and not re.search(r"[\s<>\"]", target)
        return "" if good else f"not https: {target}"
    file = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not file.exists() or ROOT not in file.parents:
        return f"no file {target}"
    if parts.fragment and parts.fragment not in anchors(file.read_text(encoding="utf-8")):
        return f"no heading {target}"
    return "" if target else "empty link"


@pages
def test_links_lead_somewhere(page):
    assert [bad for target in targets(read(page)) if (bad := bad_link(target, ROOT / page))] == []


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("[a](docs/none.md)", "no file docs/none.md"),
        ("![a\nb](docs/_static/none.png)", "no file docs/_static/none.png"),
        ("[a](../outside.md)", "no file ../outside.md"),
        ("{doc}`docs/none`", "no file docs/none.md"),
        ("{doc}`a page <docs/none>`", "no file docs/none.md"),
        ("```{include} docs/none.md\n```\n", "no file docs/none.md"),
        ("```{figure} docs/none.png\n:width: 3px\n```\n", "no file docs/none.png"),
        ("```{toctree}\n:hidden:\n\ndocs/index\ndocs/none\n```\n", "no file docs/none.md"),
        ('<img src="none.png">', "no file none.png"),
        ("[a](#none)", "no heading #none"),
        ("[a](docs/trainers.md#none)", "no heading docs/trainers.md#none"),
        ("[a](http://arxiv.org)", "not https: http://arxiv.org"),
        ("see http://arxiv.org", "not https: http://arxiv.org"),
        ("[1]: http://arxiv.org", "not https: http://arxiv.org"),
        ("[a](https:/arxiv.org)", "not https: https:/arxiv.org"),
        ("[a]()", "empty link"),
    ],
)
def test_the_rules_for_links(text, bad):
    assert {found for target in targets(text) if (found := bad_link(target, ROOT / "README.md"))} == {bad}


def test_what_is_no_bad_link():
    text = "[a](#tests) [b](docs/trainers.md#interrupt-and-resume) `[c](none)` [d](https://a.org/x_(y)) {class}`~x.Y`"
    text += "\n```text\n[e](none)\n```\n(label)=\n"
    assert [bad for target in targets(text) if (bad := bad_link(target, ROOT / "README.md"))] == []
    assert anchors("# A `b`, c: 3 × d!\n(here)=\n") == {"a-b-c-3--d", "here"}


# What pages say of the repository


def test_changelog_has_this_version():
    headings = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", read("CHANGELOG.md"), re.M)
    assert headings[0] == ("Unreleased", "")
    assert all(date for _, date in headings[1:])
    if ".dev" not in selftrain_seg.__version__:
        assert headings[1][0] == selftrain_seg.__version__


def test_papers_name_tests_that_mention_what_they_hold():
    rows = [line for line in read("docs/papers.md").splitlines() if "`~" in line]
    assert len(rows) > 30
    for row in rows:
        names = re.findall(r"`~selftrain_seg\.\w+\.(\w+)`", row)
        files = re.findall(r"`((?:\w+/)?test_\w+\.py)`", row)
        assert files, row
        text = "".join(read(f"tests/{file}") for file in files)
        assert any(name in text for name in names), row


def test_trainers_page_names_every_trainer():
    scripts = {path.name for path in (ROOT / "examples").glob("*.py")} - {
        "quickstart.py",
        "run_table.py",
        "study_real.py",
    }
    assert scripts == set(re.findall(r"^\| `(\w+\.py)` \|", read("docs/trainers.md"), re.MULTILINE))
