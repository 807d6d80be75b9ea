"""Where the doctor's reports go: the terminal or files, in the form that is named or guessed."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.findings import Diagnosis
from harness.registry import load_probes
from mudpuppy.errors import MudpuppyError, OutputError, UsageError
from mudpuppy.files import write_text_atomic
from reports.diagnosis_console import ASCII, UNICODE, write_console

NARROWEST, WIDEST, IN_A_FILE = 40, 200, 100
"""Columns of the console report; what lies between is the terminal's own width."""
SUMMARY = "GITHUB_STEP_SUMMARY"
"""Variable with the file to which `--format github` adds the Markdown report."""
ENDINGS = {
    ".json": "json",
    ".md": "markdown",
    ".markdown": "markdown",
    ".xml": "junit",
    ".sarif": "sarif",
    ".html": "html",
    ".htm": "html",
}
"""Forms by the ending of a file; any other is text for the console."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """One report that is asked for."""

    form: str
    """A name of `FORMATS`."""
    file: Path | None
    """Where to; standard output by default."""


def plan_outputs(form: str | None, files: Sequence[str]) -> tuple[Output, ...]:
    """Return the reports to write, refusing hopeless files before the examination.

    Raises:
        OutputError: a file cannot be written where it is asked for.
        UsageError: one form for several files.
    """
    if form is not None and len(files) > 1:
        raise UsageError(
            f"--format {form} and {len(files)} times --output",
            hint="leave --format out: the endings of the files say their form",
        )
    paths = [Path(file) for file in files]
    for path in paths:
        _require_writable(path)
    if not paths:
        return (Output(form=form or "console", file=None),)
    return tuple(Output(form=form or _guess(path), file=path) for path in paths)


def deliver(diagnosis: Diagnosis, outputs: Sequence[Output]) -> None:
    """Write every report.

    Raises:
        MudpuppyError: it could not be printed.
        OutputError: a file could not be written.
    """
    for output in outputs:
        if output.form == "github" and (summary := os.environ.get(SUMMARY)):
            _append(Path(summary), _markdown(diagnosis, Terminal()))
        if output.file is None:
            text = FORMATS[output.form](diagnosis, _look_at_terminal())
            with printing():
                sys.stdout.write(text)
            continue
        try:
            write_text_atomic(output.file, FORMATS[output.form](diagnosis, Terminal()))
        except OSError as problem:
            raise OutputError(f"{output.file} cannot be written: {problem.strerror}") from problem
        print(f"{diagnosis.verdict}: the report is in {output.file}", file=sys.stderr)


@contextmanager
def printing() -> Iterator[None]:
    """Print inside the block, to the end.

    Raises:
        BrokenPipeError: the reader has gone, as `| head` does.
        MudpuppyError: standard output takes no more, for want of room.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as problem:
        # Python would try again when it ends, and complain in its own words.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        raise MudpuppyError(
            f"standard output cannot be written: {problem.strerror or problem}",
            hint="--output FILE writes the report elsewhere",
        ) from None


def _append(summary: Path, text: str) -> None:
    """Add a text to the page that GitHub shows for a job; each step adds its own.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        with summary.open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")
    except OSError as problem:
        raise OutputError(f"{SUMMARY} {summary}: {problem.strerror}") from problem


@dataclass(frozen=True, kw_only=True)
class Terminal:
    """What a console report may use."""

    width: int = IN_A_FILE
    """Columns."""
    colour: bool = False
    """Whether it shows colours."""
    unicode: bool = True
    """Whether it can print more than ASCII."""


def _look_at_terminal() -> Terminal:
    width = shutil.get_terminal_size((IN_A_FILE, 24)).columns
    encoding = (getattr(sys.stdout, "encoding", None) or "").replace("-", "").lower()
    return Terminal(
        width=max(NARROWEST, min(WIDEST, width)),
        colour=_wants_colour(),
        unicode=encoding.startswith("utf"),
    )


def _wants_colour() -> bool:
    """Follow NO_COLOR, then FORCE_COLOR, then what standard output is (no-color.org)."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def _console(diagnosis: Diagnosis, terminal: Terminal) -> str:
    marks = UNICODE if terminal.unicode else ASCII
    return write_console(diagnosis, width=terminal.width, colour=terminal.colour, marks=marks)


def _markdown(diagnosis: Diagnosis, terminal: Terminal) -> str:
    from reports.diagnosis_markdown import write_markdown

    return write_markdown(diagnosis)


def _json(diagnosis: Diagnosis, terminal: Terminal) -> str:
    from reports.diagnosis_json import write_json

    return write_json(diagnosis)


def _junit(diagnosis: Diagnosis, terminal: Terminal) -> str:
    from reports.diagnosis_junit import write_junit

    return write_junit(diagnosis)


def _sarif(diagnosis: Diagnosis, terminal: Terminal) -> str:
    from reports.diagnosis_sarif import write_sarif

    return write_sarif(diagnosis, load_probes())


def _html(diagnosis: Diagnosis, terminal: Terminal) -> str:
    from reports.diagnosis_html import write_html

    return write_html(diagnosis, load_probes())


def _github(diagnosis: Diagnosis, terminal: Terminal) -> str:
    from reports.diagnosis_github import write_github

    return write_github(diagnosis)


FORMATS: Mapping[str, Callable[[Diagnosis, Terminal], str]] = {
    "console": _console,
    "markdown": _markdown,
    "json": _json,
    "junit": _junit,
    "sarif": _sarif,
    "html": _html,
    "github": _github,
}
"""Report writers by the name that --format takes."""


def _guess(path: Path) -> str:
    return ENDINGS.get(path.suffix.lower(), "console")


def _require_writable(output: Path) -> None:
    try:
        output.is_file()  # a name that is too long, or lies in a closed folder, fails here
        what = _name_obstacle(output)
    except OSError as problem:
        what = f"cannot be used: {problem.strerror}"
    if what:
        raise OutputError(f"--output {str(output)[:300]} {what}; expected a file name")


def _name_obstacle(output: Path) -> str:
    """Return what keeps a file from being written; empty when nothing is known to."""
    if output.is_dir():
        return "is a folder"
    if not output.parent.is_dir():
        return "lies in a folder that does not exist"
    return "" if os.access(output.parent, os.W_OK) else "lies in a folder that may not be written"
