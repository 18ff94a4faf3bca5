"""What the quickstart has of its own: the benchmark in memory, its training, its table and picture."""
