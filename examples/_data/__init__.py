"""Open, check and augment a source and a target data set."""
