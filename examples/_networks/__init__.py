"""Build segmentation networks by name, and load weights from files."""
