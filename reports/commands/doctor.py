"""mudpuppy-doctor: is this checkpoint healthy, how do I know, and what do I type to mend it."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial

from harness.doctor import Judging, diagnose
from harness.doctor.baseline import read_baseline
from harness.doctor.settings import NEVER, DoctorSettings, load_settings
from harness.doctor.visit import choose_probes
from harness.evidence.source import TIME_LIMIT_S, Depth
from harness.findings import Diagnosis, Severity
from mudpuppy.errors import MudpuppyError, UsageError
from mudpuppy.interruption import describe, raising_when_terminated
from mudpuppy.parser import FriendlyParser
from reports.commands.doctor_fix import add_repair_flags, check_repair_flags, repair
from reports.commands.doctor_output import FORMATS, deliver, plan_outputs
from reports.commands.doctor_progress import ScanProgress
from reports.text import clean_lines

EPILOG = """\
examples:
  mudpuppy-doctor out/my-lora                        files, settings and values; no GPU, no torch
  mudpuppy-doctor out/my-lora/merged --base models/qwen --adapter out/my-lora
  mudpuppy-doctor my-model-q4_k_m.gguf
  mudpuppy-doctor out/my-lora --generate --quiz quiz.jsonl
  mudpuppy-doctor hf://org/name@revision             a model hub: settings and headers alone
  mudpuppy-doctor --endpoint http://127.0.0.1:1234/v1 --quiz quiz.jsonl
  mudpuppy-doctor out/my-lora --output doctor.json --output doctor.html
  mudpuppy-doctor out/my-lora --baseline doctor.json only what is new since then
  mudpuppy-doctor out/my-lora --fix                  a repaired copy in out/my-lora-fixed
  mudpuppy-doctor explain MPD203                     what a code means and what to do
  mudpuppy-doctor explain "Found missing adapter keys while loading the checkpoint"
  mudpuppy-doctor list                               every probe
  mudpuppy-doctor --env                              this machine: traps of ROCm, bad versions
  mudpuppy-doctor selftest                           is the doctor any good? recall, false alarms

