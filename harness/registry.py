"""The one registry of probes: it finds them, feeds them evidence by name, and records four endings.

A probe is a function in a file under `harness/probes/` named for the fault. Its parameters name the
evidence it reads (the habit of flake8's plugins); evidence that is not there means *skipped,
because ...*, never *healthy*, and an exception means *crashed*, never the end of the run.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harness.findings import Finding, ProbeResult, Rule, Severity, Status, fingerprint, hash_places

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

PLUGINS = "mudpuppy.probes"
"""Group of the entry points with which other packages bring probes."""
INFO = (".dist-info", "egg-info")
"""Endings of the folders that describe installed packages, in small letters."""
FOREIGN_CODE = re.compile("(?!MPD|PLUGIN|BROKEN)[A-Z]{2,12}[0-9]{3}")
"""Codes of their probes."""
Check = Callable[..., Finding | str]
"""A probe's function: a `Finding`, or one sentence that says what was found in order."""


class Missing(Exception):
    """Raised by evidence that is not there; the message is the reason a probe is skipped."""


class NotApplicable(Missing):
    """Raised where there is nothing to check: no adapter in a model, no run behind a checkpoint."""


class ControlFailed(Exception):
    """Raised when a behavioural control failed, so that nothing can be concluded."""


class EvidenceSource(Protocol):
    """Where probes get their evidence from."""

    def get(self, name: str) -> Any:
        """Return the evidence called `name`.

        Raises:
            Missing: it is not there, and why.
        """


@dataclass(frozen=True, kw_only=True)
class Probe(Rule):
    """One registered probe."""

    needs: tuple[str, ...]
    """Names of the evidence that it reads."""
    check: Check
    """The function itself; of one that was only read, what imports and calls it."""
    module: str
    """The module it is in."""


def probe(code: str, *, modes: Sequence[str], severity: Severity) -> Callable[[Check], Check]:
    """Register the decorated function as the probe of its file.

    Args:
        code: `MPD` and three digits; other packages have letters of their own.
        modes: failure modes of the catalogue.
        severity: that of the worst mode, unless there is a reason
            (tests/harness/probes/test_severities.py keeps them).
    """

    def mark(check: Check) -> Check:
        module = inspect.getmodule(check)
        assert module is not None
        made = Probe(
            code=code,
            name=_name_probe(check.__module__),
            modes=tuple(modes),
            severity=severity,
            needs=tuple(inspect.signature(check).parameters),
            check=check,
            module=check.__module__,
            documentation=inspect.getdoc(module) or "",
        )
        vars(module)["PROBE"] = made
        return check

    return mark


def _name_probe(module: str) -> str:
    return module.rpartition(".")[2].replace("_", "-")


OWN = "harness.probes"
"""The package of our own probes."""
_MARK = re.compile(
    r'^@probe\("(\w+)", modes=([\[(].*?[\])]), severity=Severity\.([A-Z]+)\)\n'
    r"def check\((.*?)\) -> Finding \| str:$",
    re.MULTILINE | re.DOTALL,
)
"""How a probe is marked in its file."""
_MODE, _PARAMETER = re.compile(r'"(\w+)"'), re.compile(r"(\w+): ")


@cache
def load_own_probes() -> tuple[Probe, ...]:
    """Return the probe of every file under `harness/probes/`, in code order.

    The files are read, not imported: most probes have nothing to judge in a checkpoint, and what
    they and their facts need takes longer to import than a diagnosis of files alone takes.

    A file that registers none, or a code that another one has, is a probe as well, which crashes
    and says why: one odd file must not end every diagnosis.
    """
    return read_probes(Path(__file__).parent / "probes", OWN)


