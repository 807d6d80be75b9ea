"""Checkpoints on a model hub: settings and headers are fetched, never the weights themselves."""
