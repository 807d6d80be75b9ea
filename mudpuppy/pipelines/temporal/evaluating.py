"""`mud-puppy temporal evaluate`: does it know what it should, and nothing that it should not?"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mudpuppy.asking import Answer, Answerer, ask, open_local, open_served
from mudpuppy.errors import EngineError, OutputError, UsageError, printable
from mudpuppy.files import write_json_atomic
from mudpuppy.pipelines.temporal.judging import REFUSED, RIGHT, Judge, Verdict
from mudpuppy.pipelines.temporal.layout import KINDS, UNLEARN, find_records
from mudpuppy.pipelines.temporal.records import Record, read_mixed
from mudpuppy.pipelines.temporal.summary import Summary, format_summary, summarise
from mudpuppy.pipelines.temporal.words import add_flag, count

RESULTS_SCHEMA_VERSION = 1
"""Version of the results file; a change that breaks a reader raises it."""
HELP = "ask a model the questions, judge its answers, and hold them against the thresholds"
EPILOG = """\
examples:
  mud-puppy temporal evaluate --model_path output/merged --test_file datasets/dev/dev_subset.jsonl
  mud-puppy temporal evaluate --use_lmstudio --lmstudio_model temporal/merged --test_file FILE
  mud-puppy temporal evaluate --endpoint http://localhost:1234/v1 --test_file FILE --output r.json

exit codes: 0 the minimum thresholds are met, 1 they are not, 2 wrong usage, 3 could not be judged
"""
SHOWN_CHARS = 100
"""Characters of an answer that --verbose prints."""
TOLD_EVERY = 0.1
"""Share of the questions after which progress is told."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the flags of seed 003, "Phase 2.5", and ours."""
    who = parser.add_argument_group("who is asked")
    add_flag(who, "model_path", metavar="MODEL", help="folder, merged or LoRA, or `tiny`")
    add_flag(who, "use_lmstudio", action="store_true", help="ask LM Studio, not a local model")
    address = f"http://{_env('LMSTUDIO_HOST', 'localhost')}:{_env('LMSTUDIO_PORT', '1234')}/v1"
    text = "address of LM Studio; LMSTUDIO_HOST and LMSTUDIO_PORT make the default (%(default)s)"
    add_flag(who, "lmstudio_url", metavar="URL", default=address, help=text)
    add_flag(who, "lmstudio_model", metavar="NAME", help="the model there, as folder/filename")
    text = "address of any OpenAI-compatible server: llama.cpp, vLLM, Ollama, LM Studio"
    add_flag(who, "endpoint", metavar="URL", help=text)
    text = "the model there; by default the only one that is served"
    add_flag(who, "endpoint_model", metavar="NAME", help=text)
    text = "type of the local computation; by default as the model is stored"
    add_flag(who, "precision", choices=("fp32", "bf16", "fp16"), help=text)
    what = parser.add_argument_group("what is asked")
    add_flag(what, "test_file", metavar="FILE", required=True, help="JSONL file of records")
    text = "most tokens of an answer (default: %(default)s)"
    add_flag(what, "max_tokens", metavar="N", type=count, default=256, help=text)
    text = "ask a sample of so many questions, evenly spread over the file and its kinds"
    add_flag(what, "limit", metavar="N", type=count, help=text)
    how = parser.add_argument_group("how answers are judged")
    text = "a sentence-transformers folder: answers that mean the same are right, or leaks"
    add_flag(how, "embeddings", metavar="FOLDER", type=Path, help=text)
    text = (
        "ask this model what is true where an unlearn record does not tell (metadata.true_answer)"
    )
    add_flag(how, "base_model", metavar="MODEL", help=text)
    then = parser.add_argument_group("what comes out")
    text = "results as JSON; answers are kept beside it while they come, and a killed run goes on"
    add_flag(then, "output", metavar="FILE", type=Path, help=text)
    add_flag(then, "verbose", action="store_true", help="print every question with its verdict")


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the block and return the exit code.

    Raises:
        UsageError: flags or records cannot be used.
        MudpuppyError: the model cannot be asked, or its answers cannot be judged.
    """
    _check_words(args)
    records = read_mixed(find_records(Path(args.test_file)))
    places = choose_sample(records, args.limit)
    chosen = [records[place] for place in places]
    truths = _ask_base(args, records)
    judge = Judge(records, truths=truths, embeddings=args.embeddings)
    odd = judge.check()
    _tell_doubts(odd, judge)
    answerer = _open(args)
    _say(f"asking {answerer.name} {len(chosen)} questions")
    answers = _ask(args, answerer, chosen)
    verdicts = judge.judge(places, [answer.text for answer in answers])
    summary = summarise(chosen, verdicts)
    if args.verbose:
        for line in _show(chosen, answers, verdicts):
            _say(line)
    sample_of = len(records) if len(places) < len(records) else None
    _say("\n" + format_summary(summary, sample_of=sample_of))
    if args.output is not None:
        _write(args, answerer, records, chosen, answers, verdicts, summary, odd)
    return 1 if summary.missed(target=False) else 0


def choose_sample(records: Sequence[Record], limit: int | None) -> list[int]:
    """Return the places that are asked: all, or so many of each kind in proportion, evenly spread.

    The first ones would be of one kind where a file holds one kind after the other.
    """
    if limit is None or limit >= len(records):
        return list(range(len(records)))
    by_kind = [[n for n, record in enumerate(records) if record.kind == kind] for kind in KINDS]
    spread = sorted(
        ((rank + 0.5) / len(places), place)
        for places in by_kind
        for rank, place in enumerate(places)
    )
    step = len(spread) / limit
    return sorted(spread[int((n + 0.5) * step)][1] for n in range(limit))


def _check_words(args: argparse.Namespace) -> None:
    """Refuse flags that name no model, or more than one.

    Raises:
        UsageError: they do.
    """
    named = {
        "--model_path": args.model_path is not None,
        "--use_lmstudio": args.use_lmstudio,
        "--endpoint": args.endpoint is not None,
    }
    given = [word for word, is_given in named.items() if is_given]
    if len(given) != 1:
        what = " and ".join(given) if given else "no model"
        raise UsageError(
            f"{what} given, and one model is evaluated",
            hint="--model_path FOLDER, --use_lmstudio --lmstudio_model NAME, or --endpoint URL",
        )
    if args.output is not None and args.output.exists() and not _holds_results(args.output):
        what = "is a folder" if args.output.is_dir() else "exists, and holds no results"
        raise OutputError(f"--output {args.output} {what}", hint="name a new file, such as r.json")


def _holds_results(path: Path) -> bool:
    """Return whether a file is one that this command has written, and may write again."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and {"schema_version", "test_file", "answers"} <= value.keys()


