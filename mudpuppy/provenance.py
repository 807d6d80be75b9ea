"""Provenance: `mudpuppy.json` beside every artefact says what it was made from (design, rule 7).

Standard library only, so that the doctor can compute the same fingerprint without torch.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from mudpuppy.safefile import read_header, weight_files

PROVENANCE_FILE = "mudpuppy.json"
PROVENANCE_SCHEMA_VERSION = 1
PACKAGES = ("mudpuppy", "torch", "transformers", "peft", "trl", "datasets", "safetensors")
"""Packages whose versions are recorded."""
SAMPLE_BYTES = 4096
"""Bytes of each tensor that the fingerprint reads."""
VOLATILE_KEYS = ("transformers_version", "_name_or_path", "torch_dtype", "dtype")
"""Keys of config.json that change without the model changing."""


def package_versions() -> dict[str, str]:
    """Return the installed versions of the packages that matter; absent ones are left out."""
    from importlib.metadata import PackageNotFoundError, version  # slow to import

    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def fingerprint_model(folder: Path) -> str | None:
    """Return a hash that tells one base model from another, or None when there are no safetensors.

    It covers config.json without its volatile keys, and name, type, shape and the first 4 KiB of
    every tensor: an exchanged revision shows, and an 8B model takes a fraction of a second. Only
    the files that transformers would load count; what else lies there may be anything.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is damaged.
    """
    config = folder / "config.json"
    try:
        files = weight_files(folder)
        if not files or not config.is_file():
            return None
        settings = json.loads(config.read_text(encoding="utf-8"))
        for key in VOLATILE_KEYS:
            settings.pop(key, None)
        tensors: dict[str, bytes] = {}
        for file in files:
            tensors.update(_sample_tensors(file))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{folder}: a file has another form than expected: {error}") from error
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name])
    return digest.hexdigest()


def _sample_tensors(file: Path) -> dict[str, bytes]:
    """Return type, shape and first bytes of every tensor of one safetensors file."""
    samples = {}
    entries = read_header(file)
    with file.open("rb") as handle:
        for name, entry in entries.items():
            handle.seek(entry.start)
            head = handle.read(min(SAMPLE_BYTES, entry.size))
            samples[name] = f"{entry.dtype}{list(entry.shape)}".encode() + head
    return samples


def hash_names(names: list[str]) -> str:
    """Return a short hash of a set of parameter names, in any order."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]


def hash_text(text: str) -> str:
    """Return a short hash of a text, such as a chat template."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def read_provenance(folder: Path) -> dict[str, Any] | None:
    """Return what `mudpuppy.json` in the folder says, or None when there is none.

    Raises:
        ValueError: the file is not a JSON object.
    """
    path = folder / PROVENANCE_FILE
    if not path.is_file():
        return None
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected an object, found {type(value).__name__}")
    return value
