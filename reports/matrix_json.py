"""A matrix as JSON: `report.json`, the stable form for programs, without NaN."""

from __future__ import annotations

import json

from harness.results import MatrixResult


def write_json(matrix: MatrixResult) -> str:
    """Return the result as indented JSON with a final line end."""
    return json.dumps(matrix.to_json(), indent=2, allow_nan=False) + "\n"
