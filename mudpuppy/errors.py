"""The exception tree: what a person can cause, and what went wrong in the engine.

    MudpuppyError                exit code 3, unless a subclass says otherwise
      UsageError                 exit code 2: the person can mend it; printed without a traceback
        ConfigError              one or more settings are wrong; all problems at once
        UnsupportedCombination   method x precision x feature is refused by `mudpuppy.rules`
        DatasetError             a file and a line that cannot be used
        ModelError               a model path that cannot be used
        OutputError              an output folder that may not be written
      EngineError                training started and could not be finished or believed

Standard library only, so that every command can import it before it starts.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence
from typing import Any

MAX_SHOWN = 80
"""Characters of a foreign value that a message repeats."""


class MudpuppyError(Exception):
    """Base of every error that this project raises on purpose.

    Args:
        message: what happened and where, in one or more lines.
        hint: what to type or change next; empty when there is nothing to say.
    """

    exit_code = 3
    is_own = True
    """Whether it happened in this process; the failure of another is only retold."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class UsageError(MudpuppyError):
    """Something the person asked for cannot be done; nothing was written."""

    exit_code = 2


MOST_PROBLEMS = 40
"""Problems of one file that are told at once; a matrix can have one for every cell."""


class ConfigError(UsageError):
    """One or more settings are wrong; `problems` holds all of them, the message the first ones."""

    def __init__(self, problems: Sequence[str], *, source: str = "", hint: str = "") -> None:
        self.problems = tuple(problems)
        where = f"{source}: " if source else ""
        if len(self.problems) == 1:
            text = f"{where}{self.problems[0]}"
        else:
            shown_ones = [f"  - {problem}" for problem in self.problems[:MOST_PROBLEMS]]
            if (rest := len(self.problems) - MOST_PROBLEMS) > 0:
                shown_ones.append(f"  and {rest:,} more")
            text = "\n".join([f"{where}{len(self.problems):,} problems", *shown_ones])
        super().__init__(text, hint=hint)


class UnsupportedCombination(UsageError):
    """A combination that the rule table rejects; `codes` holds the stable rule codes."""

    def __init__(self, message: str, *, codes: Sequence[str], hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.codes = tuple(codes)


class DatasetError(UsageError):
    """A dataset that cannot be used, with the file and the 1-based line where that shows."""

    def __init__(self, message: str, *, file: str, line: int | None = None, hint: str = "") -> None:
        self.file = file
        self.line = line
        where = file if line is None else f"{file}:{line}"
        super().__init__(f"{where}: {message}", hint=hint)


class ModelError(UsageError):
    """A model path that cannot be used."""


class OutputError(UsageError):
    """An output folder that may not be written."""


class EngineError(MudpuppyError):
    """Training started, and its result cannot be finished or cannot be believed.

    Args:
        message: what happened and where.
        code: a stable code such as `MP-E01`, put before the message; empty where there is none.
        hint: what to type or change next.
    """

    def __init__(self, message: str, *, code: str = "", hint: str = "") -> None:
        self.code = code
        super().__init__(f"{code}: {message}" if code else message, hint=hint)


def near_names(wrong: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'a' or 'b'?` for known names close to `wrong`, or nothing."""
    if len(wrong) > MAX_SHOWN:  # no misspelling, and slow to compare
        return ""
    import difflib  # most commands name nothing wrongly

    close = difflib.get_close_matches(wrong, list(known), n=3, cutoff=0.6)
    if not close:
        return ""
    return "; did you mean " + " or ".join(f"'{name}'" for name in close) + "?"


def printable(text: str) -> str:
    """Return the text with escapes in place of control characters; lines and tabs stay.

    Names, keys and templates of others may hold sequences that repaint a terminal, or halves of
    surrogate pairs that no terminal can print.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text
    )


class _Short(reprlib.Repr):
    """Representations of bounded length, whatever they are of."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = MAX_SHOWN
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = 4
        self.maxlevel = 2

    def repr_int(self, x: int, level: int) -> str:
        """Python refuses to write integers of more than 4300 digits."""
        del level
        return repr(x) if x.bit_length() <= MAX_SHOWN else f"a number of {x.bit_length()} bits"


def shown(value: Any) -> str:
    """Return a foreign value as messages repeat it: quoted, and cut in the middle when long."""
    text = _Short().repr(value)
    return text if len(text) <= 2 * MAX_SHOWN else text[: 2 * MAX_SHOWN] + "..."


def clip(text: str) -> str:
    """Return a foreign text on one line, cut when it is long."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_SHOWN else line[:MAX_SHOWN] + "..."
