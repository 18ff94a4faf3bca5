"""CITATION.cff says what the package says of itself."""

import re
from pathlib import Path

import pytest

import selftrain_seg

ROOT = Path(__file__).parent.parent


@pytest.fixture
def citation():
    """Top-level keys with a value on their line."""
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    return dict(re.findall(r'^([\w-]+): "?(.+?)"?$', text, re.MULTILINE))


def test_citation_is_of_this_version(citation):
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert citation["version"] == selftrain_seg.__version__
    assert f'\nlicense = "{citation["license"]}"\n' in project
    assert citation["title"].startswith("selftrain_seg: ")


def test_citation_has_what_the_format_requires(citation):
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["message"]
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    authors = re.search(r"^authors:\n((?:  .*\n)+)", text, re.MULTILINE)
    assert re.fullmatch(r"(  - name: .+\n)+", authors[1])
