"""The doctor's project file: `mudpuppy-doctor.toml`, or `[tool.mudpuppy.doctor]` in pyproject.toml.

It is looked for from the current folder upwards. One that lies inside the checkpoint is not
believed: whoever made the checkpoint would decide what is found in it (design, rule 8).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

from harness.doctor.acceptance import Acceptance
from harness.evidence.source import Depth
from harness.findings import Severity
from mudpuppy.errors import ConfigError, UsageError, near_names, shown

OWN_FILE = "mudpuppy-doctor.toml"
PROJECT_FILE = "pyproject.toml"
NEVER = "never"
"""The word for no severity at all."""
LIMIT_BYTES = 64_000
"""Largest project file of our own that is read."""
PROJECT_LIMIT_BYTES = 256_000
"""Largest pyproject.toml that is read: it holds other people's settings, too."""
_STRINGS = re.compile(rb""""(?:[^"\\]|\\.)*"|'[^']*'""")
MOST_DOTS = 200
"""Dots in one line: the parser's memory grows with the square of the parts of a key."""
KEYS = (
    *("select", "ignore", "fail-on", "depth", "quick", "accept"),
    *("base", "adapter", "against", "quiz", "voice", "embeddings"),
)
ACCEPT_KEYS = ("probe", "reason", "subject", "tensor", "file", "key", "until")


@dataclass(frozen=True, kw_only=True)
class DoctorSettings:
    """What a project asks of the doctor; flags win over it."""

    source: str = ""
    """Where it was read from; empty where there is no project file."""
    select: tuple[str, ...] = ()
    """Probes to run."""
    ignore: tuple[str, ...] = ()
    """Probes not to run."""
    fail_on: str | None = None
    """A severity, or `never`."""
    depth: str | None = None
    """How deep to look."""
    quick: bool = False
    """Whether a sample of large tensors will do."""
    base: str | None = None
    """The base model; paths are relative to the project file."""
    adapter: str | None = None
    """The adapter a merged model came from."""
    against: str | None = None
    """An earlier stage, in place of the base, for what is asked."""
    quiz: str | None = None
    """Questions with answers."""
    voice: str | None = None
    """Voice profile."""
    embeddings: str | None = None
    """A sentence-transformers model."""
    accept: tuple[Acceptance, ...] = ()
    """Findings that do not count."""


def load_settings(
    named: str | None, examined: str | Path, start: Path | None = None
) -> tuple[DoctorSettings, str]:
    """Return the settings of a project, and a remark on a file that was not believed.

    Args:
        named: a file that the person named; then no other is looked for.
        examined: path that will be examined.
        start: folder from which to look upwards; the current one by default.

    Raises:
        ConfigError: the file holds what it should not; all problems at once.
        UsageError: it cannot be read, or is no TOML.
    """
    if named is not None:
        return parse_settings(Path(named), _read_table(Path(named), must_have=True) or {}), ""
    remark = ""
    root = Path(examined).resolve()
    with suppress(OSError):  # a path that cannot be looked at is refused by the diagnosis
        root = root.parent if root.is_file() else root
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        for file in (folder / OWN_FILE, folder / PROJECT_FILE):
            table = _read_table(file, must_have=False) if file.is_file() else None
            if table is None:
                continue
            if folder == root or root in folder.parents:
                remark = f"{file} lies in the checkpoint and was not read; --config FILE reads it"
                continue
            return parse_settings(file, table), remark
    return DoctorSettings(), remark


def parse_settings(file: Path, table: Mapping[str, Any]) -> DoctorSettings:
    """Return the settings of one table.

    Raises:
        ConfigError: unknown keys, values of another kind, an acceptance without a reason.
    """
    problems = [
        f"'{_short(key)}' is no setting{near_names(str(key), KEYS)}"
        for key in table
        if key not in KEYS
    ]
    words = {name: _read_words(table, name, problems) for name in ("select", "ignore")}
    depths = [str(one) for one in Depth]
    settings = DoctorSettings(
        source=str(file),
        select=words["select"],
        ignore=words["ignore"],
        fail_on=_read_choice(table, "fail-on", [*map(str, Severity), NEVER], problems),
        depth=_read_choice(table, "depth", depths, problems),
        base=_read_path(table, "base", file.parent, problems),
        adapter=_read_path(table, "adapter", file.parent, problems),
        quick=_read_switch(table, "quick", problems),
        against=_read_path(table, "against", file.parent, problems),
        quiz=_read_path(table, "quiz", file.parent, problems),
        voice=_read_path(table, "voice", file.parent, problems),
        embeddings=_read_path(table, "embeddings", file.parent, problems),
        accept=_read_acceptances(table.get("accept", []), problems),
    )
    if problems:
        raise ConfigError(problems, source=str(file))
    return settings


