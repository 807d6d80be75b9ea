"""The coverage of a matrix as lines: what can meet, what meets, and the first of what does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reports.text import write_columns

NAMES = {1: "single features", 2: "pairs of features", 3: "triples of features"}
HEADERS = ("method", "precision", "cells", "can meet", "meet", "share")


def write_coverage(coverage: Mapping[str, Any]) -> str:
    """Return a table by method and precision, the sum, and what is missing."""
    rows = [
        (group["method"], group["precision"], *_numbers(group))
        for group in coverage["groups"]
        if group["feasible"]
    ]
    lines = [write_columns([*rows, ("all", "", *_numbers(coverage))], HEADERS, right=(2, 3, 4, 5))]
    lines += ["", summarise_coverage(coverage)]
    lines += [f"  missing: {words}" for words in coverage["missing"]]
    return "\n".join(lines)


def summarise_coverage(coverage: Mapping[str, Any]) -> str:
    """Return the coverage as a sentence."""
    strength = coverage["strength"]
    name = NAMES.get(strength, f"{strength} features at a time")
    return (
        f"{coverage['covered']} of {coverage['feasible']} {name} (on and off, at each method and "
        f"precision) that the rule table accepts meet in {coverage['rows']} cells: "
        f"{_percent(coverage['share'])}"
    )


def _numbers(part: Mapping[str, Any]) -> tuple[str, str, str, str]:
    rows, feasible, covered = (str(part[name]) for name in ("rows", "feasible", "covered"))
    return rows, feasible, covered, _percent(part["share"])


def _percent(share: float) -> str:
    """Return a share in percent that says 100 only where nothing is missing."""
    return "100%" if share == 1.0 else f"{min(share, 0.9999):.2%}"