def read_probes(folder: Path, package: str) -> tuple[Probe, ...]:
    """Return the probe of every file of a folder, in code order; a stand-in of one that has none.

    Args:
        folder: where the files lie.
        package: the package that they are.
    """
    found: dict[str, Probe] = {}
    for number, (path, module) in enumerate(_list_modules(folder, package), start=1):
        try:
            made = _read_probe(path.read_text(encoding="utf-8"), module)
            if made.code in found:
                raise ValueError(f"{made.code} is both {found[made.code].name} and {made.name}")
        except (ValueError, LookupError, OSError) as problem:
            code, what = f"BROKEN{number:03}", f"the probe file {path.name}"
            made = _stand_in(
                code, _name_probe(module), what, f"{type(problem).__name__}: {problem}"
            )
        found[made.code] = made
    return tuple(found[code] for code in sorted(found))


def _list_modules(folder: Path, package: str) -> Iterator[tuple[Path, str]]:
    """Yield the files of a package and of those in it, with the names of their modules."""
    with os.scandir(folder) as entries:
        held = sorted((one.name, one.is_dir()) for one in entries)
    for name, is_folder in held:
        stem, _, suffix = name.partition(".")
        if suffix == "py" and stem != "__init__":
            yield folder / name, f"{package}.{stem}"
        elif is_folder and (folder / name / "__init__.py").is_file():
            yield from _list_modules(folder / name, f"{package}.{name}")


def _read_probe(text: str, module: str) -> Probe:
    """Return the probe that the text of a file registers.

    Raises:
        ValueError: there is none.
    """
    found = _MARK.search(text)
    if found is None:
        raise ValueError(f"{module} registers no probe, or not on one line with its function below")
    code, modes, severity, parameters = found.groups()

    def check(*values: Any, **named: Any) -> Finding | str:
        answer: Finding | str = vars(importlib.import_module(module))["check"](*values, **named)
        return answer

    return Probe(
        code=code,
        name=_name_probe(module),
        modes=tuple(_MODE.findall(modes)),
        severity=Severity[severity],
        needs=tuple(_PARAMETER.findall(parameters)),
        check=check,
        module=module,
        documentation=text.split('"""', 2)[1].strip() if text.startswith('"""') else "",
    )


@cache
def load_probes() -> tuple[Probe, ...]:
    """Return our own probes and those of installed packages, in code order.

    A package names the modules of its probes as entry points of the group `mudpuppy.probes`. One
    that cannot be used is a probe as well, which crashes and says why.
    """
    found = list(load_own_probes())
    broken: list[tuple[EntryPoint, str]] = []
    for entry in _list_plugins():
        try:
            found.append(_load_plugin(entry, found))
        except (Exception, SystemExit) as problem:  # noqa: BLE001 - somebody else's code
            broken.append((entry, f"{type(problem).__name__}: {problem}"))
    for number, (entry, why) in enumerate(broken, start=1):
        package = f" of {entry.dist.name} {entry.dist.version}" if entry.dist else ""
        name = re.sub("[^a-z0-9]+", "-", entry.name.lower())
        what = f"the plugin {entry.name}{package}"
        found.append(_stand_in(f"PLUGIN{number:03}", name, what, why))
    return tuple(sorted(found, key=lambda one: one.code))


def _list_plugins() -> list[EntryPoint]:
    """Return the entry points of other packages, never one that lies in the current folder.

    With `python -m` that folder is searched for packages, too, and it may be a stranger's
    checkpoint.
    """
    here = Path.cwd().resolve()
    places = [place for place in sys.path if place and Path(place).resolve() != here]
    if not any(map(_may_bring_plugins, places)):
        return []
    from importlib.metadata import distributions  # takes as long as all lists of entry points

    found = {
        (entry.name, entry.value): entry
        for package in distributions(path=places)
        for entry in package.entry_points
        if entry.group == PLUGINS
    }
    return [found[key] for key in sorted(found)]


