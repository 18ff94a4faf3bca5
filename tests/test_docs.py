"""The hand-written pages name files that exist. (Names of functions are checked when the pages are built.)"""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_papers_name_tests_that_mention_what_they_hold():
    rows = [line for line in (ROOT / "docs" / "papers.md").read_text(encoding="utf-8").splitlines() if "`~" in line]
    assert len(rows) > 30
    for row in rows:
        names = re.findall(r"`~selftrain_seg\.\w+\.(\w+)`", row)
        files = re.findall(r"`(\w+/test_\w+\.py)`", row)
        assert files, row
        text = "".join((ROOT / "tests" / file).read_text(encoding="utf-8") for file in files)
        assert any(name in text for name in names), row


def test_trainers_page_names_every_trainer():
    page = (ROOT / "docs" / "trainers.md").read_text(encoding="utf-8")
    scripts = {path.name for path in (ROOT / "examples").glob("*.py")} - {"quickstart.py", "run_table.py"}
    assert scripts == set(re.findall(r"^\| `(\w+\.py)` \|", page, re.MULTILINE))
