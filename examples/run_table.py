"""Run the reference trainers and their controls on the embedded benchmark and write the table of the documentation.

``python examples/run_table.py`` takes about two hours on two cores; a killed run goes on where it was. Every row is a
command that can be run by hand: the table names it.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from _common.files import code_digest, save_json

HERE = Path(__file__).parent
CODE = code_digest(*sorted(HERE.glob("*.py")))  # numbers of other code do not belong into one table

# name -> (script, its options); {source} is the model trained on the source domain.
SOURCE = "source only"
BASELINE = "BatchNorm re-estimated"
CONTROLS = {
    SOURCE: "source_only.py",
    BASELINE: "source_only.py --init {source} --steps 0 --reestimate-bn 1",
    "more source steps": "source_only.py --init {source} --steps 360 --lr 2e-3 --reestimate-bn 1",
    "one global threshold": "cbst.py --init {source} --policy global",
}
TRAINERS = {
    "CBST": "cbst.py --init {source}",
    "CBST with spatial prior": "cbst.py --init {source} --spatial-prior",
    "CRST-MRKLD": "crst.py --init {source} --regularizer mrkld",
    "CRST-MRENT": "crst.py --init {source} --regularizer mrent",
    "CRST-MRL2": "crst.py --init {source} --regularizer mrl2",
    "CRST-LRENT": "crst.py --init {source} --regularizer lrent",
    "IAST": "iast.py --init {source}",
    "DT-ST (source-free)": "dtst.py --init {source}",
    "DST-CBC": "dst_cbc.py --init {source}",
    "DMT": "dst_cbc.py --init {source} --mutual",
    "mean teacher": "mean_teacher.py --init {source} --teacher mean",
    "dual teacher": "mean_teacher.py --init {source} --teacher dual",
    "dynamic teacher": "mean_teacher.py --init {source} --teacher dynamic",
    "SAC": "sac.py --init {source}",
    "UniMatch": "unimatch.py --init {source}",
    "MIC": "mic.py --init {source}",
    "DAFormer (MIC without masks)": "mic.py --init {source} --mask-weight 0",
    "recommended": "recommended.py --init {source}",
}
BOUND = {
    "target labels (bound)": "source_only.py --domain target --init {source} --steps 360 --lr 2e-3 --reestimate-bn 1"
}
ROWS = {**CONTROLS, **TRAINERS, **BOUND}


def command(name: str, source: str) -> str:
    """The command of a row, without the options that all share."""
    return f"python examples/{ROWS[name].format(source=source)}"


def run(name: str, seed: int, out: Path, *options: str) -> dict[str, Any]:
    """Run one row with one seed, unless its result is there; returns ``result.json``."""
    folder = out / f"seed{seed}" / _slug(name)
    result, made_by = folder / "result.json", folder / "made-by.json"
    made = {"row": ROWS[name], "options": list(options), "code": CODE}
    if made_by.exists() and json.loads(made_by.read_text(encoding="utf-8")) != made:
        raise SystemExit(f"{folder}: made by another command or by other code; remove it, or choose another --out")
    if not result.exists():
        source = out / f"seed{seed}" / _slug(SOURCE) / "model.pt"
        words = shlex.split(ROWS[name].format(source=shlex.quote(str(source))))
        words = [sys.executable, str(HERE / words[0]), *words[1:], "--seed", str(seed), "--out", str(folder)]
        words += ["--root", str(out / f"seed{seed}" / "streets"), *options]
        save_json(made, made_by)
        with open(folder / "log.txt", "w", encoding="utf-8") as log:
            done = subprocess.run(  # noqa: S603
                words, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
        if done.returncode:
            raise SystemExit(f"{name}, seed {seed}: exit status {done.returncode}, see {folder / 'log.txt'}")
        print(f"{name}, seed {seed}: mIoU {json.loads(result.read_text())['mIoU']:.1f}", flush=True)
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())


def spread(values: list[float]) -> str:
    """Mean ± sample standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ± {deviation:.1f}"


def _mean(values: list[float | None]) -> str:
    """Of those that are there: a class that never occurs has no IoU."""
    there = [value for value in values if value is not None]
    return f"{statistics.mean(there):.0f}" if there else "–"


def write(results: dict[str, list[dict[str, Any]]], seeds: list[int], path: Path) -> None:
    """Write the tables, complete or not at all."""
    base = {seed: found["mIoU"] for seed, found in zip(seeds, results[BASELINE], strict=True)}
    lines = [
        "<!-- written by examples/run_table.py -->",
        "",
        f"Seeds {', '.join(map(str, seeds))}; mean ± standard deviation, IoU in %.",
        "",
        "| | mIoU | rare classes | over BatchNorm re-estimated | beats it with every seed | minutes | memory, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        gains = [one["mIoU"] - base[seed] for seed, one in zip(seeds, found, strict=True)]
        bold = "**" if name in TRAINERS else ""
        cells = [
            f"{bold}{name}{bold}",
            spread([one["mIoU"] for one in found]),
            spread([one["rare"] for one in found]),
            "" if name == BASELINE else f"{statistics.mean(gains):+.1f}",
            "" if name not in TRAINERS else ("yes" if min(gains) > 0 else "no"),
            f"{statistics.mean([one['seconds'] for one in found]) / 60:.1f}",
            f"{max(one['peak_memory_mb'] for one in found):.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    classes = list(results[BASELINE][0]["iou"])
    lines += [
        "",
        "IoU of each class, mean over the seeds:",
        "",
        f"| | {' | '.join(classes)} |",
        "|---" * (len(classes) + 1) + "|",
    ]
    for name, found in results.items():
        cells = [_mean([one["iou"][label] for one in found]) for label in classes]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "The commands, each with `--seed` and `--out`:", "", "```text"]
    lines += [f"{name:<26}{command(name, 'MODEL')}" for name in results]
    lines += ["```", ""]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("\n".join(lines), encoding="utf-8")
    temporary.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5], help="settings were chosen on 0 and 1")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time, each on one core")
    parser.add_argument("--smoke", action="store_true", help="a few steps only, to see that everything runs")
    parser.add_argument("--out", type=Path, default=Path("runs/table"))
    parser.add_argument("--write", type=Path, default=HERE.parent / "docs" / "_generated" / "results.md")
    args = parser.parse_args()
    rows = [name for name in ROWS if name in {SOURCE, BASELINE, *args.rows}]
    options = ["--smoke"] if args.smoke else []
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda seed: run(SOURCE, seed, args.out, *options), args.seeds))
        pending = {name: [pool.submit(run, name, seed, args.out, *options) for seed in args.seeds] for name in rows}
        results = {name: [one.result() for one in found] for name, found in pending.items()}
    write(results, args.seeds, args.write)
    print(f"written: {args.write}")


if __name__ == "__main__":
    main()
