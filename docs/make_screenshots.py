"""Take screenshots of every built page, at desktop and phone width, light and dark; fail if a page is too wide.

``sphinx-build docs docs/_build/html && python docs/make_screenshots.py docs/_build/html screenshots``. Needs Chromium
or Chrome, and no network. To take only some pages, add their names, such as ``api/losses``.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

WIDTHS = {"desktop": 1280, "phone": 390}
SCHEMES = {"dark": 0, "light": 1}
TALLEST = 16000  # what Chromium draws in one piece

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--allow-file-access-from-files",
)

# Every page in a frame as wide as the window, and what it needs below. The last flag above lets it be asked.
MEASURE = """<body><script>
for (const [name, url] of PAGES) {
  const frame = document.createElement("iframe");
  frame.width = WIDTH;
  frame.src = url;
  frame.onload = () => {
    const root = frame.contentDocument.documentElement;
    const line = document.createElement("p");
    line.textContent = `${name} ${root.scrollWidth} ${root.scrollHeight}`;
    document.body.append(line);
  };
  document.body.append(frame);
}
</script>"""


def browse(url: str, *flags: str) -> str:
    """Run the installed browser with a temporary profile, and return its output."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise SystemExit(f"no browser found: {', '.join(BROWSERS)}")
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, *FLAGS, f"--user-data-dir={profile}", *flags, url]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout  # noqa: S603


def measure(pages: dict[str, Path], width: int) -> dict[str, tuple[int, int]]:
    """Return the width and height of each page in a window of this width."""
    urls = json.dumps([(name, path.as_uri()) for name, path in pages.items()])
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "measure.html"
        page.write_text(MEASURE.replace("PAGES", urls).replace("WIDTH", str(width)), encoding="utf-8")
        found = re.findall(r"<p>(\S+) (\d+) (\d+)</p>", browse(page.as_uri(), "--dump-dom"))
    sizes = {name: (int(wide), int(high)) for name, wide, high in found}
    if missing := pages.keys() - sizes.keys():
        raise SystemExit(f"not measured: {sorted(missing)}")
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("html", type=Path, help="folder that sphinx-build wrote")
    parser.add_argument("out", type=Path, help="folder for the screenshots")
    parser.add_argument("pages", nargs="*", help="names of pages; all by default")
    args = parser.parse_args()
    html = args.html.resolve()
    everything = {
        path.relative_to(html).with_suffix("").as_posix(): path
        for path in sorted(html.rglob("*.html"))
        if not path.relative_to(html).parts[0].startswith("_")
    }
    pages = {name: everything[name] for name in args.pages or everything}
    too_wide = []
    for device, width in WIDTHS.items():
        for name, (wide, high) in measure(pages, width).items():
            if wide > width:
                too_wide.append(f"{name}: {wide} px wide in a {device} window of {width}")
            for scheme, number in SCHEMES.items():
                file = args.out.resolve() / f"{name.replace('/', '-')}-{device}-{scheme}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                size = f"--window-size={width},{min(high, TALLEST)}"
                browse(
                    pages[name].as_uri(),
                    size,
                    f"--blink-settings=preferredColorScheme={number}",
                    f"--screenshot={file}",
                )
                print(file)
    if too_wide:
        sys.exit("\n".join(too_wide))


if __name__ == "__main__":
    main()
