"""Run the reference trainers and their controls, and write the tables of the documentation.

``python examples/run_table.py`` runs all rows on the synthetic benchmark, in about two hours on two cores. With
``--data folders`` it runs a few rows on your own images. Options that it does not know, such as ``--network`` and
``--classes``, are passed to each trainer; those in ``--adaptation="--lr 5e-5"`` are passed to all rows except the
source models. The same command resumes an interrupted one. Each row is a command, which the tables list.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from _common.defaults import TABLE, defaults
from _common.files import code_digest, save_json, save_text
from _study.tables import on_folders, on_streets

HERE = Path(__file__).parent
CODE = code_digest(TABLE, *sorted(HERE.glob("*.py")))  # results of different code are not mixed in one table

# Name of a row -> script and options; {source} is the model trained on the source domain.
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
    "CBST, prior renormalised": "cbst.py --init {source} --spatial-prior --normalise-prior",
    "CRST-MRKLD": "crst.py --init {source} --regularizer mrkld",
    "CRST-MRENT": "crst.py --init {source} --regularizer mrent",
    "CRST-MRL2": "crst.py --init {source} --regularizer mrl2",
    "CRST-LRENT": "crst.py --init {source} --regularizer lrent",
    "IAST": "iast.py --init {source}",
    "DT-ST (source-free)": "dtst.py --init {source}",
    "DST-CBC": "dst_cbc.py --init {source}",
    "DMT": "dst_cbc.py --init {source} --mutual",
    "online self-training": "online.py --init {source}",
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
STREETS = {**CONTROLS, **TRAINERS, **BOUND}
# On your own images, all rows take the same number of steps; methods with rounds divide them among the rounds. In each
# step, the control sees as many images as the others, all from the source, and learns at the rate of CBST.
CONTROL = "more source steps"
FOLDERS = {
    SOURCE: "source_only.py --steps {source_steps}",
    BASELINE: "source_only.py --init {source} --steps 0 --reestimate-bn 1 --no-frozen-bn",
    CONTROL: "source_only.py --init {source} --steps {steps} --batch {twice} --lr {lr:g} --reestimate-bn 1",
    "one global threshold": "cbst.py --init {source} --rounds {rounds} --steps {of_round} --batch {batch} "
    "--policy global",
    "CBST": "cbst.py --init {source} --rounds {rounds} --steps {of_round} --batch {batch}",
    "mean teacher": "mean_teacher.py --init {source} --steps {steps} --batch {batch}",
    "recommended": "recommended.py --init {source} --steps {steps} --batch {batch} --eval-every {of_round}",
    "target labels (bound)": "source_only.py --domain target --init {source} --steps {steps} --batch {twice} "
    "--lr {lr:g}",
}


def rows_of(args: argparse.Namespace) -> dict[str, str]:
    """Map the name of each row to its script and options; {source} stands for the source model."""
    if "--data" not in args.shared:
        return STREETS
    sizes = {"steps": args.steps, "of_round": args.steps // args.rounds, "rounds": args.rounds}
    sizes |= {"batch": args.batch, "twice": 2 * args.batch, "source_steps": args.source_steps, "source": "{source}"}
    sizes["lr"] = defaults("cbst", "folders", _network(args.shared))["lr"]
    found = {name: words.format(**sizes) for name, words in FOLDERS.items()}
    return {name: f"{words} {args.adaptation}".strip() if name != SOURCE else words for name, words in found.items()}


def _network(options: list[str]) -> str:
    """Return ``--network``, or the trainers' default."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--network", default="deeplabv2_resnet101")
    return str(parser.parse_known_args(options)[0].network)


