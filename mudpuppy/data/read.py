"""Read a dataset: what kind it is, its samples, and every line that cannot be used, at once.

No torch: a broken dataset is reported before anything heavy is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mudpuppy.data.formats import (
    FORMATS,
    Format,
    detect,
    example_of,
    formats_of,
    row_form,
    row_kind,
)
from mudpuppy.data.images import Gallery
from mudpuppy.data.problems import LineProblem, kind_of, near_fields
from mudpuppy.data.rows import Row, Rows
from mudpuppy.data.samples import (
    KINDS,
    KINDS_OF_METHOD,
    ChatSample,
    ImageSample,
    Sample,
)
from mudpuppy.data.sources import open_rows
from mudpuppy.errors import DatasetError

NUM_SHOWN = 5
"""Unusable lines that one message lists."""
KIND_WORDS = {
    "chat": "conversations",
    "text": "running text",
    "completion": "prompts with completions",
    "preference": "pairs of a better and a worse answer",
    "kto": "answers labelled good or bad",
    "steps": "solutions in labelled steps",
    "prompts": "prompts without answers",
    "multimodal": "conversations about images",
}
"""Kinds as messages name them."""


@dataclass(frozen=True, kw_only=True)
class DatasetRead:
    """A dataset that can be used."""

    kind: str
    """A key of `mudpuppy.data.samples.KINDS`; all samples are of its type."""
    format: str
    """How the samples are written, in words."""
    container: str
    """`JSONL`, `JSON`, `Parquet`, `saved dataset` or `hub dataset`."""
    unit: str
    """What `Sample.line` counts: `line` or `row`."""
    where: str
    """The file, folder or hub name, as errors name it."""
    samples: tuple[Sample, ...]
    """In the order of the file."""


def read_dataset(source: Path | str, method: str | None = None) -> DatasetRead:
    """Read every sample of a dataset for one method; blank lines are passed over.

    Args:
        source: a JSONL, JSON or Parquet file, a folder with one, a folder that `datasets` saved, or
            a hub name, the last two with a split behind a colon where they have several.
        method: a key of `KINDS_OF_METHOD`; None takes every kind.

    Raises:
        DatasetError: it cannot be read, is empty, is of a kind that the method cannot learn from,
            or has unusable lines (all are counted, the first few are listed).
    """
    rows = open_rows(source)
    reading = _Reading(rows, method)
    for row in rows.rows:
        reading.take(row)
    return reading.finish()


class _Reading:
    """What is known of a dataset while its rows come in."""

    def __init__(self, rows: Rows, method: str | None) -> None:
        self._rows = rows
        self._method = method
        self._kinds = tuple(KINDS) if method is None else KINDS_OF_METHOD[method]
        self._gallery = Gallery(rows.folder)
        self._samples: list[Sample] = []
        self._problems: list[tuple[int, LineProblem]] = []
        self._num_problems = 0
        self._format: Format | None = None
        self._form = ""
        self._first_line = 0

    def take(self, row: Row) -> None:
        """Add the sample of a row, or what is wrong with it."""
        try:
            if row.problem:
                raise row.problem
            self._samples.append(self._sample(row))
        except LineProblem as problem:
            self._note(row.number, problem)
        except RecursionError:
            self._note(row.number, LineProblem("nested too deeply"))

    def _note(self, line: int, problem: LineProblem) -> None:
        self._num_problems += 1
        if len(self._problems) < NUM_SHOWN:
            self._problems.append((line, problem))

    def _sample(self, row: Row) -> Sample:
        value = row.value
        if not isinstance(value, dict):
            raise LineProblem(f"found {kind_of(value)} instead of an object")
        found = detect(value, (self._format,) if self._format else formats_of(self._kinds))
        form = row_form(value, found)
        if self._format is None:
            self._format, self._form, self._first_line = found, form, row.number
        elif (found, form) != (self._format, self._form):
            raise LineProblem(
                f"has {_words(found, form)}, and {self._rows.unit} {self._first_line} has "
                f"{_words(self._format, self._form)}: one dataset holds one format"
            )
        kind = row_kind(value, found)
        if kind not in self._kinds:
            raise self._wrong_kind(row.number, value, found, kind)
        return found.build(value, row.number, self._gallery)

    def _wrong_kind(
        self, line: int, value: Mapping[str, Any], found: Format, kind: str
    ) -> DatasetError:
        """Return the error for a dataset that the method cannot learn from."""
        wanted = ", or ".join(KIND_WORDS[one] for one in self._kinds)
        taken = {name for one in FORMATS for name in one.required}
        others = [name for name in value if name not in taken]
        known = {name for one in formats_of(self._kinds) for name in one.required}
        near = near_fields(others, sorted(known - set(value)))
        fields = ", ".join(f"'{name}'" for name in found.required)
        fitting = [name for name, kinds in KINDS_OF_METHOD.items() if kind in kinds]
        return DatasetError(
            f"holds {KIND_WORDS[kind]} (fields {fields}), and --method {self._method} learns from "
            f"{wanted}{near}",
            file=self._rows.where,
            line=line,
            hint=f"write lines such as {example_of(self._kinds[0])}, or use --method "
            + ", ".join(fitting),
        )

    def finish(self) -> DatasetRead:
        """Return what was read.

        Raises:
            DatasetError: there are unusable lines, or no lines at all.
        """
        if self._problems:
            raise self._refusal()
        if not self._samples or self._format is None:
            raise DatasetError("holds no samples", file=self._rows.where, hint=self._expected())
        kinds = {type(sample) for sample in self._samples}
        kind = next(name for name, one in KINDS.items() if one in kinds)
        samples = tuple(self._samples)
        if ImageSample in kinds:
            kind, samples = "multimodal", tuple(map(_with_parts, samples))
        return DatasetRead(
            kind=kind,
            format=_words(self._format, self._form),
            container=self._rows.container,
            unit=self._rows.unit,
            where=self._rows.where,
            samples=samples,
        )

    def _refusal(self) -> DatasetError:
        """Return one error for all unusable lines."""
        where = self._rows.where
        line, first = self._problems[0]
        more = [f"\n  {where}:{number}: {problem}" for number, problem in self._problems[1:]]
        if self._num_problems > NUM_SHOWN:
            more.append(f"\n  and {self._num_problems - NUM_SHOWN} more unusable lines")
        return DatasetError(
            f"{first}{''.join(more)}", file=where, line=line, hint=first.hint or self._expected()
        )

    def _expected(self) -> str:
        """Return the hint that shows what a line looks like."""
        kind = self._kinds[0]
        example = self._format.example if self._format else example_of(kind)
        return f"expected {example} on every line"


def _words(one: Format, form: str) -> str:
    return f"{one.name}, as {form}" if form else one.name


def _with_parts(sample: Sample) -> Sample:
    """Return a conversation without images in the form of those with images."""
    if not isinstance(sample, ChatSample):
        return sample
    messages = tuple(
        {"role": m["role"], "content": [{"type": "text", "text": m["content"]}]}
        for m in sample.messages
    )
    return ImageSample(messages=messages, images=(), line=sample.line, ignored=sample.ignored)
