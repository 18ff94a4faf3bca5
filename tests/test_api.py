"""Public names and signatures, against the committed list in public_api.txt.

After a change that is meant: ``python -m tests.test_api --write``, and a line in CHANGELOG.md.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest

import selftrain_seg

LIST = Path(__file__).with_name("public_api.txt")
OPERATORS = {"__call__", "__getitem__", "__iter__", "__len__"}
# Methods for torch, torchvision and this library's own modules to call, not for people.
INTERNAL = {"extra_repr", "get_extra_state", "set_extra_state", "make_params", "transform"}
INTERNAL |= {"add_state", "add_sums", "check_home", "check_same", "reduced"}
ALSO_OURS = {__name__}  # for the tests of this file
COMMAND = "python -m tests.test_api --write"


def ours(value: Any) -> bool:
    """Written here, rather than inherited from torch or Python."""
    module = value.__module__ or ""
    return module.partition(".")[0] == "selftrain_seg" or module in ALSO_OURS


class Text(str):
    """What shows as itself inside a signature."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def annotation(value: Any) -> Text:
    """As in the source, whatever a version of Python makes of it."""
    value = getattr(value, "__forward_arg__", value)
    return Text(value if isinstance(value, str) else inspect.formatannotation(value))


def default(value: Any) -> Text:
    """Functions by name, all else as Python shows it; no addresses."""
    if type(value) is tuple:
        return Text(f"({', '.join(map(default, value))}{',' if len(value) == 1 else ''})")
    return Text(value.__qualname__ if inspect.isroutine(value) or inspect.isclass(value) else repr(value))


def signature(function: Any, *, bound: bool = False) -> str:
    """Arguments, their types and defaults, and the type of the result; ``bound`` leaves the first out."""
    found = inspect.signature(function)
    parameters = [
        one.replace(
            annotation=one.annotation if one.annotation is one.empty else annotation(one.annotation),
            default=one.default if one.default is one.empty else default(one.default),
        )
        for one in list(found.parameters.values())[bound:]
    ]
    result = found.return_annotation
    result = result if result is found.empty else annotation(result)
    return str(found.replace(parameters=parameters, return_annotation=result))


def members(cls: type) -> Iterator[tuple[str, str]]:
    """(name, signature or kind) of methods, properties and constants, those of bases of ours included."""
    found = {name: value for base in reversed(cls.__mro__) if ours(base) for name, value in vars(base).items()}
    for name, value in sorted(found.items()):
        if (name.startswith("_") and name not in OPERATORS) or name in INTERNAL:
            continue
        if isinstance(value, property):
            result = inspect.signature(value.fget).return_annotation if value.fget else inspect.Signature.empty
            yield name, ": property" + ("" if result is inspect.Signature.empty else f" {annotation(result)}")
        elif isinstance(value, staticmethod):
            yield name, signature(value.__func__) + " [static]"
        elif isinstance(value, classmethod):
            yield name, signature(value.__func__, bound=True) + " [class]"
        elif inspect.isfunction(value):
            yield name, signature(value, bound=True)
        elif isinstance(value, (int, float, str, tuple)) and name not in getattr(cls, "__dataclass_fields__", ()):
            yield name, f" = {value!r}"


def describe(name: str, value: Any) -> Iterator[str]:
    """The lines of one public name."""
    if inspect.isclass(value):
        if issubclass(value, tuple) and hasattr(value, "_fields"):
            hints, defaults = value.__annotations__, value._field_defaults
            fields = [
                f"{field}: {annotation(hints[field])}" + (f" = {default(defaults[field])}" if field in defaults else "")
                for field in value._fields
            ]
            yield f"{name}({', '.join(fields)}) [named tuple]"
            yield from (f"{name}.{member}{text}" for member, text in members(value) if member not in value._fields)
            return
        made = next((base for base in value.__mro__ if "__init__" in vars(base) or "__new__" in vars(base)), object)
        text = ""
        if ours(made):
            text = signature(made.__init__, bound=True).removesuffix(" -> None")
        if issubclass(value, Exception):
            bases = [base.__name__ for base in value.__mro__[1:] if not ours(base)]
            text += f" [a {bases[0]}]"
        yield name + text
        yield from (f"{name}.{member}{text}" for member, text in members(value))
    elif inspect.isroutine(value):
        yield name + signature(value)
    else:
        yield f"{name} = {value!r}"


