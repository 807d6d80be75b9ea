"""The command `mud-puppy curriculum`: run, plan, status, report, and pairs from a voice profile."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mudpuppy.errors import MudpuppyError, OutputError, UsageError
from mudpuppy.interruption import describe
from mudpuppy.pipelines.curriculum.gates import NONE, USUAL, find_gate
from mudpuppy.pipelines.curriculum.plan import (
    DEMO,
    describe_plan,
    find_curriculum,
    read_curriculum,
)
from mudpuppy.pipelines.curriculum.report import (
    JSON,
    MARKDOWN,
    REPORT_SCHEMA_VERSION,
    describe_end,
    missed,
    show,
)
from mudpuppy.pipelines.curriculum.state import STATE_FILE, State, open_state, read_state
from mudpuppy.scoring import load_voice_profile
from mudpuppy.telling import how_to_check, say

DESCRIPTION = "SFT, then DPO for the voice, topic by topic; each stage is examined, kept or undone."
RUNS = Path("runs")
"""Where runs go that name no folder."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the subcommands."""
    parser.epilog = f"""\
examples:
  mud-puppy curriculum plan {DEMO}
  mud-puppy curriculum run curriculum.yaml --output runs/voice
  mud-puppy curriculum run curriculum.yaml --output runs/voice      (again: goes on)
  mud-puppy curriculum status runs/voice
  mud-puppy curriculum pairs sft.jsonl voice.yaml pairs.jsonl
"""
    names = "{run,plan,status,report,pairs}"
    actions = parser.add_subparsers(dest="curriculum_action", required=True, metavar=names)
    run_it = actions.add_parser("run", help="train what is not trained yet; goes on after any end")
    run_it.add_argument("file", help=f"curriculum.yaml, or {DEMO} (the one of this package)")
    run_it.add_argument("--output", type=Path, metavar="DIR", help="by default runs/NAME")
    _add_embeddings(run_it)
    run_it.add_argument(
        "--gate",
        default=USUAL,
        metavar="NAME",
        help=f"who examines each stage: {USUAL} (default), package.module:Class, or {NONE}",
    )
    run_it.add_argument(
        "--stop-after",
        type=_count,
        default=3,
        metavar="N",
        help="end when N stages in a row fail for the same reason; 0 for never (default 3)",
    )
    run_it.add_argument(
        "--phase-limit",
        type=_seconds,
        metavar="SECONDS",
        help="end a phase that takes longer, and the run with it (default: none is)",
    )
    run_it.add_argument("--quiet", action="store_true", help="print nothing but errors")
    plan = actions.add_parser("plan", help="check every file and say what would be done")
    plan.add_argument("file", help=f"curriculum.yaml, or {DEMO}")
    _add_embeddings(plan)
    status = actions.add_parser("status", help="how far a run is, and what was rolled back")
    status.add_argument("folder", type=Path, help="folder of the run")
    report = actions.add_parser("report", help="print the report of a run")
    report.add_argument("folder", type=Path, help="folder of the run")
    report.add_argument("--json", action="store_true", help="as JSON")
    pairs = actions.add_parser("pairs", help="make preference pairs from a voice profile")
    pairs.add_argument("dataset", type=Path, help="questions and answers, as for SFT")
    pairs.add_argument("voice", type=Path, help="voice profile (YAML)")
    pairs.add_argument("output", type=Path, help="JSONL to write")
    pairs.add_argument("--model", help="reject what this model says, where its voice is worse")


def _add_embeddings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--embeddings",
        type=Path,
        metavar="FOLDER",
        help="sentence-transformers model that measures nearness to the voice's examples",
    )


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError("below 0")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise ValueError("no time")
    return number


def run(args: argparse.Namespace) -> int:
    """Run the parsed command and return its exit code: 1 where a stage was rolled back.

    Raises:
        UsageError: a file, a folder or a gate cannot be used.
        EngineError: a phase died; what is done is kept.
    """
    code: int = _ACTIONS[args.curriculum_action](args)
    return code


def _plan(args: argparse.Namespace) -> int:
    for line in describe_plan(read_curriculum(find_curriculum(args.file), args.embeddings)):
        say(line)
    return 0


