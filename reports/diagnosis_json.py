"""A diagnosis as JSON: the stable form for programs, without NaN."""

from __future__ import annotations

import json
import math
from typing import Any

from harness.findings import DIAGNOSIS_SCHEMA_VERSION, Diagnosis, Evidence, Fixed, ProbeResult


def write_json(diagnosis: Diagnosis) -> str:
    """Return the diagnosis as indented JSON with a final line end."""
    return json.dumps(_plain(diagnosis.to_json()), indent=2, allow_nan=False) + "\n"


def write_schema() -> str:
    """Return the JSON Schema of `write_json`, made from the fields of the diagnosis."""
    from pydantic import TypeAdapter

    for part in (Diagnosis, ProbeResult, Evidence, Fixed):
        # Their docstrings become descriptions; pydantic looks for this name, and only it does.
        setattr(part, "__pydantic_config__", {"use_attribute_docstrings": True})  # noqa: B010
    schema = TypeAdapter(Diagnosis).json_schema(mode="serialization")
    del schema["properties"]["seconds"]  # measured anew each time, and left out
    _close(schema)
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"mudpuppy-doctor --format json, version {DIAGNOSIS_SCHEMA_VERSION}",
    }
    return json.dumps({**schema, **head}, indent=2, sort_keys=True) + "\n"


def _close(schema: dict[str, Any]) -> None:
    """Require every field of every part, and allow no other."""
    for part in (schema, *schema.get("$defs", {}).values()):
        if "properties" in part:
            part["required"] = sorted(part["properties"])
            part["additionalProperties"] = False
    schema["properties"]["schema_version"] = {"const": DIAGNOSIS_SCHEMA_VERSION}


def _plain(value: Any) -> Any:
    """Return the value with numbers that JSON cannot say written as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