def api() -> list[str]:
    """All lines, sorted by subpackage and name."""
    lines = []
    rooms = [("selftrain_seg", selftrain_seg)]
    rooms += [(f"selftrain_seg.{room}", getattr(selftrain_seg, room)) for room in sorted(selftrain_seg._SUBPACKAGES)]
    for room, module in rooms:
        for name in sorted(set(module.__all__) - {"__version__", *selftrain_seg._SUBPACKAGES}):
            lines += describe(f"{room}.{name}", getattr(module, name))
    return lines


def difference(before: list[str], after: list[str]) -> str:
    """What is gone (-), and what is new (+)."""
    lines = difflib.unified_diff(before, after, "public_api.txt", "the package", lineterm="", n=0)
    return "\n".join(line for line in lines if not line.startswith("@@"))


def test_public_api_is_the_committed_one():
    found = difference(LIST.read_text(encoding="utf-8").splitlines(), api())
    if found:
        pytest.fail(
            f"The public names or signatures have changed:\n\n{found}\n\n"
            f"If that is meant: {COMMAND}, and a line in CHANGELOG.md.",
            pytrace=False,
        )


def test_every_public_name_is_listed_once():
    lines = LIST.read_text(encoding="utf-8").splitlines()
    assert len(set(lines)) == len(lines)
    assert " at 0x" not in "".join(lines)
    for room in selftrain_seg._SUBPACKAGES:
        for name in importlib.import_module(f"selftrain_seg.{room}").__all__:
            pattern = f"selftrain_seg.{room}.{name}"
            assert [line for line in lines if line.split("(")[0].split(" ")[0] == pattern], pattern


class Point(NamedTuple):
    x: int
    y: float | None = None

    def norm(self) -> float:
        return 0.0


class Base:
    def shared(self, a: int, /, b: int = 1, *rest: int, c: Literal["x"] = "x", **more: int) -> None: ...


class Thing(Base):
    kinds = ("a", "b")

    def __init__(self, size: tuple[int, int], *, mixing: tuple = (len, max), scales: tuple = (1.0,)) -> None:
        self.size = size

    @property
    def area(self) -> int:
        return 0

    @classmethod
    def load(cls, path: str) -> Thing: ...

    @staticmethod
    def helper(x): ...

    def __len__(self) -> int:
        return 0

    def _private(self): ...

    def extra_repr(self): ...


class Trouble(ValueError):
    pass


def test_what_a_description_holds():
    assert list(describe("Point", Point)) == [
        "Point(x: int, y: float | None = None) [named tuple]",
        "Point.norm() -> float",
    ]
    assert list(describe("Thing", Thing)) == [
        "Thing(size: tuple[int, int], *, mixing: tuple = (len, max), scales: tuple = (1.0,))",
        "Thing.__len__() -> int",
        "Thing.area: property int",
        "Thing.helper(x) [static]",
        "Thing.kinds = ('a', 'b')",
        "Thing.load(path: str) -> Thing [class]",
        "Thing.shared(a: int, /, b: int = 1, *rest: int, c: Literal['x'] = 'x', **more: int) -> None",
    ]
    assert list(describe("Trouble", Trouble)) == ["Trouble [a ValueError]"]
    assert list(describe("NUMBER", 255)) == ["NUMBER = 255"]


def test_a_change_is_shown_by_line():
    assert difference(["a(x)", "b()"], ["a(x)", "b(y)", "c()"]) == (
        "--- public_api.txt\n+++ the package\n-b()\n+b(y)\n+c()"
    )
    assert difference(["a(x)"], ["a(x)"]) == ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.test_api", description=__doc__)
    parser.add_argument("--write", action="store_true", required=True, help="rewrite public_api.txt")
    parser.parse_args()
    LIST.write_text("\n".join(api()) + "\n", encoding="utf-8")
