"""mudpuppy-doctor selftest: healthy checkpoints, planted damages, and what the doctor says."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mudpuppy.errors import OutputError, UsageError
from mudpuppy.files import write_text_atomic
from mudpuppy.parser import FriendlyParser
from reports.accuracy import (
    describe_wrong,
    summarise,
    write_console,
    write_json,
    write_markdown,
)

if TYPE_CHECKING:
    from harness.selftest.results import Examination

PROGRAM = "mudpuppy-doctor selftest"
PAGE = Path(__file__).resolve().parents[2] / "docs/doctor-accuracy.md"
"""Where the figures are kept in the project."""
EPILOG = """\
examples:
  mudpuppy-doctor selftest                           everything; a few minutes at first
  mudpuppy-doctor selftest --select FM08             the damages of one mode
  mudpuppy-doctor selftest --select healthy          only silence
  mudpuppy-doctor selftest --select 'peft-*' --select adapter-never-trained
  mudpuppy-doctor selftest --write                   also docs/doctor-accuracy.md

Healthy checkpoints are built with the libraries that are installed and kept in the cache folder
until these or the project change. Nothing is downloaded.
exit codes: 0 the doctor was right about everything, 1 it missed a damage or raised a false alarm,
2 wrong usage, 3 a checkpoint could not be built or examined, 130 interrupted
"""
WRITERS = {"console": write_console, "markdown": write_markdown, "json": write_json}
"""Forms of the report by the name that --format takes."""


def run_selftest(words: Sequence[str]) -> int:
    """Run the self-test as asked, and return the exit code."""
    arguments = _parser().parse_args(words)
    select = [word for value in arguments.select for word in value.replace(",", " ").split()]
    if arguments.write and select:
        raise UsageError("--write wants all figures: leave --select out")
    if arguments.write and not PAGE.parent.is_dir():
        raise UsageError(f"--write wants the project's own folder; there is no {PAGE.parent}")
    if arguments.jobs < 1:
        raise UsageError(f"-j {arguments.jobs}: expected 1 or more processes")
    from harness.selftest import run

    if arguments.list:
        print("\n".join(run.choose(select)))
        return 0
    try:
        accuracy = run.run_selftest(select, jobs=arguments.jobs, progress=_Progress())
    except ModuleNotFoundError as problem:
        message = f"the self-test builds its checkpoints with {problem.name}, which is not there"
        raise UsageError(message, hint=f"pip install {problem.name}") from None
    text = WRITERS[arguments.format](accuracy)
    if arguments.write:
        _write(PAGE, write_markdown(accuracy))
    if arguments.output:
        _write(Path(arguments.output), text)
        print(f"{summarise(accuracy)}: {arguments.output}", file=sys.stderr)
    else:
        sys.stdout.write(text)
    return accuracy.exit_code


def _parser() -> FriendlyParser:
    parser = FriendlyParser(
        prog=PROGRAM,
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    selecting = "names, globs, modes, codes, 'healthy' or 'damages', separated by commas"
    parser.add_argument("--select", action="append", default=[], metavar="WORDS", help=selecting)
    parser.add_argument("--list", action="store_true", help="print the names and examine nothing")
    parser.add_argument("--format", choices=tuple(WRITERS), default="console")
    parser.add_argument("--output", metavar="FILE", help="write the report to a file instead")
    parser.add_argument("--write", action="store_true", help="also write docs/doctor-accuracy.md")
    cores = max(1, min(4, os.cpu_count() or 1))
    parser.add_argument("-j", "--jobs", type=int, default=cores, metavar="N", help="processes")
    return parser


class _Progress:
    """Says on stderr how far it is: each error at once, and the count where a person watches."""

    def __init__(self) -> None:
        self.is_watched = sys.stderr.isatty()

    def __call__(self, one: Examination, done: int, total: int) -> None:
        """Show one examination."""
        start = "\r\x1b[K" if self.is_watched else ""
        if not one.is_right:
            print(f"{start}{PROGRAM}: {describe_wrong(one)[:400]}", file=sys.stderr)
        if self.is_watched:
            end = "\n" if done == total else ""
            print(f"{start}{done}/{total} {one.name[:60]}", file=sys.stderr, end=end, flush=True)


def _write(path: Path, text: str) -> None:
    try:
        write_text_atomic(path, text)
    except OSError as problem:
        raise OutputError(f"{path} cannot be written: {problem.strerror}") from problem
