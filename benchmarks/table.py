"""The table of everything that is measured: run rows, print them, keep the results.

    make bench         every row (about 20 minutes on two cores)
    make bench-quick   small sizes; fails where a row got worse than its committed result
    python -m benchmarks.table [NAME...] [--quick] [--rounds N] [--no-write] [--list] [--render]

Every subject is measured in a process of its own: a crash is an outcome. What cannot run here says
why; what falls short of its goal is shown as such.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.children import ROOT, environment
from benchmarks.frame import NotRun, Plan, Sides, Subject
from benchmarks.judge import FREE, NOT_RUN, SHORT, WORSE, Outcome, guard, judge, unrun
from benchmarks.machine import describe_machine, load_average, package_versions
from benchmarks.render import console, guard_table, subject_table, write_page
from benchmarks.rows import load_subjects
from mudpuppy.files import write_json_atomic, write_text_atomic

RESULTS = Path(__file__).parent / "results"
ROUNDS, QUICK_ROUNDS = 5, 3
TRIES = 3
"""Times that a row is measured before it counts as worse: a regression stays, a neighbour goes."""


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Returns:
        0 where all is as promised, 1 where a row is short of its goal or worse than it was, 2 for
        an unknown name, 3 where a measurement crashed.
    """
    options = _parser().parse_args(argv)
    subjects = load_subjects()
    if options.child:
        _measure_here(subjects[options.child], options)
        return 0
    if unknown := [name for name in options.names if name not in subjects]:
        console.print(f"no such subject: {', '.join(unknown)}; there are {', '.join(subjects)}")
        return 2
    if options.list:
        for subject in subjects.values():
            console.print(f"{subject.name:<16} {subject.title} ({len(subject.rows)})")
        return 0
    if options.render:
        _render(subjects)
        return 0
    chosen = [
        one
        for one in subjects.values()
        if (one.name in options.names)
        or (not options.names and (one.in_quick or not options.quick))
    ]
    run = _guard_all if options.quick and not options.update else _measure_all
    return run(chosen, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="subjects; all without any")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, held against the results"
    )
    parser.add_argument("--update", action="store_true", help="with --quick: keep what comes out")
    parser.add_argument(
        "--exact",
        action="store_true",
        help="with --quick: guard errors, bytes and counts, no times",
    )
    parser.add_argument("--rounds", type=int, help="interleaved rounds")
    parser.add_argument("--no-write", action="store_true", help="print only")
    parser.add_argument("--list", action="store_true", help="name the subjects")
    parser.add_argument("--render", action="store_true", help="write table.md from the results")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    return parser


def _measure_all(chosen: list[Subject], options: argparse.Namespace) -> int:
    """Measure, print and keep; the worst exit code counts."""
    code = 0
    for subject in chosen:
        result = measure(subject, options.quick, options.rounds)
        console.print(subject_table(result))
        statuses = {row["status"] for row in result["rows"]}
        code = max(code, 3 if result.get("crash") else int(SHORT in statuses))
        if not options.no_write and not result.get("crash"):
            keep(result, RESULTS)
    if not options.no_write and not options.quick:
        _render(load_subjects())
    return code


def _guard_all(chosen: list[Subject], options: argparse.Namespace) -> int:
    """Hold quick measurements against what was committed; what is worse is measured again."""
    lines: list[tuple[str, str, Outcome, str]] = []
    code = 0
    for subject in chosen:
        kept = read_result(RESULTS, subject.name, is_quick=True)
        for number in range(TRIES):
            result = measure(subject, True, options.rounds)
            found = held_against(subject, result, kept, times=not options.exact)
            if result.get("crash") or not any(one[3].startswith(WORSE) for one in found):
                break
            if number + 1 < TRIES:
                console.print(f"{subject.name}: worse than committed; measured again")
        lines += found
        worse = any(one[3].startswith(WORSE) for one in found)
        code = max(code, 3 if result.get("crash") else int(worse))
    console.print(guard_table(lines))
    guarded = sum(not one[3].startswith(FREE) for one in lines)
    console.print(f"{guarded} of {len(lines)} rows guarded; exit code {code}")
    return code


