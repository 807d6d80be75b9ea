"""The JSON schema of scenario files, from which editors complete keys, settings and values.

It is made from the form itself and from `TrainingConfig`, and checked in as
docs/scenario.schema.json: run `mudpuppy-pressure schema` after a change of either.
"""

from __future__ import annotations

from typing import Any

from mudpuppy.config import TrainingConfig
from mudpuppy.features import FEATURES, METHODS, PRECISIONS
from scenarios.loader import RUNNER_OWNS
from scenarios.schema import ALL, FEATURE_AXIS, WORDS_FOR_ALL, ScenarioFile

TITLE = "Scenarios of mudpuppy-pressure"
_WHAT = "Features of the rule table, several joined by '+', or 'none'."


def scenario_schema() -> dict[str, Any]:
    """Return the schema, as plain JSON types in a stable order."""
    schema = ScenarioFile.model_json_schema()
    training = TrainingConfig.model_json_schema()
    settings = {
        name: form for name, form in training["properties"].items() if name not in RUNNER_OWNS
    }
    definitions = schema["$defs"]
    definitions |= training.get("$defs", {})
    definitions["Settings"] = _closed(settings)
    words = {name: {"$ref": f"#/$defs/Settings/properties/{name}"} for name in settings}
    words[FEATURE_AXIS] = {"$ref": "#/$defs/Features"}
    definitions["Features"] = {"description": _WHAT, **_feature_form()}
    definitions["Axes"] = _closed({name: _axis(name, form) for name, form in words.items()})
    definitions["Conditions"] = _closed(
        {name: {"anyOf": [form, _list_of(form)]} for name, form in words.items()}
    )
    _replace(schema["properties"], "defaults", "Settings")
    _replace(schema["properties"], "axes", "Axes")
    _replace(definitions["Scenario"]["properties"], "config", "Settings")
    _replace(definitions["Scenario"]["properties"], "axes", "Axes")
    for name in ("include", "exclude"):
        schema["properties"][name]["items"] = {"$ref": "#/$defs/Conditions"}
    _name_parts(definitions["Covering"]["properties"])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": TITLE,
    }


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    """Return the form of a mapping that has no other keys."""
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _list_of(form: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": form, "minItems": 1}


def _feature_form() -> dict[str, Any]:
    """Return the form of a word for features: the names complete, joined ones are allowed."""
    names = "|".join(FEATURES)
    joined = {"type": "string", "pattern": rf"^({names})(\+({names}))+$"}
    return {"anyOf": [{"enum": ["none", *FEATURES]}, joined]}


def _axis(name: str, form: dict[str, Any]) -> dict[str, Any]:
    """Return the form of the values of an axis: a list, or `all` where there is a table."""
    values = _list_of(form)
    return {"anyOf": [values, {"const": ALL}]} if name in WORDS_FOR_ALL else values


def _replace(properties: dict[str, Any], name: str, definition: str) -> None:
    """Let a property be of a definition, keeping its description."""
    said = properties[name]["description"]
    properties[name] = {"description": said, "$ref": f"#/$defs/{definition}"}


def _name_parts(properties: dict[str, Any]) -> None:
    """Let the parts of a covering array complete to the names of the rule table."""
    known = {"method": METHODS, "precision": PRECISIONS, FEATURE_AXIS: (*FEATURES,)}
    for name, names in known.items():
        values = _list_of({"enum": list(names)})
        kept = {"description": properties[name]["description"], "default": ALL}
        properties[name] = {**kept, "anyOf": [values, {"const": ALL}]}
    properties["apart"]["items"] = {"enum": list(FEATURES)}
