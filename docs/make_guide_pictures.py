"""Draw the pictures of index, gallery and family pages: ``python docs/make_guide_pictures.py``.

The pictures are written to docs/_static/guide/. To draw only some of them, pass their names.

Needs ``pip install -e ".[examples]"``. The first run trains small networks, about four minutes on one core, and
saves them in the cache folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from pictures import (
    batchnorm,
    confidence,
    datasets,
    hero,
    losses,
    restyle,
    selectors,
    sheets,
    stopping,
    store,
    teachers,
    thresholds,
    views,
)
from pictures.scene import load
from pictures.style import save

ROOT = Path(__file__).parent.parent
PICTURES = {
    "hero.png": hero.draw,
    "predictions.png": sheets.predictions,
    "confidence-map.png": sheets.confidence,
    "selection-map.png": sheets.selection,
    "crops.png": sheets.crops,
    "mixing.png": sheets.mixing,
    "confidence.png": confidence.draw,
    "thresholds.png": thresholds.draw,
    "selectors.png": selectors.draw,
    "losses.png": losses.draw,
    "views.png": views.draw,
    "teachers.png": teachers.draw,
    "batchnorm.png": batchnorm.draw,
    "restyle.png": restyle.draw,
    "stopping.png": stopping.draw,
    "datasets.png": datasets.draw,
    "store.png": store.draw,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"pictures to draw, of {', '.join(PICTURES)}; by default all")
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "guide-pictures")
    args = parser.parse_args()
    if unknown := {*args.names} - {*PICTURES}:
        parser.error(f"no such picture: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    scene = load(args.cache)
    for name in args.names or PICTURES:
        torch.manual_seed(0)
        figure = PICTURES[name](scene)
        save(figure, ROOT / "docs" / "_static" / "guide" / name)
        print(f"docs/_static/guide/{name}")


if __name__ == "__main__":
    main()
