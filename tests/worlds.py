"""Three made worlds on disk, as people bring them: two clinics, aerial tiles, streets by day and by night.

``python -m tests.worlds FOLDER`` writes them in seconds; a seed gives the same bytes always.

fundus/    source (one clinic): 16-bit grey, PNG and TIFF; masks in colours. target (another): RGB, ``.JPG``;
           masks of a few, listed in val.txt. classes.csv.
aerial/    4-channel TIFF (red, green, blue, near infrared); masks as grey ids in gaps, 0, 2, 7, 40. Source and target
           differ in season. classes.json.
streets/   JPEG in nested folders, masks beside them as ``x_mask.png`` with a palette; by day and by night, the latter
           without masks but for those in val/. classes.json.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

import numpy as np
from PIL import Image

FUNDUS = {"background": (0, 0, 0), "vessel": (255, 0, 0), "disc": (0, 255, 0)}
AERIAL = {0: "ground", 2: "water", 7: "roof", 40: "tree"}
STREETS = {"road": (128, 64, 128), "sky": (70, 130, 180), "car": (0, 0, 142), "person": (220, 20, 60)}


def write(folder: Path, *, size: int = 64, count: int = 6, seed: int = 0) -> Path:
    """Write all three; ``count`` images a domain of about ``size`` pixels."""
    folder = Path(folder)
    for number, world in enumerate((fundus, aerial, streets)):
        world(folder / world.__name__, size, count, np.random.default_rng((seed, number)))
    return folder


def fundus(root: Path, size: int, count: int, rng: np.random.Generator) -> None:
    colours = np.array([*FUNDUS.values()], np.uint8)
    for number in range(count):
        labels, image = eye(size, rng)
        grey = 3000 + 40000 * image.mean(2) + rng.normal(0, 400, labels.shape)  # of a camera of 16 bits
        place = root / "source" / "images" / f"eye {number:02d}{'.png' if number % 2 else '.tif'}"
        save(place, grey.clip(0, 65535).astype(np.uint16))
        save(root / "source" / "masks" / f"eye {number:02d}.png", colours[labels])
    kept = []
    for number in range(count):
        labels, image = eye(size + 16, rng)
        image = 1 - (1 - image) * (0.3, 0.7, 0.9) + rng.normal(0, 0.02, image.shape)
        save(root / "target" / "images" / f"IMG_{number:04d}.JPG", eight_bits(image), quality=95)
        if number >= count - max(1, count // 3):
            kept.append(f"IMG_{number:04d}")
            save(root / "target" / "masks" / f"IMG_{number:04d}.png", colours[labels])
    (root / "val.txt").write_text("".join(f"{name}\n" for name in kept))
    lines = [f"{name},{red},{green},{blue}\n" for name, (red, green, blue) in FUNDUS.items()]
    (root / "classes.csv").write_text("name,r,g,b\n" + "".join(lines))


def eye(size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and colours in [0, 1]: dark vessels from a bright disc."""
    rows, columns = np.mgrid[:size, :size] / size
    row, column = rng.uniform(0.35, 0.65, 2)
    labels = np.zeros((size, size), np.uint8)
    for angle in rng.uniform(0, 2 * np.pi, 7):
        along = (columns - column) * np.cos(angle) + (rows - row) * np.sin(angle)
        bent = 0.05 * np.sin(9 * along + rng.uniform(0, 6))
        across = (rows - row) * np.cos(angle) - (columns - column) * np.sin(angle) + bent
        labels[(along > 0) & (np.abs(across) < 0.03 * (1.2 - along))] = 1
    labels[(rows - row) ** 2 + (columns - column) ** 2 < 0.12**2] = 2
    colours = np.array([(0.7, 0.35, 0.2), (0.4, 0.12, 0.1), (0.95, 0.8, 0.5)])
    shade = 1 - 0.6 * ((rows - 0.5) ** 2 + (columns - 0.5) ** 2)
    return labels, colours[labels] * shade[..., None] + rng.normal(0, 0.02, (size, size, 1))


def aerial(root: Path, size: int, count: int, rng: np.random.Generator) -> None:
    ids = np.array([*AERIAL], np.uint8)
    summer = np.array([(0.5, 0.45, 0.35, 0.4), (0.1, 0.2, 0.35, 0.05), (0.7, 0.3, 0.25, 0.3), (0.15, 0.4, 0.15, 0.8)])
    winter = np.array([(0.7, 0.7, 0.65, 0.3), (0.2, 0.25, 0.3, 0.1), (0.6, 0.4, 0.4, 0.3), (0.35, 0.3, 0.25, 0.45)])
    for domain, colours in (("source", summer), ("target", winter)):
        for number in range(count):
            labels = land(2 * size, rng)
            image = colours[labels] + rng.normal(0, 0.05, (*labels.shape, 4))
            save(root / domain / "images" / f"tile_{number}.tif", eight_bits(image))
            save(root / domain / "masks" / f"tile_{number}.tif", ids[labels])
    (root / "classes.json").write_text(json.dumps({str(key): name for key, name in AERIAL.items()}))


