"""Hear the deprecation warnings that the engine's own calls raise, before they become errors."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mudpuppy.errors import clip

KINDS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
ENGINE = Path(__file__).resolve().parents[2] / "mudpuppy"


@contextmanager
def hearing_deprecations() -> Iterator[list[str]]:
    """Collect the warnings whose caller is a file of the engine; those of others stay unheard.

    Yields:
        `file:line: text` of each, once, in order; it grows while the block runs.
    """
    heard: list[str] = []
    with warnings.catch_warnings():
        for kind in KINDS:
            warnings.simplefilter("always", kind)
        show: Any = warnings.showwarning

        def listen(
            message: Any, category: Any, filename: str, lineno: int, *words: Any, **named: Any
        ) -> None:
            if not issubclass(category, KINDS):
                show(message, category, filename, lineno, *words, **named)
                return
            path = Path(filename)
            if path.is_relative_to(ENGINE):
                place = path.relative_to(ENGINE.parent).as_posix()
                line = f"{place}:{lineno}: {clip(str(message))}"
                if line not in heard:
                    heard.append(line)

        warnings.showwarning = listen
        yield heard
