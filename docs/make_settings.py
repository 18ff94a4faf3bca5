"""Write docs/_generated/settings.md from examples/settings.json: ``python docs/make_settings.py``."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "examples" / "settings.json"
PAGE = ROOT / "docs" / "_generated" / "settings.md"

NAMES = {"streets": "streets", "folders": "your own images", "gta5": "GTA5", "synthia": "SYNTHIA", "voc": "VOC"}
NAMES |= {"cityscapes": "Cityscapes", "efficientnet-lite0-unet": "`efficientnet-lite0-unet`"}
INTRODUCTIONS = {
    "source_only": "GTA5: CRST's source model. SYNTHIA: DT-ST's. VOC and Cityscapes: the labelled images alone, "
    "from which DST-CBC starts.",
    "cbst": "",
    "crst": "The code is published for GTA5 only; SYNTHIA has the same settings.",
    "iast": "Steps and batch sizes are those for the V100.",
    "dtst": "",
    "dst_cbc": "VOC: 1 label in 106. Cityscapes: 1 label in 8. `--mutual` is DMT.",
    "online": "VOC: DST-CBC's ablation, 1 label in 20.",
    "mean_teacher": "GTA5: DACS, for `--teacher mean`. VOC: Dual Teacher, whose code is published for ADE20K only.",
    "sac": "For DeepLabV2 on ResNet-101, starting from the baseline that SAC calls ABN.",
    "unimatch": "VOC: 92 images with labels. Cityscapes: 1 label in 16.",
    "recommended": "This recipe is not from a paper.",
    "mic": "MIC on DAFormer, not on HRDA. `--mask-weight 0` is DAFormer.",
}


def shown(value: Any) -> str:
    """Format a value as on the command line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(shown, value))
    if isinstance(value, float):
        mantissa, _, exponent = f"{value:.5g}".partition("e")
        return f"{mantissa}e{int(exponent)}" if exponent else mantissa
    return f"{value:,}" if isinstance(value, int) else str(value)


def sentence(text: str) -> str:
    """Format a reason, with options as code, since ``--`` in plain text becomes a dash."""
    text = re.sub(r"(?<![\w-])--[a-z][a-z-]*", r"`\g<0>`", text)
    return text[:1].upper() + text[1:] + "." * (not text.endswith("."))


def breakable(file: str) -> str:
    """Allow line breaks in the name of a file, for narrow screens."""
    return re.sub(r"[/_]", r"\g<0><wbr>", file)


def described(cell: dict[str, Any]) -> str:
    """Format a cell: the published value and ours, the reason, and the source."""
    published, ours = cell["published"], cell["ours"]
    if ours is None:
        values = f"{shown(published)} → –"
    elif published is None:
        values = f"**{shown(ours)}**"
    elif published == ours:
        values = f"**{shown(ours)}**, as published"
    else:
        values = f"{shown(published)} → **{shown(ours)}**"
    why = f" {sentence(cell['why'])}" if cell["why"] else ""
    where = f" *{breakable(cell['where'])}*" if cell["where"] else ""
    return f"{values}.{why}{where}"


def title(setting: str, cells: dict[str, Any]) -> str:
    """Return the option of a setting, or its name if there is no option."""
    if all(cell["ours"] is None for cell in cells.values()):
        return setting.replace("_", " ")
    option, _, choice = setting.partition("_") if setting.startswith("alpha_") else (setting, "", "")
    return f"`--{option.replace('_', '-')}`" + f" of {choice}" * bool(choice)


def rows(settings: dict[str, Any]) -> list[str]:
    """Return one row per setting; data sets with the same cell share a line."""
    out = []
    for setting, cells in settings.items():
        lines: dict[str, list[str]] = {}
        for column in sorted(cells, key=list(NAMES).index):
            lines.setdefault(described(cells[column]), []).append(NAMES[column])
        text = "<br>".join(f"{', '.join(names)}: {line}" for line, names in lines.items())
        out.append(f"| {title(setting, cells)} | {text} |")
    return out


def render() -> str:
    """Return the tables of all trainers."""
    parts = []
    for trainer, settings in json.loads(TABLE.read_text(encoding="utf-8")).items():
        head = [f"## {trainer}.py", ""]
        head += [INTRODUCTIONS[trainer], ""] if INTRODUCTIONS.get(trainer) else []
        parts += [*head, "| setting | published → ours |", "|---|---|", *rows(settings), ""]
    return "\n".join(parts)


if __name__ == "__main__":
    page = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    page.write_text(render(), encoding="utf-8")
    print(f"wrote {page}")