def land(size: int, rng: np.random.Generator) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size] / size
    labels = np.zeros((size, size), np.uint8)
    labels[np.abs(rows - rng.uniform(0.2, 0.8) - 0.1 * np.sin(7 * columns + rng.uniform(0, 6))) < 0.08] = 1
    for row, column, height, width in rng.uniform((0, 0, 0.05, 0.05), (0.9, 0.9, 0.15, 0.2), (10, 4)):
        labels[(rows > row) & (rows < row + height) & (columns > column) & (columns < column + width)] = 2
    for row, column, radius in rng.uniform((0, 0, 0.02), (1, 1, 0.06), (25, 3)):
        labels[(rows - row) ** 2 + (columns - column) ** 2 < radius**2] = 3
    return labels


def streets(root: Path, size: int, count: int, rng: np.random.Generator) -> None:
    palette = bytes(np.array([*STREETS.values()], np.uint8).tobytes())
    for domain, light in (("day", 1.0), ("night", 0.35)):
        for split, number in [("train", n) for n in range(count)] + [("val", n) for n in range(max(1, count // 3))]:
            labels = street(size, 2 * size, rng)
            colours = np.array([(0.4, 0.4, 0.42), (0.6, 0.75, 0.95), (0.7, 0.1, 0.1), (0.8, 0.6, 0.3)])
            image = light * colours[labels] + rng.normal(0, 0.03, (*labels.shape, 3))
            town = root / domain / split / ("north" if number % 2 else "south")
            save(town / f"{number:03d}.jpg", eight_bits(image), quality=95)
            if domain == "day" or split == "val":
                save(town / f"{number:03d}_mask.png", labels, palette)
    entries = [{"name": name, "ids": [k], "colour": list(c)} for k, (name, c) in enumerate(STREETS.items())]
    (root / "classes.json").write_text(json.dumps(entries))


def street(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width] / height
    labels = (rows < rng.uniform(0.4, 0.5)).astype(np.uint8)
    for column, row in rng.uniform((0, 0.45), (1.8, 0.8), (3, 2)):
        labels[(np.abs(rows - row) < 0.09) & (np.abs(columns - column) < 0.18)] = 2
    for column, row in rng.uniform((0, 0.45), (2, 0.75), (4, 2)):
        labels[(np.abs(rows - row) < 0.12) & (np.abs(columns - column) < 0.035)] = 3
    return labels


def eight_bits(image: np.ndarray) -> np.ndarray:
    return (255 * image).round().clip(0, 255).astype(np.uint8)


def save(path: Path, pixels: np.ndarray, palette: bytes | None = None, **options: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette)
    image.save(path, **options)


def commands(root: Path) -> list[list[str]]:
    """A short training on each world, word by word."""
    worlds = {
        "fundus": """--source-images {}/source/images --source-masks {}/source/masks --target-images {}/target/images
            --val-images {}/target/images --val-masks {}/target/masks --val-names {}/val.txt
            --classes {}/classes.csv""",
        "aerial": """--source-images {}/source/images --source-masks {}/source/masks --target-images {}/target/images
            --target-masks {}/target/masks --classes {}/classes.json --channels 4 --tile 64 64""",
        "streets": """--source-images {}/day/train --source-masks {}/day/train --mask-suffix _mask
            --target-images {}/night/train --val-images {}/night/val --val-masks {}/night/val
            --classes {}/classes.json""",
    }
    start = "python examples/source_only.py --data folders --network small-unet --smoke --out runs"
    return [
        [*f"{start}/{world}".split(), *(word.replace("{}", str(root / world)) for word in text.split())]
        for world, text in worlds.items()
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write three made worlds, to try your own data on.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=64, help="of an image, in pixels")
    parser.add_argument("--count", type=int, default=6, help="images a domain")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    root = write(arguments.folder, size=arguments.size, count=arguments.count, seed=arguments.seed)
    lines = ["A trainer on each, in seconds, from the root of the repository:", *map(shlex.join, commands(root))]
    sys.stdout.write("".join(f"{line}\n" for line in lines))
