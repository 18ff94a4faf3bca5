"""Each family page says when to use what, with formula, picture and example; each picture has its script."""

import doctest
import importlib.util
import inspect
import re
import shutil
from pathlib import Path

import pytest

import selftrain_seg

ROOT = Path(selftrain_seg.__file__).parent.parent
DOCS = ROOT / "docs"
FAMILIES = sorted({path.stem for path in (DOCS / "api").glob("*.md")} - {"package", "visualize"})
WITHOUT_FORMULA = {"datasets", "store"}
WITHOUT_PICTURE = {"distributed"}
PICTURE = re.compile(
    r"!\[(?P<alt>[^\]]*)\]\((?P<path>[^)]+)\)|^```\{figure\} (?P<file>\S+)\n(?P<options>(?::.*\n)*)", re.M
)


def guide(family):
    """What stands above the reference."""
    above, heading, below = (DOCS / "api" / f"{family}.md").read_text(encoding="utf-8").partition("\n## Reference\n")
    assert heading
    assert "\n.. auto" in below
    assert "\n.. auto" not in above
    return above


def example(family):
    """The doctest of a guide, without its fence."""
    (block,) = re.findall(r"^```\{doctest\}\n(.*?)^```$", guide(family), re.DOTALL | re.MULTILINE)
    return block


def pictures(text):
    """(path, alternative text) of each picture of a page."""
    for match in PICTURE.finditer(text):
        option = re.search(r"^:alt: (.*)$", match["options"] or "", re.MULTILINE)
        yield match["path"] or match["file"], (match["alt"] or (option[1] if option else "")).strip()


def to_be_chosen(family):
    """Functions and classes that a reader may choose from: no results or errors."""
    module = getattr(selftrain_seg, family)
    for name in module.__all__:
        value = getattr(module, name)
        result = inspect.isclass(value) and issubclass(value, (tuple, Exception))
        if inspect.isroutine(value) or (inspect.isclass(value) and not result):
            yield name


def test_every_name_is_described_on_one_page():
    described = [
        name
        for page in (DOCS / "api").glob("*.md")
        for name in re.findall(r"^\.\. auto\w+:: (?:[\w.]+\.)?(\w+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    rooms = {room: getattr(selftrain_seg, room).__all__ for room in selftrain_seg._SUBPACKAGES}
    public = {name for names in rooms.values() for name in names}
    assert sorted(name for name in described if name in public) == sorted(public)


def test_all_names_are_on_the_page_of_all_names():
    page = (DOCS / "all_names.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\.\. public-names:: (\w+)$", page, re.MULTILINE)) == sorted(selftrain_seg._SUBPACKAGES)
    for room in selftrain_seg._SUBPACKAGES:
        module = getattr(selftrain_seg, room)
        values = {name: getattr(module, name) for name in module.__all__}
        constants = [
            name for name, value in values.items() if not inspect.isroutine(value) and not inspect.isclass(value)
        ]
        assert [name for name in constants if f".{name}`" not in page] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_says_when_to_use_what(family):
    table = re.search(r"^\| Situation \| Use \|\n\|---\|---\|\n((?:\|.*\|\n)+)", guide(family), re.MULTILINE)
    rows = table[1].splitlines()
    assert len(rows) >= 3
    assert all(row.count(" | ") == 1 for row in rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_names_everything_there_is_to_choose(family):
    above = guide(family)
    assert [name for name in to_be_chosen(family) if not re.search(rf"\b{name}\b", above)] == []


@pytest.mark.parametrize("family", sorted({*FAMILIES} - WITHOUT_FORMULA))
def test_has_formulas(family):
    assert re.search(r"\$[^$]*\\[^$]*\$", re.sub(r"```.*?```", "", guide(family), flags=re.DOTALL))


@pytest.mark.parametrize("family", sorted({*FAMILIES} - WITHOUT_PICTURE))
def test_has_a_picture_with_alternative_text(family):
    found = list(pictures(guide(family)))
    assert found
    assert all((DOCS / "api" / path).is_file() and len(alt) >= 20 for path, alt in found)


@pytest.mark.parametrize("family", FAMILIES)
def test_example_is_short_and_shows_results(family):
    lines = example(family).splitlines()
    assert len([line for line in lines if line.startswith((">>>", "..."))]) <= 16
    assert [line for line in lines if line and not line.startswith((">>>", "..."))]


@pytest.mark.parametrize("family", FAMILIES)
def test_example_runs(family):
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    test = doctest.DocTestParser().get_doctest(example(family), {}, family, f"{family}.md", 0)
    said = []
    assert doctest.DocTestRunner(optionflags=flags).run(test, out=said.append).failed == 0, "".join(said)


def test_pictures_of_all_pages_are_described():
    for page in DOCS.rglob("*.md"):
        assert [path for path, alt in pictures(page.read_text(encoding="utf-8")) if not alt] == [], page.name


def test_every_picture_is_shown_and_made_by_a_script():
    pages = "".join(page.read_text(encoding="utf-8") for page in [*DOCS.rglob("*.md"), ROOT / "README.md"])
    scripts = [*DOCS.glob("make_*.py"), *(ROOT / "examples").rglob("*.py")]
    code = "".join(script.read_text(encoding="utf-8") for script in scripts)
    found = sorted((DOCS / "_static").rglob("*.png"))
    assert len(found) >= 9
    assert [path.name for path in found if f"/{path.name}" not in pages] == []
    assert [path.name for path in found if f'"{path.name}"' not in code] == []


def test_pictures_of_the_guide_are_small():
    sizes = {path.name: path.stat().st_size for path in (DOCS / "_static" / "guide").glob("*.png")}
    assert {name: size for name, size in sizes.items() if size > 250_000} == {}


def test_screenshots_find_pages_that_are_too_wide(tmp_path):
    spec = importlib.util.spec_from_file_location("make_screenshots", DOCS / "make_screenshots.py")
    screenshots = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(screenshots)
    if not any(map(shutil.which, screenshots.BROWSERS)):
        pytest.skip("no Chromium or Chrome")
    pages = {"wide": tmp_path / "wide.html", "narrow": tmp_path / "narrow.html"}
    pages["wide"].write_text("<body style='margin:0'><div style='width:900px;height:700px'>", encoding="utf-8")
    pages["narrow"].write_text("<body style='margin:0'><p>a few words that wrap</p>", encoding="utf-8")
    sizes = screenshots.measure(pages, 400)
    assert sizes["wide"][0] == 900
    assert sizes["narrow"][0] == 400
