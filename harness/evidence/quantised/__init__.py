"""Layers in few bits: what they are by their names, what they hold by their values."""
