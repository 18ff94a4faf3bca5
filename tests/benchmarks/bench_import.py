"""What ``import selftrain_seg`` costs beside ``import torch``: whole commands, each in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys

from tests.benchmarks._harness import Report

VERSIONS = {"nothing": "pass", "`torch`": "import torch", "`selftrain_seg`": "import selftrain_seg"}


def run(report: Report, *, rounds: int) -> None:
    def command(statement):
        return lambda: subprocess.run([sys.executable, "-c", statement], check=True)

    versions = {name: command(statement) for name, statement in VERSIONS.items()}
    for call in versions.values():  # files get into the system's cache
        call()
    measured = report.compare("python -c import", versions, rounds=rounds, memory=False)
    report.promise(
        "import: `selftrain_seg` / `torch`", measured["`selftrain_seg`"].median_ms / measured["`torch`"].median_ms, 1.1
    )
