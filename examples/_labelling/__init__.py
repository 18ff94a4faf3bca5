"""Pseudo-labels of all target images: in rounds, in order, or in snapshots; and which images are drawn to train on."""
