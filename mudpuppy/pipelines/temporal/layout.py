"""Where the records lie: `datasets/`, or `datasets/` below the folder that WIKI_DATA names."""

from __future__ import annotations

import os
from pathlib import Path

RETAIN, UNLEARN = "retain", "unlearn"
KINDS = (RETAIN, UNLEARN)
"""What `metadata.dataset_type` says: answered as ever, or refused."""
FILES = {
    "retain_train": "retain/retain_train.jsonl",
    "retain_val": "retain/retain_val.jsonl",
    "unlearn_train": "unlearn/unlearn_train.jsonl",
    "unlearn_val": "unlearn/unlearn_val.jsonl",
    "dev_path": "dev/dev_subset.jsonl",
}
"""Files of the layout by the flag that names another one (seed 003, "Dataset Directory Structure").
"""


def data_root() -> Path:
    """Return the folder of the records: WIKI_DATA's `datasets`, or `datasets` here."""
    wiki = os.environ.get("WIKI_DATA", "")
    return Path(wiki).expanduser() / "datasets" if wiki else Path("datasets")


def default_path(flag: str) -> Path:
    """Return where the file of a flag lies unless the flag is given."""
    return data_root() / FILES[flag]


def find_records(path: Path) -> Path:
    """Return the path, or the same below WIKI_DATA where only that exists."""
    wiki = os.environ.get("WIKI_DATA", "")
    if path.exists() or not wiki or path.is_absolute():
        return path
    there = Path(wiki).expanduser() / path
    return there if there.exists() else path
