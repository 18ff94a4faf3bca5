"""Write the report of run folders, also of unfinished runs: ``python -m selftrain_seg.visualize runs/cbst``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from selftrain_seg.visualize.report import report


def main() -> None:
    """Write the report of each folder on the command line."""
    parser = argparse.ArgumentParser(prog="python -m selftrain_seg.visualize", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--out", type=Path, help="file to write instead of RUN/report.html; for one run only")
    args = parser.parse_args()
    if args.out is not None and len(args.runs) > 1:
        parser.error("--out takes the report of one run")
    for run in args.runs:
        try:
            sys.stdout.write(f"{report(run, args.out)}\n")
        except (OSError, ValueError, ImportError) as error:
            parser.exit(1, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
