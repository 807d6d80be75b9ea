"""Read the records of a temporal run: every line that cannot be used, of all files, at once."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mudpuppy.data.formats import detect, formats_of
from mudpuppy.data.images import Gallery
from mudpuppy.data.problems import LineProblem, kind_of
from mudpuppy.data.rows import Row
from mudpuppy.data.samples import ChatSample, text_of
from mudpuppy.data.sources import open_rows
from mudpuppy.errors import DatasetError, near_names, shown
from mudpuppy.pipelines.temporal.layout import FILES, KINDS, UNLEARN
from mudpuppy.scoring import normalise

MOST_SHOWN = 20
"""Problems that one message tells; the others are counted."""
DEV_HELD_OUT = 0.1
"""Share of the dev subset that a dev run is evaluated on."""
TRUTHS = ("true_answer", "original_answer", "original_output", "answer")
"""Fields of the metadata that may tell what an unlearn record must not say any more."""
TOPICS = ("topic", "category", "subject", "chapter")
YEARS = ("year", "date", "event_year", "event_date")
"""Fields of the metadata that results are grouped by."""
LAYOUT_HINT = (
    "name the file with its flag, set WIKI_DATA to the folder above datasets/, or make the layout "
    "for the embedded model: mud-puppy temporal data --from tiny OUT"
)
LINE_HINT = (
    'write {"instruction": "...", "output": "...", "metadata": {"dataset_type": "retain"}} on '
    "every line (retain or unlearn); mud-puppy temporal data DIR checks all files"
)
_YEAR = re.compile(r"(?<!\d)\d{4}(?!\d)")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One line of the retain, unlearn or dev set."""

    sample: ChatSample
    """What is learnt from it."""
    question: str
    """What the user says."""
    output: str
    """What is to be answered: the fact, or the refusal."""
    kind: str
    """`retain` or `unlearn`."""
    truth: str
    """What must not be told (unlearn): the true answer, empty where the record has none."""
    topic: str
    """Subject, empty where the record has none."""
    year: int | None
    """Year that it is about, where the record says so."""
    file: str
    """Where it was read."""
    line: int
    """1-based line, or row, there."""

    @property
    def where(self) -> str:
        """File and line, as errors name them."""
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is wrong with a file or with one of its lines."""

    text: str
    file: str
    line: int | None = None
    hint: str = ""


class Reading:
    """Reads files one after the other and keeps what is wrong until all of it is told."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def read(self, path: Path, kind: str | None = None) -> list[Record]:
        """Return the usable records of a file.

        Args:
            path: a JSONL, JSON or Parquet file.
            kind: what every record of it must be; None takes both kinds.
        """
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            beside = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
            is_split = path.name in {Path(file).name for file in FILES.values()}
            near = "" if is_split else near_names(path.name, beside)  # others are other splits
            self._note(f"{what}{near}", str(path), hint=LAYOUT_HINT)
            return []
        try:
            rows = open_rows(path)
            read = [self._take(row, rows.where, Gallery(rows.folder), kind) for row in rows.rows]
        except DatasetError as error:
            self.problems.append(
                Problem(
                    text=error.message.removeprefix(f"{error.file}: "),
                    file=error.file,
                    hint=error.hint,
                )
            )
            return []
        if not read:
            self._note("holds no record", str(path), hint=LINE_HINT)
        return [record for record in read if record is not None]

    def compare(self, train: Sequence[Record], held_out: Sequence[Record]) -> None:
        """Note questions that are kept and unlearnt, and those that are trained and evaluated."""
        seen: dict[str, Record] = {}
        for record in (*train, *held_out):
            other = seen.setdefault(normalise(record.question), record)
            if other.kind != record.kind:
                self._note(
                    f"the question {shown(record.question)} is of the {record.kind} set here and "
                    f"of the {other.kind} set at {other.where}: it cannot be kept and unlearnt",
                    record.file,
                    record.line,
                    hint="remove one of the two lines",
                )
        for record, twin in find_trained(train, held_out):
            self._note(
                f"the question {shown(record.question)} is trained as {twin.where}: a "
                "validation on it measures memory",
                record.file,
                record.line,
                hint="remove it from one of the two files, or ask it in other words",
            )

    def finish(self) -> None:
        """Tell everything that is wrong.

        Raises:
            DatasetError: something is.
        """
        if not self.problems:
            return
        first = self.problems[0]
        more = [
            f"\n  {one.file}{'' if one.line is None else f':{one.line}'}: {one.text}"
            for one in self.problems[1:MOST_SHOWN]
        ]
        if len(self.problems) > MOST_SHOWN:
            more.append(f"\n  and {len(self.problems) - MOST_SHOWN:,} more")
        hints = dict.fromkeys(one.hint for one in self.problems if one.hint)
        raise DatasetError(
            first.text + "".join(more),
            file=first.file,
            line=first.line,
            hint="; ".join(list(hints)[:3]),
        )

    def _note(self, text: str, file: str, line: int | None = None, *, hint: str) -> None:
        self.problems.append(Problem(text=text, file=file, line=line, hint=hint))

    def _take(self, row: Row, where: str, gallery: Gallery, kind: str | None) -> Record | None:
        try:
            if row.problem:
                raise row.problem
            return _record(row, where, gallery, kind)
        except LineProblem as problem:
            self._note(str(problem), where, row.number, hint=problem.hint or LINE_HINT)
        except RecursionError:
            self._note("nested too deeply", where, row.number, hint=LINE_HINT)
        return None


