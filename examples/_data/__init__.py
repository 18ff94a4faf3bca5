"""The pairs of data sets to adapt between: opened, looked at before training, augmented."""
