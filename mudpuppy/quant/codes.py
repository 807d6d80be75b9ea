"""The stable codes of what can be wrong with a checkpoint in few bits."""

from __future__ import annotations

UNKNOWN_SCHEME = "MP-Q01"
"""What is declared names a method, a format or a version that is not known here."""
PART_MISSING = "MP-Q02"
"""A layer lacks a part, or is not declared: loaders fill such layers at random (FM33)."""
WRONG_FORM = "MP-Q03"
"""A part has another shape or type than what is declared asks for: another block or group size."""
WRONG_SCALES = "MP-Q04"
"""Scales that are NaN, infinite or below zero, where no writer makes such (FM48)."""
WRONG_GROUPS = "MP-Q05"
"""Inputs are in groups that are not there, or that are larger than declared (FM48)."""
WRONG_USE = "MP-Q06"
"""A model in few bits is opened for something that needs its weights whole."""
