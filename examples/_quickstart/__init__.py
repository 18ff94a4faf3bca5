"""The parts of quickstart.py: data in memory, supervised training, the recommended recipe, and results."""
