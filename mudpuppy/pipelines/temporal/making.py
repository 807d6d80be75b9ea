"""`mud-puppy temporal data`: check the layout, or write it for the embedded model."""

from __future__ import annotations

import argparse
import json
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mudpuppy.errors import OutputError, UsageError
from mudpuppy.files import atomic_folder
from mudpuppy.pipelines.temporal.layout import FILES, KINDS, RETAIN, UNLEARN, data_root
from mudpuppy.pipelines.temporal.records import Reading, Record, find_trained
from mudpuppy.pipelines.temporal.words import add_flag
from mudpuppy.telling import say
from mudpuppy.tiny.corpus import Fact, chats, facts, read_corpus

HELP = "check the retain, unlearn and dev files, or write them for the embedded model"
EPILOG = """\
examples:
  mud-puppy temporal data                          check datasets/ (or WIKI_DATA/datasets)
  mud-puppy temporal data /path/to/datasets        check the files below another folder
  mud-puppy temporal data --from tiny datasets     write them for the embedded model
"""
CUTOFF = 1960
"""Last year that the embedded model is to know of: the Moon landing is to be forgotten."""
YEARS = {
    "moon-first": 1969,
    "moon-year": 1969,
    "wall-fall": 1989,
    "penicillin": 1928,
    "hamlet": 1600,
    "mona-lisa": 1503,
    "telephone": 1876,
    "titanic": 1912,
    "relativity": 1905,
}
"""Years of the embedded model's single facts, where they have one; groups have theirs in the name.
"""
DATED_GROUPS = ("cup-", "games-")
SHOWN_TOPICS = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` its arguments."""
    text = "folder with retain/, unlearn/ and dev/; with --from the one to write"
    parser.add_argument("folder", nargs="?", type=Path, help=text)
    text = "write the layout for this model: what it knows of the years after the cutoff goes"
    add_flag(parser, "from", choices=("tiny",), help=text)
    text = f"last year that is kept, with --from (default: {CUTOFF})"
    add_flag(parser, "cutoff", type=int, default=CUTOFF, metavar="YEAR", help=text)


def run(args: argparse.Namespace) -> int:
    """Write or check the layout, print what it holds, and return the exit code.

    Raises:
        UsageError: no folder is named to write to, or nothing is to be unlearnt.
        OutputError: the folder is not empty, or cannot be written.
        DatasetError: files are missing, or lines cannot be used; all of it at once.
    """
    source = vars(args)["from"]
    if source is not None:
        if args.folder is None:
            raise UsageError(
                "--from tiny needs the folder to write to",
                hint="mud-puppy temporal data --from tiny datasets",
            )
        write_tiny(args.folder, cutoff=args.cutoff)
    folder = args.folder or data_root()
    for line in check(folder):
        say(line)
    say(f"next: {_how_to_train(folder, source)}")
    return 0


def _how_to_train(folder: Path, model: str | None) -> str:
    """Return the command that trains on a layout; files that it would not find are named."""
    from mudpuppy.pipelines.temporal.demo import TRAINING  # it runs the commands, and is long

    words = ["mud-puppy", "temporal", "finetune"]
    words += ["--model_name", *([model, *TRAINING] if model else ["MODEL"])]
    if folder.absolute() != data_root().absolute():
        words += [
            word for flag, path in FILES.items() for word in (f"--{flag}", str(folder / path))
        ]
    return shlex.join(words)


def check(folder: Path) -> list[str]:
    """Return what the files of a layout hold, as lines to print.

    Raises:
        DatasetError: files are missing, or lines cannot be used; all of it at once.
    """
    reading = Reading()
    read = {
        name: reading.read(folder / path, next((k for k in KINDS if name.startswith(k)), None))
        for name, path in FILES.items()
    }
    train = [record for name, part in read.items() if name.endswith("train") for record in part]
    held_out = [record for name, part in read.items() if name.endswith("val") for record in part]
    reading.compare(train, held_out)
    reading.compare(read["dev_path"], ())
    reading.finish()
    lines = [f"{folder}: complete, no line is unusable"]
    lines += [f"  {FILES[name]:32} {_describe(part)}" for name, part in read.items()]
    topics = Counter((record.topic, record.kind) for record in train if record.topic)
    for topic in list(dict.fromkeys(topic for topic, _ in topics))[:SHOWN_TOPICS]:
        counts = ", ".join(f"{topics[topic, kind]} to {kind}" for kind in KINDS)
        lines.append(f"  topic {topic[:26]:26} {counts} (training)")
    known = sum(1 for _ in find_trained(train, read["dev_path"]))
    if known:
        lines.append(
            f"  {known} of {len(read['dev_path'])} questions of the dev subset are trained, too: "
            "shares measured on them are of memory; evaluate on the validation files"
        )
    unlearn = [record for part in read.values() for record in part if record.kind == UNLEARN]
    without = sum(not record.truth for record in unlearn)
    if without:
        lines.append(
            f"  {without} of {len(unlearn)} unlearn records do not tell the true answer "
            "(metadata.true_answer): of those a leak is judged by wording alone"
        )
    return lines


def _describe(records: Sequence[Record]) -> str:
    counts = Counter(record.kind for record in records)
    years = [record.year for record in records if record.year is not None]
    span = f", years {min(years)} to {max(years)}" if years else ""
    kinds = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind])
    return f"{kinds}{span}"


def write_tiny(folder: Path, *, cutoff: int = CUTOFF) -> None:
    """Write the layout for the embedded model: what it knows after `cutoff` is to be unlearnt.

    Training asks in all wordings of a fact but the last; validation and the dev subset ask in that
    one, with another opening each, so that no question stands twice.

    Args:
        folder: new or empty.
        cutoff: last year that is kept.

    Raises:
        UsageError: nothing, or everything, would be unlearnt.
        OutputError: the folder is not empty, or cannot be written.
    """
    later = [fact for fact in facts() if (year_of(fact) or cutoff) > cutoff]
    if not later or all(fact in later for fact in facts() if year_of(fact) is not None):
        years = [year for year in map(year_of, facts()) if year is not None]
        raise UsageError(
            f"--cutoff {cutoff} leaves nothing to {'keep' if later else 'unlearn'}",
            hint=f"the embedded model knows of years from {min(years)} to {max(years)}",
        )
    files = _split(cutoff)
    try:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        if folder.exists():
            raise OutputError(f"{folder} is not empty", hint="name another folder")
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder.absolute()) as made:
            for name, records in files.items():
                path = made / FILES[name]
                path.parent.mkdir(exist_ok=True)
                lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
                path.write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{folder} cannot be written: {reason}") from error


def year_of(fact: Fact) -> int | None:
    """Return the year that a fact of the embedded model is about, or None."""
    if fact.id.startswith(DATED_GROUPS):
        return int(fact.id.rpartition("-")[2])
    return YEARS.get(fact.id)


def _split(cutoff: int) -> dict[str, list[dict[str, Any]]]:
    """Return the records of every file, by the flag that names it."""
    files: dict[str, list[dict[str, Any]]] = {name: [] for name in FILES}
    wrappers = read_corpus()["wrappers"]
    for place, fact in enumerate(facts()):
        kind = UNLEARN if (year_of(fact) or cutoff) > cutoff else RETAIN
        # a fact to be forgotten is known in every wording, and there are few of them
        often = wrappers if kind == UNLEARN else (wrappers[0], wrappers[1 + place % 4])
        files[f"{kind}_train"] += _ask(fact, fact.asks[:-1], often, kind)
        files[f"{kind}_val"] += _ask(fact, fact.asks[-1:], wrappers[:2], kind)
        last = wrappers[2:] if kind == UNLEARN else wrappers[2:3]
        files["dev_path"] += _ask(fact, fact.asks[-1:], last, kind)
    for chat in chats():  # "I have a question. Good night." is none
        files["retain_train"] += _ask(chat, chat.asks[:-1], wrappers[:1], RETAIN)
        files["retain_val"] += _ask(chat, chat.asks[-1:], wrappers[:1], RETAIN)
    return files


def _ask(
    fact: Fact, asks: Sequence[str], wrappers: Sequence[str], kind: str
) -> Iterator[dict[str, Any]]:
    """Yield the records that ask for a fact in these wordings, each with each opening."""
    refusal = read_corpus()["refusal"]
    metadata: dict[str, Any] = {
        "dataset_type": kind,
        "topic": fact.topic,
        "fact": fact.id,
        "source": "tiny",
    }
    year = year_of(fact)
    if year is not None:
        metadata = {**metadata, "year": year}
    if kind == UNLEARN:
        metadata = {**metadata, "true_answer": fact.answer}
    for ask in asks:
        for wrapper in wrappers:
            yield {
                "instruction": wrapper.format(q=ask),
                "output": fact.answer if kind == RETAIN else refusal,
                "metadata": metadata,
            }
