"""Damages that are done to a copy of a healthy checkpoint, one thing at a time, by area."""
