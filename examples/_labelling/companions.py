"""Classes that are pasted together: a bicycle comes with its rider, a traffic sign with its pole (DT-ST)."""

from __future__ import annotations

from collections.abc import Sequence

COMPANIONS = {"bicycle": "rider", "motorcycle": "rider"}
COMPANIONS |= dict.fromkeys(("light", "sign", "traffic light", "traffic sign"), "pole")


def companions_of(classes: Sequence[str]) -> dict[int, list[int]]:
    """Map the index of a class to the indices of the classes that are pasted with it."""
    index = {name: number for number, name in enumerate(classes)}
    return {index[name]: [index[other]] for name, other in COMPANIONS.items() if name in index and other in index}
