"""The check of the built pages sees what is wrong with a site."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).parent.parent / "docs" / "check_site.py"
problems = runpy.run_path(str(CHECK))["problems"]

GOOD = """<html><head>
<link rel="stylesheet" href="static/style.css?v=1"><link rel="canonical" href="https://a.org/">
<style>body { background: url("static/a%20b.png") } i { background: url(data:image/png;base64,AA==) }</style>
</head><body id="top">
<a href="#top">up</a><a href="">here</a><a href="sub/">folder</a><a href="sub/index.html#x%C3%A4">part</a>
<a href="https://arxiv.org/abs/1810.07911">paper</a><a href="mailto:a@b.org">mail</a><a href="static/style.css">css</a>
<img src="static/a%20b.png"><img src="data:image/png;base64,AA==">
<img srcset="static/a%20b.png 2x, static/a%20b.png 3x">
<svg><use href="#top"></use></svg><script src="static/script.js"></script>
</body></html>"""


@pytest.fixture
def site(tmp_path):
    (tmp_path / "static").mkdir()
    (tmp_path / "sub").mkdir()
    for name in ("a b.png", "script.js"):
        (tmp_path / "static" / name).write_bytes(b"")
    (tmp_path / "static" / "style.css").write_text("a { background: url('a b.png') }", encoding="utf-8")
    (tmp_path / "sub" / "index.html").write_text('<p id="xä"><a href="../index.html#top">up</a>', encoding="utf-8")
    (tmp_path / "index.html").write_text(GOOD, encoding="utf-8")
    return tmp_path


def test_good_site(site):
    assert problems(site) == []
    assert problems(site.parent / site.name / "sub" / "..") == []
    done = subprocess.run([sys.executable, CHECK, site], capture_output=True, text=True, check=True)
    assert done.stdout == "2 pages: all links are valid, nothing is loaded from other sites\n"


@pytest.mark.parametrize(
    ("html", "found"),
    [
        ('<a href="none.html">', "no file none.html"),
        ('<a href="none/">', "no file none/"),
        ('<a href="../outside.html">', "no file ../outside.html"),
        ('<a href="/index.html">', "no file /index.html"),
        ('<a href="#none">', "no anchor #none"),
        ('<a href="sub/index.html#top">', "no anchor sub/index.html#top"),
        ('<img src="static/none.png">', "no file static/none.png"),
        ('<img src="https://a.org/a.png">', "loads https://a.org/a.png"),
        ('<img src="//a.org/a.png">', "loads //a.org/a.png"),
        ('<img srcset="static/a%20b.png 1x, https://a.org/a.png 2x">', "loads https://a.org/a.png"),
        ('<script src="http://a.org/a.js"></script>', "loads http://a.org/a.js"),
        ('<link rel="stylesheet" href="https://a.org/a.css">', "loads https://a.org/a.css"),
        ('<link rel="preconnect" href="https://a.org">', "loads https://a.org"),
        ('<iframe src="https://a.org"></iframe>', "loads https://a.org"),
        ('<object data="https://a.org/a.svg"></object>', "loads https://a.org/a.svg"),
        ('<svg><image xlink:href="https://a.org/a.png"/></svg>', "loads https://a.org/a.png"),
        ("<style>@import 'https://a.org/a.css';</style>", "loads https://a.org/a.css"),
        ('<p style="background: url(https://a.org/a.png)">', "loads https://a.org/a.png"),
    ],
)
def test_what_is_wrong_on_a_page(site, html, found):
    (site / "index.html").write_text(GOOD.replace("</body>", html), encoding="utf-8")
    assert problems(site) == [f"index.html: {found}"]
    done = subprocess.run([sys.executable, CHECK, site], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, f"index.html: {found}\n")


@pytest.mark.parametrize(
    ("css", "found"),
    [
        ("@font-face { src: url(https://a.org/a.woff2) }", "loads https://a.org/a.woff2"),
        ("@import '//a.org/a.css';", "loads //a.org/a.css"),
        ("a { background: url(none.png) }", "no file none.png"),
    ],
)
def test_what_is_wrong_in_a_style(site, css, found):
    (site / "static" / "style.css").write_text(css, encoding="utf-8")
    assert problems(site) == [f"static/style.css: {found}"]


def test_a_folder_without_pages_is_not_good(tmp_path):
    done = subprocess.run([sys.executable, CHECK, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "index.html" in done.stderr