def run(name: str, seed: int, row: str, out: Path, *options: str) -> dict[str, Any]:
    """Run a row with one seed unless its result exists; return ``result.json`` with the folder as "folder"."""
    folder = out / f"seed{seed}" / _slug(name)
    result, made_by = folder / "result.json", folder / "made-by.json"
    made = {"row": row, "options": list(options), "code": CODE}
    if made_by.exists() and json.loads(made_by.read_text(encoding="utf-8")) != made:
        raise SystemExit(f"{folder}: made by another command or by other code; remove it, or choose another --out")
    exists = result.exists()
    if not exists:
        source = out / f"seed{seed}" / _slug(SOURCE) / "model.pt"
        words = shlex.split(row.format(source=shlex.quote(str(source))))
        words = [sys.executable, str(HERE / words[0]), *words[1:], "--seed", str(seed), "--out", str(folder)]
        root = [] if "--data" in options else ["--root", str(out / f"seed{seed}" / "streets")]
        words += [*root, *options]
        save_json(made, made_by)
        with open(folder / "log.txt", "w", encoding="utf-8") as log:
            done = subprocess.run(  # noqa: S603
                words, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
        if done.returncode:
            raise SystemExit(f"{name}, seed {seed}: exit status {done.returncode}, see {folder / 'log.txt'}")
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    if "mIoU" not in found:
        raise SystemExit(f"{result}: expected mIoU, which needs validation masks, got {', '.join(found)}")
    if not exists:
        print(f"{name}, seed {seed}: mIoU {found['mIoU']:.1f}", flush=True)
    return {**found, "folder": folder}


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[3, 4, 5], help="settings were chosen with seeds 0 and 1"
    )
    parser.add_argument("--rows", nargs="+", help="rows to run, by default all; --rows ? lists them")
    parser.add_argument("--jobs", type=int, default=2, help="parallel runs, each on one core")
    parser.add_argument("--smoke", action="store_true", help="a few steps only, to see that everything runs")
    parser.add_argument("--out", type=Path, default=Path("runs/table"), help="folder of the runs")
    page = HERE.parent / "docs" / "_generated" / "results.md"
    parser.add_argument("--write", type=Path, default=page, help="markdown file of the tables")
    own = parser.add_argument_group("with --data")
    own.add_argument("--source-steps", type=int, default=1500, help="steps of the source models")
    own.add_argument("--steps", type=int, default=120, help="steps of adaptation and of its controls")
    own.add_argument("--rounds", type=int, default=2, help="rounds that divide these steps")
    own.add_argument("--batch", type=int, default=2, help="images of each domain per step")
    own.add_argument("--adaptation", default="", help="options of all rows except the source models")
    args, shared = parser.parse_known_args()
    args.shared = [part for word in shared for part in (word.split("=", 1) if word.startswith("--data=") else [word])]
    if args.rounds < 1 or args.steps % args.rounds:
        parser.error(f"--steps {args.steps} --rounds {args.rounds}: expected rounds that share the steps evenly")
    rows = rows_of(args)
    if unknown := [name for name in args.rows or () if name not in rows]:
        parser.error(f"--rows {' '.join(unknown)}: expected some of {', '.join(rows)}")
    first = {SOURCE, BASELINE} if rows is STREETS else {SOURCE, CONTROL}
    rows = {name: row for name, row in rows.items() if name in {*first, *(args.rows or rows)}}
    options = [*args.shared, *(["--smoke"] if args.smoke else [])]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda seed: run(SOURCE, seed, rows[SOURCE], args.out, *options), args.seeds))
        pending = {
            name: [pool.submit(run, name, seed, row, args.out, *options) for seed in args.seeds]
            for name, row in rows.items()
        }
        results = {name: [one.result() for one in found] for name, found in pending.items()}
    if "--data" in args.shared:
        text = on_folders(results, args.seeds, CONTROL)
    else:
        text = on_streets(results, args.seeds, BASELINE, set(TRAINERS))
    width = max(map(len, rows)) + 2
    commands = [f"{name:<{width}}python examples/{row.format(source='MODEL')}" for name, row in rows.items()]
    lines = ["<!-- written by examples/run_table.py -->", "", text, "The commands, each with `--seed` and `--out`:"]
    save_text("\n".join([*lines, "", "```text", *commands, "```", ""]), args.write)
    print(f"written: {args.write}")


if __name__ == "__main__":
    main()