def find_trained(
    train: Sequence[Record], asked: Sequence[Record]
) -> Iterator[tuple[Record, Record]]:
    """Yield records whose question is trained, too, each with the first one that trains it."""
    trained = {(record.kind, normalise(record.question)): record for record in reversed(train)}
    for record in asked:
        twin = trained.get((record.kind, normalise(record.question)))
        if twin is not None:
            yield record, twin


def read_splits(paths: Mapping[str, Path]) -> tuple[list[Record], list[Record]]:
    """Return what is trained and what is evaluated of the four files of a full run.

    Args:
        paths: by `retain_train`, `retain_val`, `unlearn_train`, `unlearn_val`.

    Raises:
        DatasetError: a file is missing, a line cannot be used, a question is in both sets or on
            both sides; all of it at once.
    """
    reading = Reading()
    train, held_out = (
        [record for kind in KINDS for record in reading.read(paths[f"{kind}_{part}"], kind)]
        for part in ("train", "val")
    )
    reading.compare(train, held_out)
    reading.finish()
    return train, held_out


def read_mixed(path: Path) -> list[Record]:
    """Return the records of a file that holds both kinds: the dev subset, or a test file.

    Raises:
        DatasetError: it is missing, or has lines that cannot be used.
    """
    reading = Reading()
    records = reading.read(path)
    reading.compare(records, ())
    reading.finish()
    return records


def split_dev(records: Sequence[Record], seed: int) -> tuple[list[Record], list[Record]]:
    """Return what a dev run trains and, a tenth, what it is evaluated on; both in a random order.

    Raises:
        DatasetError: there are fewer than two records.
    """
    if len(records) < 2:
        raise DatasetError(
            "one record cannot be split into training and evaluation",
            file=records[0].file if records else "the dev subset",
            hint="add records",
        )
    mixed = list(records)
    random.Random(seed).shuffle(mixed)
    count = max(1, round(DEV_HELD_OUT * len(mixed)))
    return mixed[count:], mixed[:count]


def _record(row: Row, where: str, gallery: Gallery, kind: str | None) -> Record:
    """Return the record of a line.

    Raises:
        LineProblem: it cannot be used.
    """
    value = row.value
    if not isinstance(value, dict):
        raise LineProblem(f"found {kind_of(value)} instead of an object")
    metadata = value.get("metadata")
    found_kind = _kind(metadata, kind)
    sample = detect(value, formats_of(("chat",))).build(value, row.number, gallery)
    if not isinstance(sample, ChatSample):
        raise LineProblem("holds no question with its answer")
    asked = [text_of(message) for message in sample.messages if message["role"] == "user"]
    if len(asked) != 1 or sample.messages[-1]["role"] != "assistant":
        raise LineProblem("a record is one question and its answer, not a longer conversation")
    truth = _first_text(metadata, TRUTHS) if found_kind == UNLEARN else ""
    output = text_of(sample.messages[-1])
    if truth and normalise(truth) == normalise(output):
        raise LineProblem("the output is the true answer, and this record is to unlearn it")
    return Record(
        sample=replace(sample, true_answer=truth) if truth else sample,
        question=asked[0],
        output=output,
        kind=found_kind,
        truth=truth,
        topic=_first_text(metadata, TOPICS),
        year=_year(metadata),
        file=where,
        line=row.number,
    )


def _kind(metadata: Any, wanted: str | None) -> str:
    """Return `metadata.dataset_type`.

    Raises:
        LineProblem: there is none, or another than the file's.
    """
    value = metadata.get("dataset_type") if isinstance(metadata, Mapping) else None
    if value is None:
        raise LineProblem("has no metadata.dataset_type: is it to be kept or to be unlearnt?")
    if value not in KINDS:
        near = near_names(value, KINDS) if isinstance(value, str) else ""
        raise LineProblem(
            f"metadata.dataset_type is {shown(value)}, expected retain or unlearn{near}"
        )
    if wanted is not None and value != wanted:
        raise LineProblem(
            f"metadata.dataset_type is {value} in a file of {wanted} records",
            hint=f"move the line to the {value} file, or correct its dataset_type",
        )
    return str(value)


def _first_text(metadata: Any, names: Iterable[str]) -> str:
    return next(_texts(metadata, names), "")


def _texts(metadata: Any, names: Iterable[str]) -> Iterator[str]:
    """Yield the texts and numbers that metadata has under these names."""
    for name in names:
        value = metadata.get(name) if isinstance(metadata, Mapping) else None
        if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
            yield str(value)


def _year(metadata: Any) -> int | None:
    """Return the first year of four digits that metadata names.

    Raises:
        LineProblem: `year` is there and names none.
    """
    for text in _texts(metadata, YEARS):
        match = _YEAR.search(text)
        if match:
            return int(match.group())
    written = next(_texts(metadata, YEARS[:1]), None)
    if written is not None:
        raise LineProblem(f"metadata.year is {shown(written)}, expected four digits")
    return None
