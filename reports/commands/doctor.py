"""mudpuppy-doctor: is this checkpoint healthy, how do I know, and what do I type to mend it."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from harness.doctor import choose_probes, diagnose, explain
from harness.evidence.source import TIME_LIMIT_S
from harness.findings import Diagnosis
from harness.registry import load_probes
from mudpuppy.errors import MudpuppyError, OutputError
from mudpuppy.files import write_text_atomic
from mudpuppy.flags import FriendlyParser
from reports.diagnosis_console import write_console
from reports.diagnosis_json import write_json
from reports.diagnosis_markdown import write_markdown
from reports.text import clean_lines

EPILOG = """\
examples:
  mudpuppy-doctor out/my-lora                        files, settings and values; no GPU, no torch
  mudpuppy-doctor out/my-lora/merged --base models/qwen --adapter out/my-lora
  mudpuppy-doctor my-model-q4_k_m.gguf
  mudpuppy-doctor out/my-lora --generate --quiz quiz.jsonl
  mudpuppy-doctor out/my-lora --format json --output doctor.json
  mudpuppy-doctor explain MPD203                     what a code means and what to do
  mudpuppy-doctor list                               every probe

exit codes: 0 healthy, 1 findings, 2 wrong usage, 3 could not be determined
Nothing is downloaded, nothing from the checkpoint is executed, no pickle is loaded.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == ["explain"]:
            return _explain(words[1:])
        if words[:1] == ["list"]:
            return _list(words[1:])
        return _diagnose(_parser().parse_args(words))
    except MudpuppyError as error:
        print(f"mudpuppy-doctor: {clean_lines(str(error))}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 3
    except KeyboardInterrupt:
        print("mudpuppy-doctor: interrupted, nothing was written", file=sys.stderr)
        return 130
    except Exception:  # noqa: BLE001 - python would exit with 1, which means findings
        traceback.print_exc()
        return MudpuppyError.exit_code


def _parser() -> FriendlyParser:
    parser = FriendlyParser(
        prog="mudpuppy-doctor",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    path = "a model folder, an adapter folder, a trainer output, or one .safetensors or .gguf file"
    parser.add_argument("path", help=path)
    parser.add_argument("--base", metavar="PATH", help="the model it was made from, or tiny")
    parser.add_argument("--adapter", metavar="PATH", help="the adapter a merged model came from")
    parser.add_argument("--generate", action="store_true", help="load the models and ask them")
    parser.add_argument("--quiz", metavar="FILE", help="questions with answers (JSONL)")
    parser.add_argument("--voice", metavar="FILE", help="voice profile (YAML)")
    limit = f"time for asking one checkpoint (default {TIME_LIMIT_S:g})"
    parser.add_argument(
        "--time-limit", metavar="S", type=_seconds, default=TIME_LIMIT_S, help=limit
    )
    formats = tuple(WRITERS)
    parser.add_argument("--format", choices=formats, default="console", help="form of the report")
    parser.add_argument("--output", metavar="FILE", help="write the report to a file instead")
    selecting = "codes, beginnings of codes, names or FM numbers, separated by commas"
    parser.add_argument("--select", action="append", default=[], metavar="CODES", help=selecting)
    parser.add_argument("--ignore", action="append", default=[], metavar="CODES", help="the same")
    return parser


def _seconds(text: str) -> float:
    """Return a positive number of seconds; argparse reports the ValueError."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(text)
    return value


def _diagnose(arguments: argparse.Namespace) -> int:
    output = Path(arguments.output) if arguments.output else None
    _require_writable(output)
    diagnosis = diagnose(
        arguments.path,
        base=arguments.base,
        adapter=arguments.adapter,
        generate=arguments.generate,
        quiz=arguments.quiz,
        voice=arguments.voice,
        time_limit_s=arguments.time_limit,
        select=_split(arguments.select),
        ignore=_split(arguments.ignore),
        progress=_show_progress,
    )
    _deliver(diagnosis, arguments.format, output)
    return diagnosis.exit_code


def _deliver(diagnosis: Diagnosis, form: str, output: Path | None) -> None:
    if output is None:
        text = WRITERS[form](diagnosis, _width(), _wants_colour())
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    try:
        write_text_atomic(output, WRITERS[form](diagnosis, 100, False))
    except OSError as problem:
        raise OutputError(f"{output} cannot be written: {problem.strerror}") from problem
    print(f"{diagnosis.verdict}: the report is in {output}", file=sys.stderr)


WRITERS = {
    "console": lambda diagnosis, width, colour: write_console(
        diagnosis, width=width, colour=colour
    ),
    "markdown": lambda diagnosis, width, colour: write_markdown(diagnosis),
    "json": lambda diagnosis, width, colour: write_json(diagnosis),
}
"""Report writers by the name that --format takes."""


def _require_writable(output: Path | None) -> None:
    """Refuse a hopeless --output before the examination, not after it."""
    if output is None:
        return
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


def _explain(words: Sequence[str]) -> int:
    parser = FriendlyParser(prog="mudpuppy-doctor explain", allow_abbrev=False)
    parser.add_argument("code", help="a code such as MPD203, or the name of a fault")
    one = explain(parser.parse_args(words).code)
    print(f"{one.code} {one.name} ({one.severity}; {', '.join(one.modes)})\n")
    print(one.documentation)
    return 0


def _list(words: Sequence[str]) -> int:
    parser = FriendlyParser(prog="mudpuppy-doctor list", allow_abbrev=False)
    parser.add_argument("words", nargs="*", help="codes, beginnings of codes, names or FM numbers")
    chosen = parser.parse_args(words).words
    for one in choose_probes(_split(chosen), ()) if chosen else load_probes():
        caption = one.documentation.splitlines()[0]
        print(f"{one.code}  {one.severity:<8} {one.name:<32} {caption}")
    return 0


def _split(values: Sequence[str]) -> list[str]:
    return [word for value in values for word in value.replace(",", " ").split()]


def _show_progress(text: str) -> None:
    print(f"mudpuppy-doctor: {clean_lines(text)}", file=sys.stderr)


def _width() -> int:
    return max(60, min(120, shutil.get_terminal_size((100, 24)).columns))


def _wants_colour() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


if __name__ == "__main__":
    raise SystemExit(main())
