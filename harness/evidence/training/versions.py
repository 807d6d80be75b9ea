"""Evidence about versions: the table of known defects, and what a checkpoint was made with."""

from __future__ import annotations

import operator
import re
import tomllib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from harness.evidence.files.inventory import leaves_folder, list_files
from harness.evidence.source import CheckpointEvidence, provides
from harness.evidence.training.log import CARD, CARD_LIMIT_BYTES, read_number
from harness.facts.checkpoint import Adapter
from harness.facts.machine import KnownDefect, Version
from harness.facts.records import TrainingLog
from harness.registry import NotApplicable
from mudpuppy.files import open_regular

TABLE = Path(__file__).parents[2] / "known_defects.toml"
ORDER = ("critical", "high", "medium", "note")
_FRAMEWORK = re.compile(r"^- (?P<name>PEFT|TRL|Transformers|Pytorch) (?P<version>\S{1,40})$", re.M)
NAMES = {"Pytorch": "torch"}
_CLAUSE = re.compile(r"(<=|>=|<|>|==)(\d{1,6}(?:\.\d{1,6})*)")
_NUMBERS = re.compile(r"\d{1,6}(\.\d{1,6})*")
_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">=": operator.ge,
    ">": operator.gt,
    "==": operator.eq,
}


@cache
def read_table() -> tuple[dict[str, Any], ...]:
    """Return the entries of the table as they are written."""
    return tuple(tomllib.loads(TABLE.read_text(encoding="utf-8"))["defect"])


def find_defects(
    package: str, version: str, place: str, known: Mapping[str, Any]
) -> tuple[KnownDefect, ...]:
    """Return the entries that apply to a version of a package, worst first.

    Args:
        package: its name, in lower case.
        version: its version; one that is none has no entry.
        place: `machine` or `checkpoint`.
        known: what conditions are held against: versions of packages by name, and what else is
            known by the name of the condition.
    """
    found = [
        KnownDefect(
            name=entry["name"],
            package=package,
            affected=entry["affected"],
            severity=entry["severity"],
            what=entry["what"],
            do=entry["do"],
            sources=tuple(entry["sources"]),
            modes=tuple(entry["modes"]),
        )
        for entry in read_table()
        if entry["package"] == package
        and place in entry["at"]
        and all(_holds(known.get(name), want) for name, want in entry.get("with", {}).items())
        and is_within(version, entry["affected"])
    ]
    return tuple(sorted(found, key=lambda one: ORDER.index(one.severity)))


def _holds(known: Any, wanted: Any) -> bool:
    if isinstance(wanted, str) and wanted[:1] in "<>=!~":
        return isinstance(known, str) and is_within(known, wanted)
    return bool(known == wanted)


def is_within(version: str, affected: str) -> bool:
    """Return whether a version lies in a range such as `>=4.46,<4.48.1`; no for what is none.

    What stands behind the numbers (`.dev0`, `+cu128`) does not count.

    Raises:
        ValueError: the range is of another form.
    """
    number = _numbers(version)
    if not number:
        return False
    for clause in affected.split(","):
        found = _CLAUSE.fullmatch(clause.strip())
        if found is None:
            raise ValueError(f"{affected!r} is no range of versions")
        if not _COMPARE[found[1]](number, _numbers(found[2])):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    """Return the numbers at the start of a version; zeros at their end are left out."""
    found = _NUMBERS.match(version)
    numbers = [int(part) for part in found[0].split(".")] if found else []
    while len(numbers) > 1 and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


@provides("made_with")
def read_versions(evidence: CheckpointEvidence) -> tuple[Version, ...]:
    """Return the versions that a checkpoint records, with the entries of the table that apply."""
    recorded = _recorded(evidence)
    if not recorded:
        raise NotApplicable("the checkpoint records no version that it was made with")
    known = {name: version for name, (version, _) in recorded.items()}
    context = {**known, "accumulates": _accumulates(evidence)}
    return tuple(
        Version(
            package=name,
            version=version,
            found_in=file,
            defects=find_defects(name, version, "checkpoint", context),
        )
        for name, (version, file) in recorded.items()
    )


def _recorded(evidence: CheckpointEvidence) -> dict[str, tuple[str, str]]:
    """Return version and file by package, the surest file last, which wins."""
    found: dict[str, tuple[str, str]] = {}
    config: Mapping[str, Any] = evidence.find("config") or {}
    _note(found, "transformers", config.get("transformers_version"), "config.json")
    adapter: Adapter | None = evidence.find("adapter")
    settings: Mapping[str, Any] = adapter.settings if adapter else {}
    for match in _FRAMEWORK.finditer(_read_card(evidence)):
        _note(found, NAMES.get(match[1], match[1].lower()), match[2], CARD)
    _note(found, "peft", settings.get("peft_version"), "adapter_config.json")
    versions = evidence.get("origin").get("versions")
    for name, version in (versions if isinstance(versions, dict) else {}).items():
        _note(found, str(name)[:60], version, "mudpuppy.json")
    return found


def _note(found: dict[str, tuple[str, str]], name: str, version: Any, file: str) -> None:
    # PEFT writes `0.18.1@UNKNOWN` where it was installed from a working tree.
    if isinstance(version, str) and 0 < len(version) <= 80:
        found[name] = (version.partition("@")[0], file)


def _read_card(evidence: CheckpointEvidence) -> str:
    folder = evidence.folder
    if evidence.file or CARD not in list_files(folder) or leaves_folder(folder, CARD):
        return ""
    try:
        with open_regular(folder / CARD) as handle:
            return handle.read(CARD_LIMIT_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def _accumulates(evidence: CheckpointEvidence) -> bool:
    log: TrainingLog | None = evidence.find("training_log")
    number = read_number(log.asked.get("gradient_accumulation_steps")) if log else None
    return number is not None and number > 1


@provides("trap")
@provides("installed")
@provides("requirements")
@provides("wheels")
def _refuse(evidence: CheckpointEvidence) -> NoReturn:
    """Say that a checkpoint is no machine.

    Raises:
        NotApplicable: always.
    """
    del evidence
    raise NotApplicable("only --env looks at the machine")
