"""Rows of JSONL and JSON files, with the line of each; what JSON leaves open is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mudpuppy.data.problems import LineProblem
from mudpuppy.data.rows import Row, Rows, unreadable
from mudpuppy.errors import DatasetError, shown

MAX_LINE_BYTES = 64 * 2**20
"""Longest line of a JSONL file; a file without line ends must not fill the memory."""
MAX_JSON_BYTES = 2 * 2**30
"""Largest file that is one JSON value, which is read whole."""
BOM = b"\xef\xbb\xbf"
"""What editors on Windows leave at the start of a file."""
_SPACE = re.compile(r"[ \t\r\n]*")


class StrictDecoder:
    """A JSON decoder that refuses what JSON leaves open: fields that stand twice, NaN, Infinity."""

    def __init__(self) -> None:
        self._faults: list[str] = []
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=self._constant
        )

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            self._faults.append(f"the field {shown(twice)} stands twice in one object")
        return value

    def _constant(self, name: str) -> None:
        self._faults.append(f"{name} is no JSON; write null or a number")

    def at(self, text: str, start: int) -> tuple[Any, int, LineProblem | None]:
        """Return the value that starts at `start`, where it ends, and what is wrong inside it.

        Raises:
            LineProblem: it is not JSON, and where it ends is not known.
        """
        self._faults.clear()
        try:
            value, end = self._decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            raise LineProblem(
                f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
            ) from None
        except (RecursionError, ValueError) as error:
            raise LineProblem(f"not JSON that can be read: {error}") from None
        return value, end, LineProblem(self._faults[0]) if self._faults else None

    def line(self, text: str) -> Any:
        """Return the one value of a line.

        Raises:
            LineProblem: it holds no such value.
        """
        text = text.strip()
        value, end, problem = self.at(text, 0)
        if text[end:].strip():
            column = end + 1
            problem = LineProblem(f"not JSON: more than one value, from column {column}")
        if problem:
            raise problem
        return value


def is_one_value(path: Path, head: bytes) -> bool:
    """Whether the file is one JSON value, and not one a line."""
    start = head.removeprefix(BOM).lstrip()
    if start.startswith(b"["):
        return start[1:].lstrip()[:1] in (b"{", b"]")
    if not start.startswith(b"{"):
        return False
    first = next(_lines(path), None)
    if first is None or first.problem:
        return path.suffix == ".json"
    return isinstance(first.value, dict) and isinstance(first.value.get("data"), list)


def open_lines(path: Path) -> Rows:
    """Open a file of one JSON object a line."""
    return Rows(
        where=str(path), folder=path.parent, unit="line", container="JSONL", rows=_lines(path)
    )


def _lines(path: Path) -> Iterator[Row]:
    """Yield the numbered non-blank lines of a file."""
    decoder = StrictDecoder()
    try:
        with path.open("rb") as handle:
            number = 0
            while raw := handle.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(raw) > MAX_LINE_BYTES:
                    yield Row(number, None, LineProblem(_too_long()))
                    while raw and not raw.endswith(b"\n"):
                        raw = handle.readline(MAX_LINE_BYTES)
                    continue
                if raw.strip():
                    yield _row(number, raw, decoder)
    except OSError as error:
        raise unreadable(error, str(path)) from None


def _too_long() -> str:
    return f"longer than {MAX_LINE_BYTES // 2**20} MiB"


def _row(number: int, raw: bytes, decoder: StrictDecoder) -> Row:
    """Parse one line."""
    try:
        # A byte-order mark is what editors on Windows leave at the start.
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        return Row(number, decoder.line(text))
    except UnicodeDecodeError as error:
        return Row(number, None, _not_utf8(raw[error.start], error.start + 1))
    except LineProblem as problem:
        return Row(number, None, problem)


def _not_utf8(byte: int, column: int) -> LineProblem:
    return LineProblem(
        f"is not UTF-8: byte 0x{byte:02x} at column {column}",
        hint="convert the file, for example with iconv -t UTF-8",
    )


def open_json(path: Path) -> Rows:
    """Open a file that is one JSON value: an array, an object with `data`, or one sample."""
    if path.stat().st_size > MAX_JSON_BYTES:
        raise DatasetError(
            f"is one JSON value of more than {MAX_JSON_BYTES // 2**30} GiB",
            file=str(path),
            hint="convert it to one object a line, for example with jq -c '.[]'",
        )
    rows = list(_entries(path))
    starts = {row.number for row in rows}
    unit = "line"
    if len(starts) < len(rows):  # entries share lines, so their place is told by counting them
        rows = [_counted(index, row) for index, row in enumerate(rows, start=1)]
        unit = "row"
    return Rows(where=str(path), folder=path.parent, unit=unit, container="JSON", rows=iter(rows))


def _counted(index: int, row: Row) -> Row:
    """Number an entry; what is no entry, but a place where the file is not JSON, keeps its line."""
    is_entry = row.problem is None or row.value is not None
    return Row(index if is_entry else row.number, row.value, row.problem)


def _entries(path: Path) -> Iterator[Row]:
    """Yield the entries of a JSON file with the line that each begins on."""
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        column = error.start - (before.rfind(b"\n") + 1) + 1
        yield Row(before.count(b"\n") + 1, None, _not_utf8(raw[error.start], column))
        return
    del raw
    yield from _Document(text).entries()


class _Document:
    """One JSON value whose entries are read one after the other, with their lines."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._place = self._counted_to = 0
        self._line = 1
        self._decoder = StrictDecoder()

    def entries(self) -> Iterator[Row]:
        """Yield every entry; after something that is not JSON there are no more."""
        try:
            if self._next() == "[":
                yield from self._array()
            else:
                yield from self._object()
            if self._next():
                raise LineProblem(f"not JSON: more than one value, from {self._column()}")
        except LineProblem as problem:
            yield Row(self._line_here(), None, problem)

    def _array(self) -> Iterator[Row]:
        self._place += 1
        if self._next() == "]":
            self._place += 1
            return
        while True:
            self._next()
            line = self._line_here()
            value, self._place, problem = self._decoder.at(self._text, self._place)
            yield Row(line, value, problem)
            if self._closes("]"):
                return

    def _object(self) -> Iterator[Row]:
        """Yield the entries of the field `data`, or else the object itself as the only entry."""
        line, whole = self._line_here(), {}
        has_data = False
        self._place += 1
        while True:
            self._next()
            key, self._place, _ = self._decoder.at(self._text, self._place)
            if self._next() != ":":
                raise LineProblem(f"not JSON: a colon is missing at {self._column()}")
            self._place += 1
            if key == "data" and self._next() == "[":
                has_data = True
                yield from self._array()
            else:
                self._next()
                whole[key], self._place, problem = self._decoder.at(self._text, self._place)
                if problem:
                    raise problem
            if self._closes("}"):
                break
        if not has_data:
            yield Row(line, whole)

    def _next(self) -> str:
        """Pass over white space and return the character there, empty at the end."""
        found = _SPACE.match(self._text, self._place)
        self._place = found.end() if found else self._place
        return self._text[self._place : self._place + 1]

    def _closes(self, bracket: str) -> bool:
        """Pass over a comma or the closing bracket; say whether it was the bracket."""
        char = self._next()
        if char not in (",", bracket) or not char:
            raise LineProblem(f"not JSON: a comma or {bracket} is missing at {self._column()}")
        self._place += 1
        return char == bracket

    def _line_here(self) -> int:
        self._line += self._text.count("\n", self._counted_to, self._place)
        self._counted_to = max(self._counted_to, self._place)
        return self._line

    def _column(self) -> str:
        return f"column {self._place - self._text.rfind(chr(10), 0, self._place)}"