project file: mudpuppy-doctor.toml, or [tool.mudpuppy.doctor] in pyproject.toml, from here upwards
exit codes: 0 healthy, 1 findings, 2 wrong usage, 3 could not be determined
Nothing from the checkpoint is executed, no pickle is loaded. The network is used only for what is
named hf://, of which settings and headers are fetched, and for --endpoint.
"""

SUBCOMMANDS = {
    "explain": "doctor_explain.run_explain",
    "list": "doctor_explain.run_list",
    "schema": "doctor_explain.run_schema",
    "selftest": "doctor_selftest.run_selftest",
}
"""What can stand in place of a path, and the function here that gets the words behind it; its file
is imported only then."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    # Tensors are compared in threads of our own; numpy's would only stand in their way.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        # What this terminal cannot print is escaped, and does not end the report.
        _escape_unprintable()
        with raising_when_terminated():
            if words and words[0] in SUBCOMMANDS:
                return _run_subcommand(words[0], words[1:])
            return _diagnose(_parser().parse_args(words))
    except MudpuppyError as error:
        print(f"mudpuppy-doctor: {clean_lines(str(error))}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 3
    except KeyboardInterrupt as end:
        word, code = describe(end)
        with suppress(OSError):  # after SIGHUP there may be no terminal any more
            print(f"mudpuppy-doctor: {word}, nothing was written", file=sys.stderr)
        return code
    except Exception:  # noqa: BLE001 - python would exit with 1, which means findings
        import traceback

        traceback.print_exc()
        return MudpuppyError.exit_code


def _run_subcommand(name: str, words: Sequence[str]) -> int:
    file, _, function = SUBCOMMANDS[name].partition(".")
    run: Callable[[Sequence[str]], int] = getattr(
        importlib.import_module(f"reports.commands.{file}"), function
    )
    return run(words)


def _parser() -> FriendlyParser:
    parser = FriendlyParser(
        prog="mudpuppy-doctor",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    path = "a model, adapter or trainer folder, one .safetensors or .gguf file, or hf://org/name"
    parser.add_argument("path", nargs="?", help=path)
    look = "examine this machine in place of a path: ROCm, variables, versions with known defects"
    parser.add_argument("--env", action="store_true", help=look)
    _add_sources(parser.add_argument_group("what it is compared with and asked"))
    _add_choices(parser.add_argument_group("what is looked for, and what counts"))
    _add_answers(parser.add_argument_group("how it answers"))
    add_repair_flags(parser.add_argument_group("repairs, on a copy"))
    return parser


def _add_sources(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--base", metavar="PATH", help="the model it was made from, or tiny")
    group.add_argument("--adapter", metavar="PATH", help="the adapter a merged model came from")
    earlier = "an earlier stage to hold the answers against, in place of the base"
    group.add_argument("--against", metavar="PATH", help=earlier)
    group.add_argument("--generate", action="store_true", help="load the models and ask them")
    group.add_argument("--quiz", metavar="FILE", help="questions with answers (JSONL)")
    group.add_argument("--voice", metavar="FILE", help="voice profile (YAML)")
    meaning = "a sentence-transformers model, to compare answers by their meaning, too"
    group.add_argument("--embeddings", metavar="PATH", help=meaning)
    served = "ask the model of an OpenAI-compatible server; a path is optional then"
    group.add_argument("--endpoint", metavar="URL", help=served)
    group.add_argument("--endpoint-model", metavar="NAME", help="its name there, of several")
    control = "server of the control, the base as it is served"
    group.add_argument("--endpoint-base", metavar="URL", help=control)
    group.add_argument("--base-model", metavar="NAME", help="name of the control on its server")
    limit = f"time for asking one checkpoint (default {TIME_LIMIT_S:g})"
    group.add_argument("--time-limit", metavar="S", type=_seconds, default=TIME_LIMIT_S, help=limit)


def _add_choices(group: argparse._ArgumentGroup) -> None:
    selecting = "codes, beginnings of codes, names or FM numbers, separated by commas"
    group.add_argument("--select", action="append", metavar="CODES", help=selecting)
    group.add_argument("--ignore", action="append", metavar="CODES", help="the same")
    sample = "read a sample of large tensors, and say what it may have missed"
    group.add_argument("--quick", action="store_true", help=sample)
    deep = "how deep to look (default: lineage; behaviour with --generate)"
    group.add_argument("--depth", choices=[str(one) for one in Depth], help=deep)
    failing = [*(str(one) for one in Severity if one is not Severity.NOTE), NEVER]
    fail_on = "least severity that gives exit code 1 (default: medium)"
    group.add_argument("--fail-on", choices=failing, help=fail_on)
    earlier = "an earlier --format json report: only what is new counts"
    group.add_argument("--baseline", metavar="FILE", help=earlier)
    group.add_argument("--config", metavar="FILE", help="project file to read in place of ours")


def _add_answers(group: argparse._ArgumentGroup) -> None:
    form = "form of the report (default: console, or by the ending of --output)"
    group.add_argument("--format", choices=tuple(FORMATS), help=form)
    output = "write the report to a file instead; may be given several times"
    group.add_argument("--output", action="append", default=[], metavar="FILE", help=output)


def _seconds(text: str) -> float:
    """Return a positive number of seconds; argparse reports the ValueError."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(text)
    return value


def _diagnose(arguments: argparse.Namespace) -> int:
    wanted = arguments.path is not None or arguments.endpoint is not None
    if arguments.env == wanted:
        raise UsageError(
            "a path, --endpoint or --env is wanted, and --env alone",
            hint="mudpuppy-doctor out/my-lora   # or mudpuppy-doctor --env",
        )
    _check_control(arguments)
    outputs = plan_outputs(arguments.format, arguments.output)
    settings, remark = load_settings(arguments.config, arguments.path or ".")
    if remark:
        print(f"mudpuppy-doctor: {clean_lines(remark)}", file=sys.stderr)
    for one in settings.accept:
        choose_probes([one.probe], ())
    wants_repair = check_repair_flags(arguments)
    judging = _make_judging(arguments, settings)
    diagnosis = _timed(arguments, judging, arguments.path)
    if wants_repair:
        aloud = all(one.file is None and one.form == "console" for one in outputs)
        diagnosis = repair(
            arguments,
            judging,
            diagnosis,
            lambda path: _timed(arguments, judging, path),
            aloud=aloud,
        )
    deliver(diagnosis, outputs)
    return diagnosis.exit_code


def _check_control(arguments: argparse.Namespace) -> None:
    """Refuse folders to compare with where a server alone is asked: nothing would read them.

    Raises:
        UsageError: there is one.
    """
    if arguments.path is not None or arguments.endpoint is None:
        return
    for flag in ("base", "adapter", "against"):
        if getattr(arguments, flag) is not None:
            raise UsageError(
                f"--{flag} names a folder, and --endpoint alone asks servers",
                hint="name the base as it is served (--endpoint-base URL or --base-model NAME), "
                f"or give the folder of the model, too: mudpuppy-doctor out/model --{flag} PATH "
                "--endpoint URL",
            )


def _make_judging(arguments: argparse.Namespace, settings: DoctorSettings) -> Judging:
    """Return what is asked; flags win over the project file."""
    fail_on = arguments.fail_on or settings.fail_on or Severity.MEDIUM
    given = arguments.select is not None  # a selection of one's own replaces the project's
    return Judging(
        base=arguments.base or settings.base,
        adapter=arguments.adapter or settings.adapter,
        named_in={
            name: settings.source
            for name in ("base", "adapter")
            if getattr(settings, name) and not getattr(arguments, name)
        },
        against=arguments.against or settings.against,
        generate=arguments.generate,
        quiz=arguments.quiz or settings.quiz,
        voice=arguments.voice or settings.voice,
        embeddings=arguments.embeddings or settings.embeddings,
        time_limit_s=arguments.time_limit,
        quick=arguments.quick or settings.quick,
        depth=arguments.depth or (None if arguments.generate else settings.depth),
        select=_split(arguments.select) if given else settings.select,
        ignore=[*_split(arguments.ignore or ()), *settings.ignore],
        fail_on=None if fail_on == NEVER else Severity(fail_on),
        accepted=settings.accept,
        baseline=read_baseline(arguments.baseline) if arguments.baseline else None,
    )


def _timed(arguments: argparse.Namespace, judging: Judging, path: str | None) -> Diagnosis:
    begun_s = time.monotonic()
    asks = arguments.generate or arguments.endpoint is not None
    with closing(ScanProgress(sys.stderr, asks=asks)) as progress:
        told = replace(judging, progress=progress.say, scanned=progress.scanned)
        diagnosis = _examine(arguments, told, path)
    return replace(diagnosis, seconds=time.monotonic() - begun_s)


def _examine(arguments: argparse.Namespace, judging: Judging, path: str | None) -> Diagnosis:
    """Ask the doctor."""
    if arguments.env:
        judging.progress("asking torch, in a process of its own")
        from harness.doctor.machine import diagnose_machine

        ours = _split(arguments.select or ()), _split(arguments.ignore or ())
        return diagnose_machine(judging=replace(judging, select=ours[0], ignore=ours[1]))
    if arguments.endpoint is not None:
        from harness.doctor.served import diagnose_served, examine_served

        server = {
            "model": arguments.endpoint_model,
            "base_url": arguments.endpoint_base,
            "base_model": arguments.base_model,
        }
        if path is None:
            return diagnose_served(arguments.endpoint, judging, **server)
        ask = partial(examine_served, arguments.endpoint, judging, **server)
        judging = replace(judging, beside=ask)
    assert path is not None
    return diagnose(path, judging)


def _split(values: Sequence[str]) -> list[str]:
    return [word for value in values for word in value.replace(",", " ").split()]


def _escape_unprintable() -> None:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    raise SystemExit(main())
