"""The command `mud-puppy curriculum`: run, plan, status, report, and pairs from a voice profile."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from mudpuppy.errors import MudpuppyError, OutputError, UsageError, printable
from mudpuppy.interruption import describe
from mudpuppy.pipelines.curriculum.gates import NONE, USUAL, find_gate
from mudpuppy.pipelines.curriculum.plan import (
    DEMO,
    Curriculum,
    describe_plan,
    find_curriculum,
    read_curriculum,
)
from mudpuppy.pipelines.curriculum.report import JSON, MARKDOWN, describe_end, missed
from mudpuppy.pipelines.curriculum.state import STATE_FILE, State, open_state, read_state
from mudpuppy.scoring import load_voice_profile

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
        _say(line)
    return 0


def _run(args: argparse.Namespace) -> int:
    made = read_curriculum(find_curriculum(args.file), args.embeddings)
    gate = find_gate(args.gate)
    output = args.output or RUNS / made.form.name
    say = _be_silent if args.quiet else _say
    if gate is None:
        print("mud-puppy: warning: --gate none: nobody examines the stages", file=sys.stderr)
    started = time.monotonic()
    with open_state(output, made.identity) as state:
        # after everything is known to be good: torch takes seconds to import
        from mudpuppy.pipelines.curriculum.run import Run
        from mudpuppy.pipelines.curriculum.stages import import_libraries

        if len(state.phases) > 1:
            say(f"going on after {len(state.phases)} phases, the last of them {_last(state)}")
        import_libraries(measures_voice=made.embeddings is not None)
        try:
            story = Run(
                made=made, state=state, gate=gate, say=say, stop_after=args.stop_after
            ).tell()
        except KeyboardInterrupt as error:
            word, code = describe(error)
            print(f"mud-puppy: {word}; {_GOES_ON}", file=sys.stderr)
            return code
        except MudpuppyError:
            print(f"mud-puppy: {_GOES_ON}", file=sys.stderr)
            raise
    for line in describe_end(made, story):
        say(line)
    say(f"{story.ending} in {time.monotonic() - started:.0f} s: {output / MARKDOWN}")
    if story.end is not None:
        say(f"check it: mudpuppy-doctor {output / 'final'}")
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
    seconds = sum(phase.seconds for phase in state.phases.values())
    _say(f"{len(state.phases)} phases in {seconds:.0f} s, the last of them {_last(state)}")
    path = args.folder / JSON
    if not path.is_file():
        _say("no topic has ended yet")
        return 0
    told = json.loads(path.read_text(encoding="utf-8"))
    for topic in told["topics"]:
        before, after = topic["before"]["final"], topic["after"]["final"]
        _say(
            f"{topic['number']}. {topic['name']}: accuracy {_show(before['accuracy'])} -> "
            f"{_show(after['accuracy'])}, voice {_show(before['voice'])} -> {_show(after['voice'])}"
        )
        for stage in topic["stages"]:
            if not stage["kept"] and stage["faults"]:
                first = stage["faults"][0]
                cause = first["root"] or first["name"]
                _say(f"   {stage['kind']} rolled back: {cause} ({first['code']})")
    _say(told["ending"] or "not at its end; the same `run` goes on")
    return 0


def _report(args: argparse.Namespace) -> int:
    path = args.folder / (JSON if args.json else MARKDOWN)
    if not path.is_file():
        raise OutputError(
            f"{args.folder} holds no report", hint="it is written when the first topic has ended"
        )
    _say(path.read_text(encoding="utf-8").rstrip("\n"))
    return 0


def _pairs(args: argparse.Namespace) -> int:
    from mudpuppy.pipelines.curriculum.pairs import ask_and_pair, pairs_of, write_rows

    profile = load_voice_profile(args.voice)
    if profile.similarity is not None:
        _say("pairs are made by the markers of the voice alone; its examples do not count here")
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
    _say(f"{len(found['rows'])} pairs of {found['samples']} questions: {args.output}")
    return 0


_ACTIONS = {"run": _run, "plan": _plan, "status": _status, "report": _report, "pairs": _pairs}


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _say(text: str) -> None:
    print(printable(text), flush=True)


def _be_silent(text: str) -> None:
    del text


__all__ = ["DESCRIPTION", "Curriculum", "add_arguments", "run"]
