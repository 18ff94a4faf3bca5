"""What was measured, beside what is wanted, as text for a terminal and for the documentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tests.gpu import cases, run_tests, steps
from tests.gpu.cases import OPERATIONS, Row

Rows = Mapping[str, Mapping[str, Any]]
SMOKE = "These figures mean nothing: a run with tiny sizes that only shows that the command works."
BLANK, OUT_OF_TIME = "–", "out of time"


def value_of(rows: Rows, row: Row, name: str) -> float | None:
    return rows.get(row.key, {}).get(name)


def verdict(value: float | None, limit: float | None, digits: int = 2) -> str:
    """The value and whether it keeps to the limit; a mark of what was not measured."""
    if value is None:
        return BLANK
    mark = "" if limit is None else " ✓" if value <= limit else " ✗"
    return f"{value:.{digits}f}{mark}"


def launches_of(rows: Rows, name: str) -> float | None:
    """The most launches with any dtype and layout."""
    found = [value_of(rows, Row(name, "ours", 19, d, m), "launches") for d in cases.DTYPES for m in cases.LAYOUTS]
    return max((value for value in found if value is not None), default=None)


def wall_share(rows: Rows, name: str, size: str) -> float | None:
    """A loss's wall time beside that of torch's cross entropy."""
    ours = value_of(rows, Row(name, size=size), "wall")
    torchs = value_of(rows, Row(cases.BASELINE, "plain torch", size=size), "wall")
    return ours / torchs if ours and torchs else None


def targets(rows: Rows) -> list[str]:
    """The table of targets: passes and launches of each operation, wall time of the losses."""
    head = ["operation", *(f"{d}, {m}" for d in cases.DTYPES for m in cases.LAYOUTS), "launches"]
    lines = table_head([*head, "wall / `F.cross_entropy`", "small"])
    for name, operation in OPERATIONS.items():
        if operation.passes is None and operation.launches is None:
            continue
        cells = [name]
        for number, dtype in enumerate(cases.DTYPES):
            limit = operation.passes[number] if operation.passes else None
            for layout in cases.LAYOUTS:
                value = value_of(rows, Row(name, "ours", 19, dtype, layout), "passes") if operation.passes else None
                cells.append(verdict(value, limit) + (f" (≤ {limit:g})" if limit is not None else ""))
        cells.append(f"{verdict(launches_of(rows, name), operation.launches, 0)} (≤ {operation.launches:g})")
        for size, limit in cases.WALL.items():
            is_loss = operation.group == "loss"
            cells.append(f"{verdict(wall_share(rows, name, size), limit)} (≤ {limit:g})" if is_loss else "")
        lines.append(line(cells))
    return lines


def other_targets(rows: Rows, step: Mapping[str, Any]) -> list[str]:
    lines = table_head(["target", "measured", "at most"])
    for name, operation in OPERATIONS.items():
        row = Row(name)
        if operation.host_ms is not None:
            value = value_of(rows, row, "host")
            lines.append(line([f"{name}: host time, ms", verdict(value, operation.host_ms), f"{operation.host_ms:g}"]))
        if operation.floors is not None:
            device, floor = value_of(rows, row, "device"), value_of(rows, row, "floor")
            value = device / floor if device and floor else None
            lines.append(
                line([f"{name}: device time / floor", verdict(value, operation.floors), f"{operation.floors:g}"])
            )
    ms = step.get("ms", {})
    both = steps.CBST in ms and steps.WITH_TEACHER in ms
    value = ms[steps.CBST] / ms[steps.WITH_TEACHER] - 1 if both else None
    lines.append(
        line(["training step: CBST beyond network and teacher", verdict(value, steps.OVERHEAD), f"{steps.OVERHEAD}"])
    )
    return lines


def training_step(step: Mapping[str, Any]) -> list[str]:
    lines = table_head(["training step", "ms", "/ network and teacher"])
    ms = step.get("ms", {})
    for name in steps.NAMES:
        share = ms[name] / ms[steps.WITH_TEACHER] if name in ms and steps.WITH_TEACHER in ms else None
        error = step.get("errors", {}).get(name, "") if name not in ms else ""
        lines.append(
            line([name, f"failed: {error}" if error else verdict(ms.get(name), None, 1), verdict(share, None)])
        )
    return lines


def everything(rows: Rows) -> list[str]:
    head = ["operation", "version", "classes", "dtype", "layout", "size", "passes", "floor", "device ms", "by"]
    lines = table_head([*head, "wall ms", "host ms", "launches", "peak MB", "waits"])
    for key in sorted(rows, key=order):
        row, found = Row.parse(key), rows[key]
        cells = [row.operation, row.version, str(row.classes), row.dtype, row.layout, row.size]
        if "error" in found:
            why = found["error"] if found["error"] == OUT_OF_TIME else f"failed: {found['error']}"
            lines.append(line([*cells, why, *[""] * 8]))
            continue
        floor = found["floor"] and found["floor"] / found["pass_ms"]
        cells += [verdict(found["passes"], None), verdict(floor, None), verdict(found["device"], None, 3), found["by"]]
        cells += [
            verdict(found["wall"], None, 3),
            verdict(found["host"], None, 3),
            verdict(found.get("launches"), None, 1),
        ]
        lines.append(line([*cells, f"{found['peak_mb']:.1f}", "yes" if found["waits"] else found["note"]]))
    return lines


def order(key: str) -> tuple[Any, ...]:
    row, names = Row.parse(key), list(OPERATIONS)
    versions = list(cases.VERSION)
    return names.index(row.operation), row.size, row.classes, row.layout, row.dtype, versions.index(row.version)


def missed(rows: Rows, step: Mapping[str, Any]) -> list[str]:
    """The lines of the targets with something that is not kept."""
    return [text for text in (*targets(rows), *other_targets(rows, step)) if "✗" in text]


def markdown(results: Mapping[str, Any]) -> str:
    """The GPU half of the documentation's page; without results its targets, with nothing measured."""
    rows, step, about = results.get("rows", {}), results.get("step", {}), results.get("about", {})
    lines = ["### Targets on a GPU", "", *targets(rows), "", *other_targets(rows, step), ""]
    lines += [*training_step(step), ""]
    if rows:
        lines += ["### All measurements on a GPU", "", *everything(rows), ""]
    if about:
        tests = [f"{run_tests.headline(results['tests'])}.", ""] if "tests" in results else []
        where = ", ".join(f"{key} {value}" for key, value in about.items())
        lines += ["### Machine with a GPU", "", *tests, f"{where}."]
    else:
        lines += ["Not measured yet. To measure, run `python -m tests.gpu` on a machine with a GPU."]
    if results.get("smoke"):
        lines = [f"**{SMOKE}**", "", *lines]
    return "\n".join(lines) + "\n"


def table_head(names: list[str]) -> list[str]:
    return [line(names), line(["---", *["--:"] * (len(names) - 1)])]


def line(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/').replace(chr(10), ' ') for cell in cells)} |"


def failures(results: Mapping[str, Any]) -> Iterator[str]:
    """What did not work, as opposed to what was slow."""
    yield from results.get("tests", {}).get("failures", [])
    for key, found in results.get("rows", {}).items():
        if found.get("error", OUT_OF_TIME) != OUT_OF_TIME:
            yield f"{key}: {found['error']}"
    step = results.get("step", {})
    yield from (f"{name}: {error}" for name, error in step.get("errors", {}).items())
    if "error" in step:
        yield f"training step: {step['error']}"
