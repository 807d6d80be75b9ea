"""Read a scenario file: every problem at once, each with its file and line and the near names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mudpuppy.config import TrainingConfig
from mudpuppy.errors import ConfigError, near_names
from mudpuppy.yamlfile import Document, Place, read_document
from scenarios.schema import FEATURE_AXIS, Covering, Expectation, Scenario, ScenarioFile

SHIPPED = Path(__file__).parent
"""Folder of the scenario files that come with the project."""

RUNNER_OWNS = {
    "output": "every cell has its own folder",
    "preset": "a scenario says itself what it sets",
}
"""Settings that a scenario may not hold, and why."""


@dataclass(frozen=True)
class LoadedScenarios:
    """A scenario file that was read and found well formed."""

    path: Path
    """The file, absolute."""
    shown: str
    """The file as a person types it, for messages and commands."""
    form: ScenarioFile
    """What it says."""
    document: Document
    """Where it says it."""
    inherited: int = 0
    """How many rows of `include` at the beginning are those of the file that it extends."""


def find_scenarios(word: str | Path) -> Path:
    """Return the scenario file that `word` names: a path, or a shipped file such as `seed`.

    Raises:
        ConfigError: there is no such file; the message names the near ones.
    """
    path = Path(word)
    if path.is_file():
        return path
    names = {one.stem: one for one in sorted(SHIPPED.glob("*.yaml"))}
    wanted = path.name.removesuffix(".yaml")
    if wanted in names and path.parent in (Path(), Path("scenarios")):
        return names[wanted]
    raise ConfigError(
        [f"there is no scenario file '{word}'{near_names(wanted, names)}"],
        hint=f"shipped with the project: {', '.join(names) or 'none'}",
    )


def load_scenarios(word: str | Path) -> LoadedScenarios:
    """Read and check a scenario file.

    Raises:
        ConfigError: it cannot be read, or something in it is wrong; all problems at once.
    """
    path = find_scenarios(word)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"cannot be read: {error}"], source=str(path)) from None
    shown = _shown(path)
    document = read_document(text, shown)
    if not isinstance(document.value, dict):
        found = type(document.value).__name__ if document.value is not None else "an empty file"
        raise ConfigError([f"expected a mapping with 'scenarios', found {found}"], source=shown)
    problems = list(_unknown_settings(document))
    form: ScenarioFile | None = None
    try:
        form = ScenarioFile.model_validate(document.value)
    except ValidationError as error:
        problems += [_explain(item, document) for item in error.errors()]
    if form is None or problems:
        raise ConfigError(problems)
    loaded = LoadedScenarios(path=path.resolve(), shown=shown, form=form, document=document)
    return loaded if form.extends is None else _extend(loaded, form.extends)


def _extend(loaded: LoadedScenarios, name: str) -> LoadedScenarios:
    """Take over what another file of the same folder says of every cell.

    Raises:
        ConfigError: there is no such file, it extends a third one, or something in it is wrong.
    """
    path = loaded.path.parent / name
    where = loaded.document.where(("extends",))
    if not path.is_file():
        beside = [one.name for one in loaded.path.parent.glob("*.yaml")]
        raise ConfigError([f"{where}: there is no file '{name}' beside{near_names(name, beside)}"])
    if _says_extends(path):
        raise ConfigError([f"{where}: {name} extends a file itself, and only one step is taken"])
    parent = load_scenarios(path).form
    own = loaded.form
    changes: dict[str, Any] = {
        "defaults": {**parent.defaults, **own.defaults},
        "include": (*parent.include, *own.include),
    }
    if "timeout_s" not in own.model_fields_set:
        changes["timeout_s"] = parent.timeout_s
    return replace(loaded, form=own.model_copy(update=changes), inherited=len(parent.include))


def _says_extends(path: Path) -> bool:
    """Return whether a file extends one: two that extend each other would never be read."""
    value = read_document(path.read_text(encoding="utf-8"), str(path)).value
    return isinstance(value, dict) and "extends" in value


def _shown(path: Path) -> str:
    """Return the path relative to the current folder when it lies inside, else absolute."""
    absolute = path.resolve()
    here = Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)


def _explain(item: ErrorDetails, document: Document) -> str:
    """Turn one pydantic error into `file:line: what is wrong with which key`."""
    place: Place = tuple(part for part in item["loc"] if not isinstance(part, bool))
    where = document.where(place)
    label = ".".join(str(part) for part in place) or "the file"
    if item["type"] == "extra_forbidden":
        key = str(place[-1])
        near = near_names(key, _keys_at(place[:-1]))
        return f"{where}: unknown key '{label}'{near}"
    if item["type"] == "missing":
        return f"{where}: '{label}' is required"
    message = item["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(item["input"], dict | BaseModel) else f", got {item['input']!r}"
    return f"{where}: {label}: {message}{shown}"


def _keys_at(place: Place) -> tuple[str, ...]:
    """Return the keys that the form knows at a place."""
    if place and place[-1] == "expect":
        return tuple(Expectation.model_fields)
    if place == ("covering",):
        return tuple(Covering.model_fields)
    return tuple(Scenario.model_fields if place else ScenarioFile.model_fields)


def _unknown_settings(document: Document) -> Iterator[str]:
    """Yield a problem for every setting that `TrainingConfig` does not have."""
    known = frozenset(TrainingConfig.field_names()) - RUNNER_OWNS.keys()
    for place, settings in _setting_tables(document.value):
        for key in settings:
            if key in RUNNER_OWNS:
                why = f"'{key}' may not be set here: {RUNNER_OWNS[key]}"
            elif key == FEATURE_AXIS and not {"defaults", "config"} & {*place}:
                continue
            elif key not in known:
                why = f"unknown setting '{key}'{near_names(str(key), known)}"
            else:
                continue
            yield f"{document.where((*place, str(key)))}: {why}"


def _setting_tables(top: dict[str, Any]) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yield every mapping of the file whose keys are settings, with its place."""
    places: list[tuple[Place, Any]] = [((key,), top.get(key)) for key in ("defaults", "axes")]
    for list_key, keys in (
        ("include", ("",)),
        ("exclude", ("",)),
        ("scenarios", ("config", "axes")),
    ):
        rows = top.get(list_key)
        for index, row in enumerate(rows if isinstance(rows, list) else []):
            for key in keys:
                table = row if not key else (row.get(key) if isinstance(row, dict) else None)
                places.append(((list_key, index, *([key] if key else [])), table))
    yield from ((place, table) for place, table in places if isinstance(table, dict))
