"""Segmentation networks by name, and weights from files."""