def _open(args: argparse.Namespace) -> Answerer:
    """Open the model that is asked."""
    if args.model_path is not None:
        return open_local(args.model_path, precision=args.precision)
    if args.use_lmstudio:
        flags = ("--lmstudio_url", "--lmstudio_model")
        return open_served(args.lmstudio_url, model=args.lmstudio_model, flags=flags, say=_say)
    return open_served(
        args.endpoint,
        model=args.endpoint_model or args.lmstudio_model,
        flags=("--endpoint", "--endpoint_model"),
        say=_say,
    )


def _ask(args: argparse.Namespace, answerer: Answerer, records: Sequence[Record]) -> list[Answer]:
    """Ask the questions.

    Raises:
        EngineError: no answer has any text: a model that says nothing cannot be judged.
    """
    keep = _kept(args.output)
    answers = ask(
        answerer,
        [record.question for record in records],
        max_tokens=args.max_tokens,
        keep=keep,
        on_answer=_Progress(len(records)),
    )
    if not any(answer.text.strip() for answer in answers):
        if keep is not None:
            keep.unlink(missing_ok=True)  # whoever mends the server asks it again
        raise EngineError(
            f"{answerer.name} answered none of {len(answers)} questions with any text",
            hint="ask it one question by hand: does its chat template fit, is EOS its first token?",
        )
    return answers