def _read_table(file: Path, *, must_have: bool) -> dict[str, Any] | None:
    """Return the doctor's table of a file; None where a project file has none."""
    import tomllib  # most checkpoints lie where no project is

    try:
        raw = _read_bounded(file)
        whole = tomllib.loads(raw.decode("utf-8"))
    except OSError as problem:
        raise UsageError(f"{file}: {problem.strerror}; expected a TOML file") from None
    except (ValueError, RecursionError) as problem:
        if not must_have and file.name == PROJECT_FILE:
            return None  # somebody else's file; whoever it is for will say what is wrong with it
        raise UsageError(f"{file} is no TOML: {problem}") from None
    if file.name != PROJECT_FILE:
        return whole
    table: Any = whole
    for name in ("tool", "mudpuppy", "doctor"):
        table = table.get(name) if isinstance(table, dict) else None
    if table is None and must_have:
        raise UsageError(f"{file} has no table [tool.mudpuppy.doctor]")
    return table if isinstance(table, dict) else None


def _read_bounded(file: Path) -> bytes:
    """Return a file that the TOML parser can be given.

    Raises:
        UsageError: it is larger than any such file, or made to fill the memory.
    """
    limit = PROJECT_LIMIT_BYTES if file.name == PROJECT_FILE else LIMIT_BYTES
    with file.open("rb") as opened:
        raw = opened.read(limit + 1)
    if len(raw) > limit:
        raise UsageError(f"{file} is larger than {limit:,} bytes; expected a project's settings")
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if line.count(b".") > MOST_DOTS and _STRINGS.sub(b"", line).count(b".") > MOST_DOTS:
            raise UsageError(f"{file}:{number} holds more than {MOST_DOTS} dots outside of strings")
    return raw


def _read_words(table: Mapping[str, Any], key: str, problems: list[str]) -> tuple[str, ...]:
    value = table.get(key, [])
    if isinstance(value, list) and all(isinstance(one, str) and one for one in value):
        return tuple(value)
    problems.append(f"'{key}' is {shown(value)}; expected a list of codes, names or FM numbers")
    return ()


def _read_choice(
    table: Mapping[str, Any], key: str, choices: Sequence[str], problems: list[str]
) -> str | None:
    value = table.get(key)
    if value is None or value in choices:
        return value
    problems.append(f"'{key}' is {shown(value)}; expected one of {', '.join(choices)}")
    return None


def _read_switch(table: Mapping[str, Any], key: str, problems: list[str]) -> bool:
    value = table.get(key, False)
    if isinstance(value, bool):
        return value
    problems.append(f"'{key}' is {shown(value)}; expected true or false")
    return False


def _read_path(table: Mapping[str, Any], key: str, folder: Path, problems: list[str]) -> str | None:
    value = table.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        problems.append(f"'{key}' is {shown(value)}; expected a path")
        return None
    # Embedded models and models of a hub have names, no paths.
    return value if value.partition(":")[0] in ("tiny", "hf") else str(folder / value)


def _read_acceptances(value: Any, problems: list[str]) -> tuple[Acceptance, ...]:
    if not isinstance(value, list):
        problems.append("'accept' is no list of tables; expected [[accept]] with probe and reason")
        return ()
    found = [_read_acceptance(number, one, problems) for number, one in enumerate(value, start=1)]
    return tuple(one for one in found if one is not None)


def _read_acceptance(number: int, value: Any, problems: list[str]) -> Acceptance | None:
    where = f"accept {number}"
    if not isinstance(value, dict):
        problems.append(f"{where} is {shown(value)}; expected a table with probe and reason")
        return None
    wrong = [
        f"{where}: '{_short(key)}' is no setting{near_names(str(key), ACCEPT_KEYS)}"
        for key in value
        if key not in ACCEPT_KEYS
    ]
    texts = {key: value[key] for key in ACCEPT_KEYS if key in value and key != "until"}
    wrong += [
        f"{where}: '{key}' is {shown(text)}; expected a text"
        for key, text in texts.items()
        if not isinstance(text, str) or not text.strip()
    ]
    wrong += [f"{where}: '{key}' is missing" for key in ("probe", "reason") if key not in value]
    until = value.get("until")
    if until is not None and (not isinstance(until, date) or isinstance(until, datetime)):
        wrong.append(f"{where}: 'until' is {shown(until)}; expected a day such as 2027-01-31")
    problems += wrong
    return None if wrong else Acceptance(**texts, until=until)


def _short(key: str) -> str:
    return key if len(key) <= 60 else f"{key[:60]}..."
