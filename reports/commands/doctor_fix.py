"""`mudpuppy-doctor PATH --fix`: write a repaired copy, examine it, and say what is left."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.doctor import Judging
from harness.doctor.paths import resolve_tiny
from harness.doctor.visit import choose_probes
from harness.evidence.source import Options
from harness.findings import Diagnosis
from harness.hub.names import is_hub_name
from mudpuppy.errors import UsageError
from reports.text import clean

if TYPE_CHECKING:
    from harness.repairs.make import RepairPlan

Examine = Callable[[str], Diagnosis]
"""Examines a path as the command was asked to."""


def add_repair_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags of the repairs."""
    fix = "write a repaired copy beside the original (PATH-fixed), examine it, say what is left"
    group.add_argument("--fix", action="store_true", help=fix)
    group.add_argument(
        "--fix-to", metavar="DIR", help="write the repaired copy here (implies --fix)"
    )
    group.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="CODES",
        help="repair only these, as --select",
    )
    group.add_argument("--dry-run", action="store_true", help="only list the repairs")


def check_repair_flags(arguments: argparse.Namespace) -> bool:
    """Return whether repairs are asked for; a hopeless target is refused before the examination.

    Raises:
        UsageError: flags that only make sense with --fix, without it.
        OutputError: the copy cannot be put where it is to go.
    """
    if arguments.fix or arguments.fix_to:
        if is_hub_name(arguments.path):
            raise UsageError(
                f"--fix needs the files, and of {arguments.path} only headers are fetched",
                hint="download the model and repair the folder",
            )
        if not arguments.dry_run:
            from harness.repairs.make import require_target

            require_target(Path(arguments.path), _target(arguments))
        return True
    if arguments.dry_run or arguments.only:
        flag = "--dry-run" if arguments.dry_run else "--only"
        raise UsageError(f"{flag} is about repairs", hint=f"{flag} --fix")
    return False


def _options(judging: Judging) -> Options:
    """Return what makes more repairs certain; of a model on a hub there are only headers."""
    is_here = judging.base is not None and not is_hub_name(judging.base)
    base = resolve_tiny(str(judging.base)) if is_here else None
    is_here = judging.adapter is not None and not is_hub_name(judging.adapter)
    return Options(base=base, adapter=Path(str(judging.adapter)) if is_here else None)


def repair(
    arguments: argparse.Namespace,
    judging: Judging,
    found: Diagnosis,
    examine: Examine,
    *,
    aloud: bool,
) -> Diagnosis:
    """Repair what a diagnosis found, and return the diagnosis of the copy.

    Args:
        arguments: the words of the command.
        judging: how the original was examined.
        found: the diagnosis of the original.
        examine: examines the copy.
        aloud: whether the plan goes to standard output, where a person reads the report.
    """
    from harness.repairs.make import describe_plan, plan_repairs, write_copy

    options = _options(judging)
    words = [word for value in arguments.only for word in value.replace(",", " ").split()]
    only = {one.name for one in choose_probes(words, ())} if words else None
    plan = plan_repairs(Path(arguments.path), found, options, only)
    say = _say_out if aloud else _say_err
    for line in describe_plan(plan):
        say(f"  {line}")
    if not plan.changes or arguments.dry_run:
        say("nothing to repair" if not plan.changes else "nothing was written (--dry-run)")
        return replace(found, facts={**found.facts, "repair": _facts(plan, None)})
    target = _target(arguments)
    skipped = write_copy(plan, target)
    for name in skipped:
        say(f"  {name}: left out, a link that leads out of the folder or no plain file")
    say(f"the repaired copy is in {target}; the original is as it was\n")
    after = examine(str(target))
    return replace(after, facts={**after.facts, "repair": _facts(plan, target)})


def _target(arguments: argparse.Namespace) -> Path:
    if arguments.fix_to:
        return Path(arguments.fix_to)
    root = Path(arguments.path).resolve()
    return root.with_name(f"{root.name}-fixed")


def _facts(plan: RepairPlan, target: Path | None) -> dict[str, object]:
    return {
        "from": str(plan.root),
        "to": None if target is None else str(target),
        "changes": [asdict(one) for one in plan.changes],
        "not_repaired": [asdict(one) for one in plan.unmended],
    }


def _say_out(text: str) -> None:
    print(_cleaned(text), flush=True)


def _say_err(text: str) -> None:
    print(_cleaned(text), file=sys.stderr, flush=True)


def _cleaned(text: str) -> str:
    """Return a line made safe and wrapped for the terminal, its indent kept."""
    inner = text.lstrip(" ")
    indent = " " * (len(text) - len(inner))
    end = "\n" if text.endswith("\n") else ""
    width = max(40, shutil.get_terminal_size((100, 24)).columns)
    wrapper = textwrap.TextWrapper(width, indent, f"{indent}  ", break_long_words=False)
    return wrapper.fill(clean(inner)) + end