def _may_bring_plugins(place: str) -> bool:
    """Whether a package in a place of `sys.path` names the group; lists are searched as text."""
    try:
        with os.scandir(place) as entries:
            found = [one.path for one in entries if one.name.lower().endswith(INFO)]
    except NotADirectoryError:  # an archive of packages
        return True
    except OSError:
        return False
    return any(_names_group(f"{info}/entry_points.txt") for info in found)


def _names_group(path: str) -> bool:
    try:
        with open(path, "rb") as handle:  # noqa: PTH123 - half the time of a Path, a hundred times
            return PLUGINS.encode() in handle.read()
    except OSError:
        return False


def _load_plugin(entry: EntryPoint, known: Iterable[Probe]) -> Probe:
    """Return the probe of another package.

    Raises:
        ValueError: it registers none, or one whose code or name is not its own.
    """
    made = vars(importlib.import_module(entry.value)).get("PROBE")
    if not isinstance(made, Probe):
        raise ValueError(f"{entry.value} registers no probe")
    if not FOREIGN_CODE.fullmatch(made.code):
        raise ValueError(f"its code {made.code} is not letters, other than MPD, and three digits")
    for one in known:
        if made.code == one.code or made.name == one.name:
            raise ValueError(f"{made.code} {made.name} is also {one.code} {one.name}")
    return made


def _stand_in(code: str, name: str, what: str, why: str) -> Probe:
    """Return the probe that tells of a plugin or a file that cannot be used."""

    def check() -> str:
        raise ControlFailed(f"{what} cannot be used: {why}")

    return Probe(
        code=code,
        name=name,
        modes=(),
        severity=Severity.HIGH,
        needs=(),
        check=check,
        module=__name__,
        documentation=f"{what[0].upper()}{what[1:]} cannot be used.\n\n{why}",
    )


def select_probes(
    probes: Iterable[Probe], select: Sequence[str] = (), ignore: Sequence[str] = ()
) -> tuple[Probe, ...]:
    """Return the probes that `select` names and `ignore` does not.

    Each word is a code, the beginning of one (`MPD2`), a name, or a failure mode (`FM17`).
    """

    def matches(one: Probe, words: Sequence[str]) -> bool:
        return any(
            one.code.startswith(w.upper()) or one.name == w.lower() or w.upper() in one.modes
            for w in words
        )

    return tuple(p for p in probes if (not select or matches(p, select)) and not matches(p, ignore))


def run_probe(one: Probe, source: EvidenceSource, subject: str = ".") -> ProbeResult:
    """Run one probe and return its ending; never raises for what the checkpoint contains."""
    base: dict[str, Any] = {
        "code": one.code,
        "name": one.name,
        "modes": one.modes,
        "subject": subject,
    }
    try:
        outcome = one.check(**{name: source.get(name) for name in one.needs})
    except Missing as missing:
        applies = not isinstance(missing, NotApplicable)
        return ProbeResult(**base, status=Status.SKIPPED, reason=str(missing), applies=applies)
    except ControlFailed as failure:
        return ProbeResult(**base, status=Status.CRASHED, reason=str(failure))
    except Exception as error:  # noqa: BLE001 - a crashing probe is a result, not the end
        return ProbeResult(**base, status=Status.CRASHED, reason=f"{type(error).__name__}: {error}")
    if isinstance(outcome, str):
        return ProbeResult(**base, status=Status.PASSED, message=outcome)
    return ProbeResult(
        **base,
        status=Status.FAILED,
        severity=outcome.severity or one.severity,
        message=outcome.message,
        evidence=outcome.evidence,
        cause=outcome.cause,
        remedy=outcome.remedy,
        fingerprint=fingerprint(one.code, subject, outcome.evidence),
        places=hash_places(outcome.evidence),
    )


def run_probes(
    probes: Iterable[Probe], source: EvidenceSource, subject: str = "."
) -> tuple[ProbeResult, ...]:
    """Run every probe on one source of evidence, in the order given."""
    return tuple(run_probe(one, source, subject) for one in probes)
