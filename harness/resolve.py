"""Check settings cheaply, many thousand rows of them: whatever stands by itself is checked once.

Pydantic takes a tenth of a millisecond for a configuration. The values of a product are few,
though, and all but a handful of settings are checked one by one: so each value is checked once, the
handful once in each constellation, and the rows are put together. A row with anything wrong in it
is checked whole, so that its errors are those of `load_config`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mudpuppy.config import SWITCHES, TrainingConfig
from mudpuppy.config_check import CHECKED_TOGETHER, check_values, load_config
from mudpuppy.errors import ConfigError, UnsupportedCombination
from mudpuppy.tiny.names import is_tiny_name

_REQUIRED = {"model": "tiny", "dataset": "data.jsonl", "output": "checkpoint"}
_TOGETHER = frozenset(CHECKED_TOGETHER)
_FEATURE_OF = {field: name for name, (field, _) in SWITCHES.items()}
_FIELDS = sorted(name for name in TrainingConfig.model_fields if name != "output")
_PLACE = {name: place for place, name in enumerate(_FIELDS)}
_UNFIT = object()
"""What is remembered of a value that has something wrong with it."""


class Layered(Mapping[str, Any]):
    """Settings of one row over those that many rows share; every key is one of the latter's."""

    __slots__ = ("_own", "_shared")

    def __init__(self, shared: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        self._shared = shared
        self._own = own

    def __getitem__(self, key: str) -> Any:
        """Return the row's own value, or the shared one."""
        return self._own[key] if key in self._own else self._shared[key]

    def __iter__(self) -> Iterator[str]:
        """Iterate over all settings, in the order they are documented."""
        return iter(self._shared)

    def __len__(self) -> int:
        """Return the number of settings."""
        return len(self._shared)

    def __repr__(self) -> str:
        """Show the settings as the dict that they are."""
        return repr(dict(self))


class Resolved(NamedTuple):
    """The settings of a cell, complete and checked."""

    config: Mapping[str, Any]
    """Every setting of `TrainingConfig` but `output`, as JSON types; paths are absolute."""
    as_written: str
    """The same as JSON with sorted keys, but with paths as the file writes them."""
    features: frozenset[str]
    """The features that are on."""


@dataclass(frozen=True, slots=True)
class _Base:
    """What the rows over one set of settings share."""

    settings: Mapping[str, Any]
    plain: dict[str, Any]
    config: dict[str, Any]
    fragments: list[str]
    features: frozenset[str]


class Resolver:
    """Checks rows of settings and completes them."""

    def __init__(self, data_folder: Path, model_folder: Path) -> None:
        """Remember which folders the paths of datasets and of models are relative to."""
        self._folders = {"dataset": data_folder, "model": model_folder}
        self._bases: dict[int, tuple[Mapping[str, Any], _Base | None]] = {}
        self._together: dict[Any, dict[str, Any] | None] = {}
        self._alone: dict[tuple[str, str], Any] = {}
        self._paths: dict[tuple[str, str], str] = {}
        self._fragments: dict[tuple[str, str], str] = {}

    def resolve(self, shared: Mapping[str, Any], own: Mapping[str, Any]) -> Resolved:
        """Return the settings of `own` over `shared`, checked, with every default.

        Args:
            shared: settings of many rows: the same object each time, unchanged.
            own: those of this row.

        Raises:
            ConfigError: something is wrong with them; all problems at once. A combination that
                the rule table rejects is nothing wrong.
        """
        base = self._base(shared)
        over = None if base is None else self._overlay(base, own)
        if base is None or over is None:
            base, over = self._whole({**shared, **own}), {}
        return self._put_together(base, over)

    def _base(self, shared: Mapping[str, Any]) -> _Base | None:
        """Return what the rows over `shared` have in common; None where it is unfit by itself."""
        if id(shared) not in self._bases:
            try:
                base = self._whole(shared)
            except ConfigError:
                base = None
            self._bases[id(shared)] = (shared, base)  # held, so that its id stays its own
        return self._bases[id(shared)][1]

    def _whole(self, settings: Mapping[str, Any]) -> _Base:
        """Check all settings at once."""
        config = _check(settings)
        plain = config.model_dump(mode="json", exclude={"output"})
        return _Base(
            settings=settings,
            plain=plain,
            config={name: self._locate(name, value) for name, value in plain.items()},
            fragments=[self._fragment(name, plain[name]) for name in _FIELDS],
            features=config.features,
        )

    def _overlay(self, base: _Base, own: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what `own` changes in the base, as JSON types; None where something is unfit."""
        over = self._weigh(base, own)
        if over is None or not own.keys() <= _PLACE.keys():
            return None
        over = dict(over)
        for name, value in own.items():
            if name in _TOGETHER:
                continue
            key = (name, repr(value))
            if key not in self._alone:
                self._alone[key] = _plain_value(name, value)
            if self._alone[key] is _UNFIT:
                return None
            over[name] = self._alone[key]
        return over

    def _weigh(self, base: _Base, own: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the changes among the settings that are checked together."""
        words = [(name, repr(value)) for name, value in own.items() if name in _TOGETHER]
        key = (id(base), *words)
        if key not in self._together:
            asked = {**base.settings, **own}
            try:
                config = check_values(
                    {**_REQUIRED, **{n: v for n, v in asked.items() if n in _TOGETHER}}
                )
            except ConfigError:
                self._together[key] = None
            else:
                plain = config.model_dump(mode="json", include=set(_TOGETHER))
                self._together[key] = {n: v for n, v in plain.items() if v != base.plain[n]}
        return self._together[key]

    def _put_together(self, base: _Base, over: dict[str, Any]) -> Resolved:
        fragments = base.fragments
        config: Mapping[str, Any] = base.config
        features = base.features
        if over:
            fragments = fragments.copy()
            for name, value in over.items():
                fragments[_PLACE[name]] = self._fragment(name, value)
            config = Layered(config, {n: self._locate(n, value) for n, value in over.items()})
            switched = {_FEATURE_OF[name]: name for name in over if name in _FEATURE_OF}
            if switched:
                on = {f for f, name in switched.items() if SWITCHES[f][1](over[name])}
                features = features.difference(switched) | on
        return Resolved(config, "{" + ", ".join(fragments) + "}", features)

    def _fragment(self, name: str, value: Any) -> str:
        key = (name, repr(value))
        if key not in self._fragments:
            self._fragments[key] = f'"{name}": {json.dumps(value, sort_keys=True)}'
        return self._fragments[key]

    def _locate(self, name: str, value: Any) -> Any:
        """Return a path as an absolute one; names of models, and other values, stay as they are."""
        if name not in self._folders:
            return value
        key = (name, value)
        if key not in self._paths:
            path = self._folders[name] / value
            stays = name == "model" and (is_tiny_name(value) or not path.exists())
            self._paths[key] = value if stays else str(path.resolve())
        return self._paths[key]


def _check(settings: Mapping[str, Any]) -> TrainingConfig:
    """Validate settings; a combination that the rules reject is still a fine cell."""
    values = {**settings, "output": "checkpoint"}
    try:
        return load_config(values)
    except UnsupportedCombination:
        return TrainingConfig.model_validate(values)


def _plain_value(name: str, value: Any) -> Any:
    """Return one setting that stands by itself, checked, as JSON types; or `_UNFIT`."""
    try:
        config = check_values({**_REQUIRED, name: value})
    except ConfigError:
        return _UNFIT
    return config.model_dump(mode="json", include={name})[name]
