"""What the examples share and what is not about self-training: a model, cached data, training, reporting."""
