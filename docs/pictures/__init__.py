"""The pictures of the family pages, one module each with a function ``draw(scene)`` that returns a figure."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))  # for their network