def _run(args: argparse.Namespace) -> int:
    made = read_curriculum(find_curriculum(args.file), args.embeddings)
    gate = find_gate(args.gate)
    output = args.output or RUNS / made.form.name
    tell = _be_silent if args.quiet else say
    if gate is None:
        print("mud-puppy: warning: --gate none: nobody examines the stages", file=sys.stderr)
    started = time.monotonic()
    with open_state(output, made.identity) as state:
        # after everything is known to be good: torch takes seconds to import
        from mudpuppy.pipelines.curriculum.run import Run
        from mudpuppy.pipelines.curriculum.stages import import_libraries

        if len(state.phases) > 1:
            tell(f"going on after {len(state.phases)} phases, the last of them {_last(state)}")
        import_libraries(measures_voice=made.embeddings is not None)
        try:
            story = Run(
                made=made,
                state=state,
                gate=gate,
                say=tell,
                stop_after=args.stop_after,
                phase_limit_s=args.phase_limit,
            ).tell()
        except KeyboardInterrupt as error:
            word, code = describe(error)
            print(f"mud-puppy: {word}; {_GOES_ON}", file=sys.stderr)
            return code
        except MudpuppyError:
            print(f"mud-puppy: {_GOES_ON}", file=sys.stderr)
            raise
    for line in describe_end(made, story):
        tell(line)
    tell(f"{story.ending} in {time.monotonic() - started:.0f} s: {output / MARKDOWN}")
    if story.end is not None:
        tell(how_to_check(output / "final"))
    is_well = story.end is not None and not story.rolled_back
    is_short = any(group == "final" for _, group, _, _ in missed(made, story))
    return 0 if is_well and not is_short else 1


_GOES_ON = "what is done is kept, and the same command goes on"


def _last(state: State) -> str:
    return next(reversed(state.phases))


def _status(args: argparse.Namespace) -> int:
    state = read_state(args.folder)
    if state is None:
        raise OutputError(
            f"{args.folder} holds no {STATE_FILE}", hint="name the folder of a curriculum's run"
        )
    if not state.phases:
        say("no phase has ended yet; the same `run` goes on")
        return 0
    seconds = sum(phase.seconds for phase in state.phases.values())
    say(f"{len(state.phases)} phases in {seconds:.0f} s, the last of them {_last(state)}")
    path = args.folder / JSON
    if not path.is_file():
        say("no topic has ended yet")
        return 0
    for line in _read_progress(path):
        say(line)
    return 0


def _read_progress(path: Path) -> list[str]:
    """Return what a report tells of its topics, as lines of text.

    Raises:
        OutputError: it is damaged, or another version wrote it.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        version = told["schema_version"]
        if version != REPORT_SCHEMA_VERSION:
            raise ValueError(f"schema version {version} is not {REPORT_SCHEMA_VERSION}")
        lines = [line for topic in told["topics"] for line in _topic_lines(topic)]
        return [*lines, told["ending"] or "not at its end; the same `run` goes on"]
    except (OSError, ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise OutputError(
            f"{path} cannot be used: {error}",
            hint="the same `run` writes it anew, from what is in state.json",
        ) from None


def _topic_lines(topic: dict[str, Any]) -> Iterator[str]:
    before, after = topic["before"]["final"], topic["after"]["final"]
    yield (
        f"{topic['number']}. {topic['name']}: accuracy {show(before['accuracy'])} -> "
        f"{show(after['accuracy'])}, voice {show(before['voice'])} -> {show(after['voice'])}"
    )
    for stage in topic["stages"]:
        if not stage["kept"] and stage["faults"]:
            first = stage["faults"][0]
            cause = first["root"] or first["name"]
            yield f"   {stage['kind']} rolled back: {cause} ({first['code']})"


def _report(args: argparse.Namespace) -> int:
    path = args.folder / (JSON if args.json else MARKDOWN)
    if not path.is_file():
        raise OutputError(
            f"{args.folder} holds no report", hint="it is written when the first topic has ended"
        )
    say(path.read_text(encoding="utf-8").rstrip("\n"))
    return 0


def _pairs(args: argparse.Namespace) -> int:
    from mudpuppy.pipelines.curriculum.pairs import ask_and_pair, pairs_of, write_rows

    profile = load_voice_profile(args.voice)
    if profile.similarity is not None:
        say("pairs are made by the markers of the voice alone; its examples do not count here")
    if args.model is None:
        found = pairs_of(args.dataset, profile)
    else:
        found = ask_and_pair(args.dataset, profile, args.model)
    if not found["rows"]:
        raise UsageError(
            f"{args.dataset}: no pair can be made: no answer keeps the voice of {args.voice} "
            "clearly better than what it would be rejected for",
            hint="look at the scores: mud-puppy data, or lower the profile's demands",
        )
    write_rows(args.output, found["rows"])
    say(f"{len(found['rows'])} pairs of {found['samples']} questions: {args.output}")
    return 0


_ACTIONS = {"run": _run, "plan": _plan, "status": _status, "report": _report, "pairs": _pairs}


def _be_silent(text: str) -> None:
    del text
