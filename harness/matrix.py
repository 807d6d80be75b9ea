"""Expand a scenario file into cells: resolved settings, an expectation, an id that is their hash.

The expectation of a cell is what a person wrote, or else what the rule table says. Nothing here
imports torch, so that a hundred thousand cells can be listed before anything is trained.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from harness.results import CellLabel
from mudpuppy.config import TrainingConfig
from mudpuppy.config_check import load_config
from mudpuppy.errors import ConfigError, UnsupportedCombination
from mudpuppy.rules import describe
from mudpuppy.tiny import is_tiny_name
from mudpuppy.yamlfile import Place
from scenarios.loader import LoadedScenarios, load_scenarios
from scenarios.schema import Expectation, Scenario, ScenarioFile, Trial

CELL_ID_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of the matrix, completely described."""

    cell_id: str
    """First 12 hex digits of the SHA-256 of the settings and the expectation; names its folder."""
    name: str
    """Readable, unique in its matrix."""
    title: str
    """What is tried, as a person says it."""
    number: int
    """Place in the file, from 1."""
    config: dict[str, Any]
    """Every setting of `TrainingConfig` but `output`; paths are absolute."""
    expect: Expectation
    """What must come out."""
    timeout_s: float
    """Seconds until it is killed."""
    trial: Trial = "training"
    """What is done with the settings."""
    options: dict[str, Any] = field(default_factory=dict)
    """Settings of the trial."""
    needs: tuple[str, ...] = ()
    """What the machine must have."""
    needs_fresh: bool = False
    """Whether it must run in an interpreter of its own."""
    memory_limit: int | None = None
    """Bytes of private memory that each of its processes may have."""

    @property
    def label(self) -> CellLabel:
        """What a progress display shows of the cell."""
        return CellLabel(self.cell_id, self.number, self.title)

    def identity(self) -> dict[str, Any]:
        """Return what every file about the cell starts with: id, names, settings, expectation."""
        return {
            "cell_id": self.cell_id,
            "name": self.name,
            "title": self.title,
            "number": self.number,
            "config": self.config,
            "expect": self.expect.model_dump(mode="json"),
            "trial": self.trial,
            "options": self.options,
        }


