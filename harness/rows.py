"""The rows of a scenario file, unchecked: products of axes, covering arrays, scenarios.

What a row is asked for is laid in this order, the later over the earlier: the file's defaults, what
its features need, what `include` adds, the scenario's own settings, the values of the axes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

from harness.axes import TOGETHER, feature_settings, read_features
from harness.covering import Array, load_rows
from mudpuppy.config import TrainingConfig
from mudpuppy.features import FEATURES, METHODS, PRECISIONS
from mudpuppy.yamlfile import Place
from scenarios.loader import LoadedScenarios
from scenarios.schema import ALL, FEATURE_AXIS, Covering, Scenario

Axes = Mapping[str, list[Any]]
_ABOUT = frozenset({"method", "precision"})
"""What a row of `include` may always be about, beside features; in products, also the axes."""
_DEFAULTS = {name: TrainingConfig.model_fields[name].default for name in _ABOUT}


class Row(NamedTuple):
    """A cell before its settings were checked."""

    name: str
    """Readable name of the cell."""
    title: str
    """What is tried."""
    shared: Mapping[str, Any]
    """Settings that many rows have: one object for all of them."""
    own: Mapping[str, Any]
    """Settings over them."""
    scenario: Scenario | None
    """The scenario that it comes from, with what a person expects."""
    place: Place
    """Where in the file that is."""
    features: tuple[str, ...] | None = None
    """Features that it was asked for by name, and no others; None where nothing was named."""


@dataclass(frozen=True, slots=True)
class _Source:
    """What rows are made from: the whole file, or one scenario with axes."""

    axes: Axes
    place: Place
    scenario: Scenario | None = None

    @property
    def settings(self) -> Mapping[str, Any]:
        return {} if self.scenario is None else self.scenario.config


class RowMaker:
    """Makes the rows of one file and remembers which of its rules about rows had no effect."""

    def __init__(self, loaded: LoadedScenarios) -> None:
        """Begin; nothing is read or made yet."""
        self._loaded = loaded
        self._form = loaded.form
        self._named = {key for row in loaded.form.include for key in row} - {FEATURE_AXIS}
        self._about: dict[Place, tuple[str, ...]] = {}
        self._shared: dict[Any, Mapping[str, Any]] = {}
        self._included: set[int] = set()
        self._excluded: set[int] = set()
        self.problems: list[str] = []
        """What is wrong with the axes, each with its line."""

    def rows(self) -> Iterator[Row]:
        """Yield the product of the file's axes, its covering arrays, then every scenario."""
        form = self._form
        if form.axes:
            yield from self._vary(_Source(form.axes, ("axes",)))
        if form.covering is not None:
            yield from self._cover(form.covering)
        for index, scenario in enumerate(form.scenarios):
            place = ("scenarios", index)
            if scenario.axes:
                yield from self._vary(_Source(scenario.axes, place, scenario))
                continue
            shared = self._settings(_Source({}, place, scenario), {}, None)
            title = scenario.title or scenario.name
            yield Row(scenario.name, title, shared, {}, scenario, place)

    def idle(self) -> Iterator[str]:
        """Yield a problem for every `exclude` and `include` without effect: slips of the pen."""
        form, document = self._form, self._loaded.document
        for index, row in enumerate(form.exclude):
            if index not in self._excluded:
                where = document.where(("exclude", index))
                yield f"{where}: this exclude leaves nothing out: no cell has {_pairs(row)}"
        for index, row in enumerate(form.include[self._loaded.inherited :]):
            if index + self._loaded.inherited not in self._included:
                where = document.where(("include", index))
                yield f"{where}: this include adds to nothing: no cell has {_pairs(row)}"

    def _vary(self, source: _Source) -> Iterator[Row]:
        """Yield one row per element of the product that no `exclude` row matches."""
        axes = self._readable(source)
        words = [[(value, _word(key, value)) for value in values] for key, values in axes.items()]
        scenario = source.scenario
        start = "" if scenario is None else scenario.name
        title = f"{scenario.title or scenario.name} + " if scenario else ""
        for chosen in product(*words):
            values = {key: value for key, (value, _) in zip(axes, chosen, strict=True)}
            features = _features(values)
            if self._is_excluded(source, values, features):
                continue
            used = [word for _, word in chosen if word]
            yield Row(
                "-".join([start, *used] if start else used).replace(TOGETHER, "-"),
                title + " + ".join(word.replace(TOGETHER, " + ") for word in used),
                self._settings(source, values, features),
                {key: value for key, value in values.items() if key != FEATURE_AXIS},
                scenario,
                source.place,
                features,
            )

    def _readable(self, source: _Source) -> Axes:
        """Return the axes without words for features that cannot be read: those are problems."""
        words = source.axes.get(FEATURE_AXIS, [])
        wrong: dict[int, str] = {}
        for index, word in enumerate(words):
            try:
                read_features(str(word))
            except ValueError as error:
                wrong[index] = str(error)
        prefix = source.place if source.scenario is None else (*source.place, "axes")
        for index, why in wrong.items():
            where = self._loaded.document.where((*prefix, FEATURE_AXIS, index))
            self.problems.append(f"{where}: axis '{FEATURE_AXIS}': {why}")
        good = [str(word) for index, word in enumerate(words) if index not in wrong]
        return {**source.axes, FEATURE_AXIS: good} if words else source.axes

    def _cover(self, covering: Covering) -> Iterator[Row]:
        """Yield the rows of the covering arrays."""
        source = _Source({"method": [], "precision": [], FEATURE_AXIS: []}, ("covering",))
        for array in arrays_of(covering):
            head = {"method": array.method, "precision": array.precision}
            for number, on in enumerate(load_rows(array), start=1):
                features = tuple(name for name in FEATURES if name in on)
                values = {**head, FEATURE_AXIS: TOGETHER.join(features) or "none"}
                if not self._is_excluded(source, values, features):
                    yield Row(
                        f"{array.method}-{array.precision}-mix-{number:02d}",
                        " + ".join([*head.values(), *features]),
                        self._settings(source, values, features),
                        head,
                        None,
                        ("covering",),
                        features,
                    )

    def _settings(
        self, source: _Source, values: Mapping[str, Any], features: tuple[str, ...] | None
    ) -> Mapping[str, Any]:
        """Return everything under the values of the axes, the same object for the same answer."""
        about = self._about.get(source.place)
        if about is None:
            about = tuple(sorted(_ABOUT | (self._named & source.axes.keys())))
            self._about[source.place] = about
        key = (source.place, features, *[repr(values.get(name)) for name in about])
        if key not in self._shared:
            form = self._form
            seen = {**_DEFAULTS, **form.defaults, **source.settings, **values}
            settings = dict(form.defaults)
            for name in features or ():
                settings |= feature_settings(name, _precision(seen))
            for index, row in enumerate(form.include):
                asked = {n: v for n, v in row.items() if n in about or n == FEATURE_AXIS}
                if _matches(asked, seen, features or ()):
                    self._included.add(index)
                    settings |= {n: v for n, v in row.items() if n not in asked}
            self._shared[key] = {**settings, **source.settings, **_of_rules(values)}
        return self._shared[key]

    def _is_excluded(
        self, source: _Source, values: Mapping[str, Any], features: tuple[str, ...] | None
    ) -> bool:
        if not self._form.exclude:
            return False
        settings = {**self._form.defaults, **source.settings, **values}
        hits = [
            index
            for index, row in enumerate(self._form.exclude)
            if _matches(row, settings, features or ())
        ]
        self._excluded.update(hits)
        return bool(hits)


