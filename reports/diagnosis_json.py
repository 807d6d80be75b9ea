"""A diagnosis as JSON: the stable form for programs, without NaN."""

from __future__ import annotations

import json
import math
from typing import Any

from harness.findings import Diagnosis


def write_json(diagnosis: Diagnosis) -> str:
    """Return the diagnosis as indented JSON with a final line end."""
    return json.dumps(_plain(diagnosis.to_json()), indent=2, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """Return the value with numbers that JSON cannot say written as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