@dataclass(frozen=True)
class _Row:
    """A cell before its settings were checked."""

    name: str
    title: str
    settings: dict[str, Any]
    expect: Expectation | None
    timeout_s: float
    place: Place
    trial: Trial = "training"
    options: dict[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    needs_fresh: bool = False
    memory_limit: int | None = None


def load_cells(word: str | Path, *, model: str | None = None) -> tuple[Cell, ...]:
    """Read a scenario file and expand it."""
    return expand(load_scenarios(word), model=model)


def expand(loaded: LoadedScenarios, *, model: str | None = None) -> tuple[Cell, ...]:
    """Return the cells of a scenario file, in file order.

    Args:
        loaded: the file.
        model: model for every cell instead of the one in the file.

    Raises:
        ConfigError: settings that are wrong, names or cells that stand twice, an `exclude` that
            leaves nothing out; all problems at once.
    """
    rows = list(_rows(loaded))
    folder = loaded.path.parent
    cells: list[Cell] = []
    problems = list(_idle_excludes(loaded))
    for number, row in enumerate(rows, start=1):
        where = loaded.document.where(row.place)
        settings = row.settings if model is None else {**row.settings, "model": model}
        try:
            cells.append(
                _make_cell(row, number, settings, folder, folder if model is None else Path.cwd())
            )
        except ConfigError as error:
            problems += [f"{where}: cell '{row.name}': {problem}" for problem in error.problems]
    problems += _twins(cells, loaded, rows)
    if problems:
        raise ConfigError(problems)
    return tuple(cells)


def explain_rules(cell: Cell) -> str:
    """Return what the rule table says about a cell, as a person reads it."""
    config = TrainingConfig.model_validate({**cell.config, "output": "checkpoint"})
    return describe(config.decide())


def _rows(loaded: LoadedScenarios) -> Iterator[_Row]:
    """Yield the product of the file's axes, then every scenario with its own product."""
    form = loaded.form
    if form.axes:
        base = _Row(
            *("", "", dict(form.defaults), None, form.timeout_s, ("axes",)),
            trial=form.trial,
            options=dict(form.options),
        )
        yield from _vary(base, form.axes, form.exclude)
    for index, scenario in enumerate(form.scenarios):
        base = _base_row(scenario, form, index)
        yield from _vary(base, scenario.axes, form.exclude) if scenario.axes else [base]


def _base_row(scenario: Scenario, form: ScenarioFile, index: int) -> _Row:
    return _Row(
        name=scenario.name,
        title=scenario.title or scenario.name,
        settings={**form.defaults, **scenario.config},
        expect=scenario.expect,
        timeout_s=scenario.timeout_s or form.timeout_s,
        place=("scenarios", index),
        trial=scenario.trial or form.trial,
        options={**form.options, **scenario.options},
        needs=scenario.needs,
        needs_fresh=scenario.needs_fresh,
        memory_limit=scenario.memory_limit,
    )


def _vary(
    base: _Row, axes: Mapping[str, list[Any]], exclude: Iterable[Mapping[str, Any]]
) -> Iterator[_Row]:
    """Yield one row per element of the product that no `exclude` row matches."""
    for values in product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        settings = {**base.settings, **chosen}
        if any(_is_excluded(settings, row) for row in exclude):
            continue
        words = [_word(key, value) for key, value in chosen.items()]
        name = "-".join(word for word in (base.name, *words) if word)
        title = base.title + " + " if base.title else ""
        yield replace(base, name=name, title=title + " + ".join(words), settings=settings)


def _word(key: str, value: Any) -> str:
    """Return an axis value as part of a name: `bf16`, but `lora-r-16` and `no-stream`."""
    key = key.replace("_", "-")
    if isinstance(value, bool) or value is None:
        return key if value else f"no-{key}"
    word = value if isinstance(value, str) else f"{key}-{value}"
    return re.sub(r"[^A-Za-z0-9._-]+", "-", word).strip("-")


def _is_excluded(settings: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    return all(settings.get(key) == value for key, value in row.items())


def _idle_excludes(loaded: LoadedScenarios) -> Iterator[str]:
    """Yield a problem for every `exclude` row that leaves nothing out: it is a slip of the pen."""
    form = loaded.form
    bases = [(form.defaults, form.axes)] if form.axes else []
    bases += [({**form.defaults, **one.config}, one.axes) for one in form.scenarios if one.axes]
    for index, row in enumerate(form.exclude):
        if not any(_matches_product(base, axes, row) for base, axes in bases):
            where = loaded.document.where(("exclude", index))
            yield f"{where}: this exclude leaves nothing out: no cell has {_pairs(row)}"


def _matches_product(
    base: Mapping[str, Any], axes: Mapping[str, list[Any]], row: Mapping[str, Any]
) -> bool:
    """Whether some element of a product matches: its factors can be looked at one by one."""
    return all(
        value in axes[key] if key in axes else base.get(key) == value for key, value in row.items()
    )


def _pairs(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in row.items()) or "nothing in common"


def _make_cell(
    row: _Row, number: int, settings: dict[str, Any], data_folder: Path, model_folder: Path
) -> Cell:
    """Check one row's settings and give it its id."""
    config = _check(settings)
    expect = row.expect or _expect_by_rules(config)
    plain = config.model_dump(mode="json", exclude={"output"})
    # The id is made from the paths as written, so that it is the same wherever the project lies.
    decisive: dict[str, Any] = {"config": plain, "expect": expect.model_dump(mode="json")}
    if row.trial != "training":
        decisive |= {"trial": row.trial, "options": row.options}
    identity = json.dumps(decisive, sort_keys=True)
    return Cell(
        cell_id=hashlib.sha256(identity.encode()).hexdigest()[:CELL_ID_DIGITS],
        name=row.name,
        title=row.title,
        number=number,
        config={
            **plain,
            "dataset": str((data_folder / config.dataset).resolve()),
            "model": _locate_model(config.model, model_folder),
        },
        expect=expect,
        timeout_s=row.timeout_s,
        trial=row.trial,
        options=row.options,
        needs=row.needs,
        needs_fresh=row.needs_fresh,
        memory_limit=row.memory_limit,
    )


def _check(settings: dict[str, Any]) -> TrainingConfig:
    """Validate settings; a combination that the rules reject is still a fine cell."""
    values = {**settings, "output": "checkpoint"}
    try:
        return load_config(values)
    except UnsupportedCombination:
        return TrainingConfig.model_validate(values)


def _expect_by_rules(config: TrainingConfig) -> Expectation:
    decision = config.decide()
    if decision.accepted:
        return Expectation()
    return Expectation(outcome="rejected", code=decision.rejections[0].code)


def _locate_model(model: str, folder: Path) -> str:
    """Return a model folder as an absolute path; names of models stay as they are."""
    if is_tiny_name(model) or not (folder / model).exists():
        return model
    return str((folder / model).resolve())


def _twins(cells: list[Cell], loaded: LoadedScenarios, rows: list[_Row]) -> Iterator[str]:
    """Yield a problem for every name or id that two cells share."""
    names: dict[str, Cell] = {}
    ids: dict[str, Cell] = {}
    for cell in cells:
        where = loaded.document.where(rows[cell.number - 1].place)
        if cell.name in names:
            other = names[cell.name].number
            yield f"{where}: two cells are called '{cell.name}' (numbers {other} and {cell.number})"
        elif cell.cell_id in ids:
            twin = ids[cell.cell_id].name
            yield f"{where}: cell '{cell.name}' has the same settings as '{twin}'"
        names.setdefault(cell.name, cell)
        ids.setdefault(cell.cell_id, cell)