def arrays_of(covering: Covering) -> Iterator[Array]:
    """Yield the covering array of each method at each precision."""
    methods = METHODS if covering.method == ALL else covering.method
    precisions = PRECISIONS if covering.precision == ALL else covering.precision
    features = tuple(FEATURES) if covering.feature == ALL else tuple(covering.feature)
    for method, precision in product(methods, precisions):
        yield Array(
            method=method,
            precision=precision,
            features=features,
            strength=covering.strength,
            apart=tuple(name for name in covering.apart if name in features),
            seed=covering.seed,
        )


def _matches(row: Mapping[str, Any], settings: Mapping[str, Any], features: Sequence[str]) -> bool:
    """Return whether a row of `include` or `exclude` is about these settings and features."""
    return all(
        any(_has_features(str(word), features) for word in _several(wanted))
        if key == FEATURE_AXIS
        else settings.get(key) == wanted
        or (isinstance(wanted, list) and settings.get(key) in wanted)
        for key, wanted in row.items()
    )


def _has_features(word: str, features: Sequence[str]) -> bool:
    """Return whether all features that a word names are on; with `none`, whether none is."""
    return not features if word == "none" else {*word.split(TOGETHER)} <= {*features}


def _several(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]


def _features(values: Mapping[str, Any]) -> tuple[str, ...] | None:
    return read_features(values[FEATURE_AXIS]) if FEATURE_AXIS in values else None


def _precision(settings: Mapping[str, Any]) -> str:
    """Return the precision of a row, where it is one: a wrong one is told of later."""
    named = settings.get("precision", "bf16")
    return named if named in PRECISIONS else "bf16"


def _of_rules(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in ("method", "precision") if name in values}


def _word(key: str, value: Any) -> str:
    """Return an axis value as part of a name: `bf16`, but `lora-r-16` and `no-stream`."""
    if key == FEATURE_AXIS:
        return "" if value == "none" else str(value)
    key = key.replace("_", "-")
    if isinstance(value, bool) or value is None:
        return key if value else f"no-{key}"
    word = value if isinstance(value, str) else f"{key}-{value}"
    return re.sub(r"[^A-Za-z0-9._-]+", "-", word).strip("-")


def _pairs(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in row.items()) or "nothing in common"