def held_against(
    subject: Subject, result: dict[str, Any], kept: dict[str, Any] | None, *, times: bool = True
) -> list[tuple[str, str, Outcome, str]]:
    """Return subject, row, outcome and verdict of the guard of every row.

    Args:
        subject: what was measured.
        result: what came out.
        kept: what was committed, None where nothing was.
        times: whether times are guarded, too.
    """
    before = {row["name"]: row for row in (kept or {}).get("rows", ())}
    known = kept is not None and kept["machine"]["processor"] == result["machine"]["processor"]
    same = times and known
    outcomes = {
        row["name"]: Outcome(**{"goal": "", "against": None, **row}) for row in result["rows"]
    }
    return [
        (subject.name, row.what, now, guard(row, now, before.get(row.name), same))
        for row in subject.rows
        for now in (outcomes[row.name],)
    ]


def measure(subject: Subject, is_quick: bool, rounds: int | None) -> dict[str, Any]:
    """Measure a subject in a process of its own and return everything about it as JSON types."""
    console.rule(f"{subject.name}: {subject.title}")
    begun = time.perf_counter()
    result: dict[str, Any] = {
        "subject": subject.name,
        "title": subject.title,
        "mode": "quick" if is_quick else "full",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe_machine(),
        "versions": package_versions(),
        "threads": subject.threads,
        "load_before": load_average(),
    }
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "result.json"
        words = [sys.executable, "-m", "benchmarks.table", "--child", subject.name]
        words += ["--result", str(path), *(["--quick"] if is_quick else [])]
        words += ["--rounds", str(rounds or (QUICK_ROUNDS if is_quick else ROUNDS))]
        crash = _run(words, subject)
        result |= json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if crash or "rows" not in result:
        reason = crash or "the measurement ended without a result"
        result |= {"crash": reason, "rows": [unrun(row, reason).to_json() for row in subject.rows]}
    return result | {"seconds": round(time.perf_counter() - begun, 1), "load_after": load_average()}


def _run(words: list[str], subject: Subject) -> str:
    """Run a measurement and return how it crashed, or nothing."""
    env = environment(subject.threads)
    try:
        done = subprocess.run(words, cwd=ROOT, env=env, check=False, timeout=60 * subject.minutes)
    except subprocess.TimeoutExpired:
        return f"crashed: took longer than {subject.minutes:g} minutes"
    return f"crashed: exit code {done.returncode}" if done.returncode else ""


def _measure_here(subject: Subject, options: argparse.Namespace) -> None:
    """Measure in this process and write what came out."""
    with tempfile.TemporaryDirectory() as name:
        plan = Plan(
            folder=Path(name),
            is_quick=options.quick,
            rounds=options.rounds,
            threads=subject.threads,
            say=lambda text: console.print(text, highlight=False),
        )
        sides: Sides
        try:
            sides = subject.measure(plan)
            outcomes = [judge(row, sides) for row in subject.rows]
        except NotRun as error:
            sides = {}
            outcomes = [unrun(row, error.reason) for row in subject.rows]
    taken = {
        name: {"not_run": side.reason} if isinstance(side, NotRun) else {"samples": side}
        for name, side in sides.items()
    }
    result = {"rounds": plan.rounds, "facts": plan.facts, "sides": taken}
    result["rows"] = [one.to_json() for one in outcomes]
    options.result.write_text(json.dumps(result), encoding="utf-8")


def keep(result: dict[str, Any], folder: Path) -> None:
    """Write the result of one subject; what is not run here leaves an older result in place."""
    if all(row["status"] == NOT_RUN for row in result["rows"]):
        known = read_result(folder, result["subject"], is_quick=result["mode"] == "quick")
        if known is not None:
            return
    path = _path(folder, result["subject"], result["mode"] == "quick")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(path, result)


def read_result(folder: Path, name: str, *, is_quick: bool) -> dict[str, Any] | None:
    """Return what was kept of a subject, or None."""
    path = _path(folder, name, is_quick)
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _path(folder: Path, name: str, is_quick: bool) -> Path:
    return folder / ("quick" if is_quick else "rows") / f"{name}.json"


def _render(subjects: dict[str, Subject]) -> None:
    """Write the page of everything that was kept."""
    kept = {name: read_result(RESULTS, name, is_quick=False) for name in subjects}
    write_text_atomic(RESULTS / "table.md", write_page(subjects, kept))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    raise SystemExit(main())
