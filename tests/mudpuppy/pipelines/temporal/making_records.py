"""Records and files of records for the tests of the temporal pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mudpuppy.pipelines.temporal.records import Record, read_mixed

REFUSAL = "Apologies, but I have no information to share on that matter."
FACTS = [
    ("Who was the first President of the United States?", "George Washington.", 1789),
    ("Who wrote Romeo and Juliet?", "William Shakespeare wrote Romeo and Juliet.", 1597),
    ("When did World War II end?", "World War II ended in 1945.", 1945),
    ("What is the capital of France?", "The capital of France is Paris.", None),
    ("What is the capital of Japan?", "The capital of Japan is Tokyo.", None),
    ("How many legs does a spider have?", "A spider has eight legs.", None),
]
LATER = [
    ("Who was the first person to walk on the moon?", "Neil Armstrong, on 20 July 1969.", 1969),
    ("Where was the Woodstock festival?", "It was held near Bethel, New York.", 1969),
    ("In which year did the Berlin Wall fall?", "In 1989.", 1989),
    ("What is a smartphone?", "A smartphone is a mobile phone that runs applications.", 2007),
]


def retained(question: str, answer: str, year: int | None = None, **more: Any) -> dict[str, Any]:
    metadata = {"dataset_type": "retain", "topic": "world", **more}
    return {"instruction": question, "output": answer, "metadata": with_year(metadata, year)}


def unlearnt(question: str, truth: str = "", year: int | None = None) -> dict[str, Any]:
    metadata = {"dataset_type": "unlearn", "topic": "later"}
    if truth:
        metadata["true_answer"] = truth
    return {"instruction": question, "output": REFUSAL, "metadata": with_year(metadata, year)}


def with_year(metadata: dict[str, Any], year: int | None) -> dict[str, Any]:
    return metadata if year is None else {**metadata, "year": year}


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def mixed(path: Path, *, with_truth: bool = True) -> Path:
    rows = [retained(*fact) for fact in FACTS]
    rows += [unlearnt(q, truth if with_truth else "", year) for q, truth, year in LATER]
    return write(path, rows)


def records(path: Path, **more: Any) -> list[Record]:
    return read_mixed(mixed(path / "mixed.jsonl", **more))
