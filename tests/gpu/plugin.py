"""Plugin of pytest for ``python -m tests.gpu``: run every n-th test, and write what happens to a file, line by line.

A line is written as soon as a test ends, so that a process that dies or is killed leaves what it found. Where
hypothesis or scipy is not installed, stand-ins let the files that import them be collected; what needs them is skipped.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


class StandIn(ModuleType):
    """A module that is not installed: has every name, and each can be called; ``refuses`` to be used in a test."""

    def __init__(self, name: str, refuses: bool) -> None:
        super().__init__(name)
        self.refuses, self.__path__ = refuses, []
        self.__spec__ = ModuleSpec(name, None)  # torch.compile asks for it

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn(f"{self.__name__}.{name}", self.refuses)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.refuses:
            pytest.skip(f"needs {self.__name__}")
        return self


def _given(*args: Any, **kwargs: Any) -> Any:
    return pytest.mark.skip(reason="needs hypothesis")


def _unchanged(*args: Any, **kwargs: Any) -> Any:
    return lambda test: test


def stand_in() -> None:
    """Provide what is not installed, and is not there at the first run on a fresh machine."""
    if importlib.util.find_spec("hypothesis") is None:
        hypothesis = StandIn("hypothesis", refuses=False)
        hypothesis.given, hypothesis.settings, hypothesis.example = _given, _unchanged, _unchanged
        sys.modules.update({"hypothesis": hypothesis, "hypothesis.strategies": hypothesis.strategies})
    if importlib.util.find_spec("scipy") is None:
        scipy = StandIn("scipy", refuses=True)
        parts = {f"scipy.{name}": getattr(scipy, name) for name in ("ndimage", "special", "stats")}
        sys.modules.update({"scipy": scipy, **parts})


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shard", default="0/1", help="I/N: of all tests that are collected, every N-th from the I-th on")
    parser.addoption("--report-to", type=Path, help="file to which lines of JSON are added")


def pytest_configure(config: pytest.Config) -> None:
    stand_in()
    if config.option.report_to and not hasattr(config, "workerinput"):  # xdist's workers report to its controller
        config.pluginmanager.register(Recorder(config.option.report_to))


@pytest.hookimpl(trylast=True)  # after -m
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    first, step = map(int, config.option.shard.split("/"))
    items[:] = items[first::step]


class Recorder:
    def __init__(self, file: Path) -> None:
        self.file = file

    def write(self, **line: Any) -> None:
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            self.write(test=item.nodeid, outcome="collected")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.write(test=report.nodeid, outcome="failed", why=last_line(report.longreprtext))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            why = report.longrepr[2] if report.skipped else "" if report.passed else last_line(report.longreprtext)
            self.write(test=report.nodeid, outcome=report.outcome, why=why, seconds=round(report.duration, 2))


def last_line(text: str) -> str:
    """The error in pytest's report of it: the last line that starts with an E, or else the last one."""
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line[1:].strip() for line in lines if line.startswith("E ")]
    return (errors or lines or ["?"])[0 if errors else -1][:300]
