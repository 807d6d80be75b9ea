"""Expand a scenario file into cells: resolved settings, an expectation, an id that is their hash.

The expectation of a cell is what a person wrote, or else what the rule table says. Nothing here
imports torch, so that a hundred thousand cells can be listed before anything is trained.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from harness.resolve import Resolved, Resolver
from harness.results import CellLabel
from harness.rows import Row, RowMaker
from mudpuppy.config import features_of
from mudpuppy.errors import ConfigError
from mudpuppy.rules import Decision, decide, describe
from mudpuppy.yamlfile import Place
from scenarios.loader import LoadedScenarios, load_scenarios
from scenarios.schema import Expectation, ScenarioFile, Trial

CELL_ID_DIGITS = 12


@dataclass(frozen=True, kw_only=True, slots=True)
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
    config: Mapping[str, Any]
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
    plant: str | None = None
    """Bug to plant into its worker, whatever is planted into the others of the run."""

    @property
    def label(self) -> CellLabel:
        """What a progress display shows of the cell."""
        return CellLabel(self.cell_id, self.number, self.title)

    @property
    def features(self) -> frozenset[str]:
        """The features of the rule table that are on."""
        return features_of(self.config)

    @property
    def decision(self) -> Decision:
        """What the rule table says about it, whatever a person expects."""
        return decide(self.config["method"], self.config["precision"], self.features)

    def identity(self) -> dict[str, Any]:
        """Return what every file about the cell starts with: id, names, settings, expectation."""
        return {
            "cell_id": self.cell_id,
            "name": self.name,
            "title": self.title,
            "number": self.number,
            "config": dict(self.config),
            "expect": self.expect.model_dump(mode="json"),
            "trial": self.trial,
            "options": self.options,
        }


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
    with _uncollected():
        return _expand(loaded, model)


def _expand(loaded: LoadedScenarios, model: str | None) -> tuple[Cell, ...]:
    maker = RowMaker(loaded)
    folder = loaded.path.parent
    resolver = Resolver(folder, folder if model is None else Path.cwd())
    own_model = {} if model is None else {"model": model}
    cells: list[Cell] = []
    places: list[Place] = []
    problems: list[str] = []
    for number, row in enumerate(maker.rows(), start=1):
        try:
            found = resolver.resolve(row.shared, {**row.own, **own_model})
        except ConfigError as error:
            where = loaded.document.where(row.place)
            problems += [f"{where}: cell '{row.name}': {problem}" for problem in error.problems]
            continue
        if row.features is not None and found.features != frozenset(row.features):
            problems.append(_strange_features(row, found.features, loaded))
        cells.append(_make_cell(row, number, found, loaded.form))
        places.append(row.place)
    problems = [*maker.problems, *maker.idle(), *problems, *_twins(cells, loaded, places)]
    if problems:
        raise ConfigError(problems)
    return tuple(cells)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Look for no garbage meanwhile: of many small things that stay, a quarter of the time goes."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _strange_features(row: Row, found: frozenset[str], loaded: LoadedScenarios) -> str:
    """Say that the settings around a row switch on, or off, what it does not name."""
    where = loaded.document.where(row.place)
    differing = ", ".join(sorted(found ^ frozenset(row.features or ())))
    return (
        f"{where}: cell '{row.name}': its defaults or includes change what is on beside the axis "
        f"'feature': {differing}"
    )


def explain_rules(cell: Cell) -> str:
    """Return what the rule table says about a cell, as a person reads it."""
    return describe(cell.decision)


def _make_cell(row: Row, number: int, found: Resolved, form: ScenarioFile) -> Cell:
    """Return the cell of a row whose settings were checked."""
    scenario = row.scenario
    expect = (scenario.expect if scenario else None) or _expect_by_rules(found)
    trial = (scenario.trial if scenario else None) or form.trial
    options = {**form.options, **scenario.options} if scenario else form.options
    # The id is made from the paths as written, so that it is the same wherever the project lies.
    identity = f'"config": {found.as_written}, "expect": {_expect_json(expect)}'
    if trial != "training":
        identity += f', "options": {json.dumps(options, sort_keys=True)}, "trial": "{trial}"'
    return Cell(
        cell_id=hashlib.sha256(f"{{{identity}}}".encode()).hexdigest()[:CELL_ID_DIGITS],
        name=row.name,
        title=row.title,
        number=number,
        config=found.config,
        expect=expect,
        timeout_s=(scenario.timeout_s if scenario else None) or form.timeout_s,
        trial=trial,
        options=options,
        needs=scenario.needs if scenario else (),
        needs_fresh=scenario.needs_fresh if scenario else False,
        memory_limit=scenario.memory_limit if scenario else None,
    )


def _expect_by_rules(found: Resolved) -> Expectation:
    config = found.config
    return _expectation(config["method"], config["precision"], found.features)


@cache
def _expectation(method: str, precision: str, features: frozenset[str]) -> Expectation:
    decision = decide(method, precision, features)
    if decision.accepted:
        return Expectation()
    return Expectation(outcome="rejected", code=decision.rejections[0].code)


@cache
def _expect_json(expect: Expectation) -> str:
    return json.dumps(expect.model_dump(mode="json"), sort_keys=True)


def _twins(cells: list[Cell], loaded: LoadedScenarios, places: list[Place]) -> Iterator[str]:
    """Yield a problem for every name or id that two cells share."""
    names: dict[str, Cell] = {}
    ids: dict[str, Cell] = {}
    for cell, place in zip(cells, places, strict=True):
        where = loaded.document.where(place)
        if cell.name in names:
            other = names[cell.name].number
            yield f"{where}: two cells are called '{cell.name}' (numbers {other} and {cell.number})"
        elif cell.cell_id in ids:
            twin = ids[cell.cell_id].name
            yield f"{where}: cell '{cell.name}' has the same settings as '{twin}'"
        names.setdefault(cell.name, cell)
        ids.setdefault(cell.cell_id, cell)
