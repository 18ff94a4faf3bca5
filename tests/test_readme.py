"""The README does what it says: its Python runs, its commands point at files that exist."""

import re
import shlex
from pathlib import Path

import pytest

from tests.test_docs import options as options_of

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PYTHON = [body for language, body in FENCE.findall(README) if language == "python"]
COMMANDS = dict(re.findall(r"^<!-- command: (\w+) -->\n+```bash\n(.*?)^```$", README, re.DOTALL | re.MULTILINE))


def test_shows_how_to_plug_it_in():
    assert PYTHON
    assert any("selftrain_seg" in body for body in PYTHON)


def test_exactly_two_commands():
    assert sorted(COMMANDS) == ["quickstart", "tests"]
    assert [language for language, _ in FENCE.findall(README)].count("bash") == 2


@pytest.mark.parametrize("name", ["quickstart", "tests"])
def test_commands_name_existing_files(name):
    words = shlex.split(COMMANDS[name], comments=True)
    paths = [word for word in words if word.endswith(".py") or ("/" in word and not word.startswith("-"))]
    assert [path for path in paths if not (ROOT / path).exists()] == []
    if name == "quickstart":
        assert "examples/quickstart.py" in paths
    else:
        assert "pytest" in words


def test_commands_install_first():
    for command in COMMANDS.values():
        assert re.search(r"pip install [^\n]*\.\[", command)


def test_pictures_and_links_exist():
    for target in re.findall(r"\]\(([^)#\s]+)", README) + re.findall(r"src=\"([^\"]+)\"", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def options(*files: Path) -> set[str]:
    return {option for file in files for option in options_of(file)}


def test_documented_options_exist():
    exists = options(ROOT / "examples" / "quickstart.py")
    page = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", page)) <= exists
    assert exists <= set(re.findall(r"--[a-z][\w-]*", page))
    everywhere = options(*(ROOT / "examples").rglob("*.py"))
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", README)) <= everywhere
