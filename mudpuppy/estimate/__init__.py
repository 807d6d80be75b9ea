"""Predict the memory of a run from the model's configuration alone: no weight is read."""
