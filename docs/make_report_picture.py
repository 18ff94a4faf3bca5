"""Take docs/_static/report.png: ``python docs/make_report_picture.py [report.html]`` (needs Chromium).

By default, it shows the report of ``python examples/quickstart.py``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent
WIDTH, HEIGHT = 1280, 960
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync", "--hide-scrollbars")
OFFLINE = ("--disable-background-networking", "--disable-component-update")


def main() -> None:
    page = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "runs" / "quickstart" / "report.html").resolve()
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None or not page.exists():
        raise SystemExit(f"needs Chromium and {page}")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        size = (f"--window-size={WIDTH},{HEIGHT}", f"--user-data-dir={folder}/profile", f"--screenshot={shot}")
        words = [browser, *QUIET, *OFFLINE, *size, page.as_uri()]
        subprocess.run(words, check=True, capture_output=True, timeout=120)  # noqa: S603
        with Image.open(shot) as picture:
            small = picture.convert("RGB").quantize(128, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(Path(__file__).parent / "_static" / "report.png", optimize=True)


if __name__ == "__main__":
    main()
