"""Mix samples of earlier topics into the data of a later one, which else overwrites them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from mudpuppy.errors import DatasetError
from mudpuppy.files import write_text_atomic


def mix(own: Path, earlier: Sequence[Path], each: int, seed: str, output: Path) -> dict[str, int]:
    """Write the rows of a topic and some of each earlier one; the same ones every time.

    Args:
        own: JSONL file of the topic.
        earlier: JSONL files of the topics before it, in the same format.
        each: rows to take from each of them.
        seed: what chooses them.
        output: JSONL file to write.

    Returns:
        How many rows are the topic's own, and how many come from earlier ones.

    Raises:
        DatasetError: a file is no JSONL.
    """
    mine = read_lines(own)
    taken = []
    for path in earlier:
        lines = read_lines(path)
        taken += random.Random(f"{seed} {path.name}").sample(lines, min(each, len(lines)))
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(output, "".join(f"{line}\n" for line in (*mine, *taken)))
    return {"own": len(mine), "earlier": len(taken)}


def read_lines(path: Path) -> list[str]:
    """Return the lines of a JSONL file that hold something.

    Raises:
        DatasetError: it is none.
    """
    if path.suffix != ".jsonl" or not path.is_file():
        raise DatasetError(
            "samples of earlier topics are taken from JSONL files alone",
            file=str(path),
            hint="write it as JSONL, or set replay: 0",
        )
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