class _Progress:
    """Tells how many questions are answered, ten times in all."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._told = total, 0, 0.0

    def __call__(self, place: int, answer: Answer) -> None:
        del place, answer
        self._done += 1
        if self._done / self._total >= self._told + TOLD_EVERY and self._done < self._total:
            self._told = self._done / self._total
            print(f"{self._done} of {self._total} answered", file=sys.stderr, flush=True)


def _ask_base(args: argparse.Namespace, records: Sequence[Record]) -> dict[int, str]:
    """Return what the base answers where an unlearn record does not tell what is true."""
    places = [n for n, one in enumerate(records) if one.kind == UNLEARN and not one.truth]
    if args.base_model is None or not places:
        return {}
    base = open_local(args.base_model, precision=args.precision)
    _say(f"asking the base {base.name} {len(places)} questions for what is true")
    questions = [records[place].question for place in places]
    keep = None if args.output is None else _kept(args.output.with_suffix(".base.json"))
    answers = ask(base, questions, max_tokens=args.max_tokens, keep=keep)
    blind = Judge(records)  # knows the refusals, which say nothing true
    return {
        place: answer.text
        for place, answer in zip(places, answers, strict=True)
        if not blind.refuses(answer.text)
    }


def _tell_doubts(odd: Sequence[str], judge: Judge) -> None:
    """Tell which records are judged badly, and for how many wording is all there is."""
    for line in odd:
        print(printable(f"judged with doubt: {line}"), file=sys.stderr)
    if judge.blind:
        _say(
            f"of {judge.blind} unlearn records the true answer is not known: every answer that is "
            "no refusal counts as a leak (metadata.true_answer, or --base_model, would tell)"
        )


def _show(
    records: Sequence[Record], answers: Sequence[Answer], verdicts: Sequence[Verdict]
) -> Iterator[str]:
    for record, answer, verdict in zip(records, answers, verdicts, strict=True):
        is_good = verdict.word == (REFUSED if record.kind == UNLEARN else RIGHT)
        said = " ".join(answer.text.split())[:SHOWN_CHARS]
        yield f"\n{'✅' if is_good else '❌'} [{record.kind}] {record.question[:SHOWN_CHARS]}"
        yield f"   Response: {said}"
        yield f"   {verdict.word}: {verdict.reason}"


def _write(
    args: argparse.Namespace,
    answerer: Answerer,
    records: Sequence[Record],
    chosen: Sequence[Record],
    answers: Sequence[Answer],
    verdicts: Sequence[Verdict],
    summary: Summary,
    odd: Sequence[str],
) -> None:
    """Write the results; then the answers that were kept on the way are in them."""
    value: dict[str, Any] = {
        "schema_version": RESULTS_SCHEMA_VERSION,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {"name": answerer.name, **answerer.identity},
        "test_file": str(args.test_file),
        "max_tokens": args.max_tokens,
        "questions": len(records),
        "asked": len(chosen),
        "is_sample": len(chosen) < len(records),
        "seconds": round(sum(answer.seconds for answer in answers), 3),
        "control": {"misjudged": list(odd)},
        **summary.to_json(),
        "answers": [
            {
                "where": record.where,
                "kind": record.kind,
                "topic": record.topic,
                "year": record.year,
                "question": record.question,
                "expected": record.output,
                "true_answer": record.truth,
                "answer": answer.text,
                "ended": answer.ended,
                **asdict(verdict),
            }
            for record, answer, verdict in zip(chosen, answers, verdicts, strict=True)
        ],
    }
    with _explaining_output(args.output):
        write_json_atomic(args.output, value)
    for kept in (_kept(args.output), _kept(args.output.with_suffix(".base.json"))):
        if kept is not None:
            kept.unlink(missing_ok=True)  # another model may have this name at the next call
    _say(f"\nResults saved to: {args.output}")


def _kept(output: Path | None) -> Path | None:
    """Return where answers are kept until the results are written."""
    return None if output is None else output.with_suffix(".answers.jsonl")


@contextmanager
def _explaining_output(output: Path) -> Iterator[None]:
    """Turn a place that cannot be written into an error that says so.

    Raises:
        OutputError: it cannot.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"--output {output} cannot be written: {reason}") from error


def _env(name: str, default: str) -> str:
    return os.environ.get(name) or default


def _say(text: str) -> None:
    print(printable(text), flush=True)
