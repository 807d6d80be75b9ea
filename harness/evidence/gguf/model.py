"""Evidence about a model in GGUF form: its parts, its settings and its tensors by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from harness.evidence.files.kinds import recognise
from harness.evidence.gguf.file import read_gguf_header
from harness.evidence.source import CheckpointEvidence, Depth, provides
from harness.facts.checkpoint import Base, WeightFile
from harness.facts.gguf import Gguf, GgufHeader, TokenChanges
from harness.registry import Missing, NotApplicable

PART = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.gguf$")
"""How llama.cpp names the parts of a split model."""
MOST_PARTS = 1_000


def first_parts(names: Iterable[str]) -> list[str]:
    """Return one name for every GGUF model among file names: the first part of a split one."""
    found: dict[tuple[str, str], str] = {}
    for name in sorted(names):
        if name.lower().endswith(".gguf"):
            part = PART.match(name)
            found.setdefault((part["stem"], part["total"]) if part else (name, ""), name)
    return sorted(found.values())


def parts_of(name: str) -> list[str]:
    """Return the names of all parts of the model that a file belongs to."""
    part = PART.match(name)
    total = int(part["total"]) if part else 0
    if part is None or not 0 < total <= MOST_PARTS:
        return [name]
    return [f"{part['stem']}-{n:05d}-of-{total:05d}.gguf" for n in range(1, total + 1)]


@provides("gguf_headers")
def read_headers(evidence: CheckpointEvidence) -> dict[str, tuple[GgufHeader, int]]:
    """Return header and size of every part that is there."""
    if not evidence.file or recognise(evidence.folder / evidence.file) != "gguf":
        raise NotApplicable("this is no GGUF file")
    return {
        name: read_gguf_header(evidence.folder / name, name)
        for name in parts_of(evidence.file)
        if _is_there(evidence.folder / name)
    }


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


@provides("gguf_files")
def describe_parts(evidence: CheckpointEvidence) -> tuple[WeightFile, ...]:
    """Return every part as a file of weights."""
    return tuple(
        WeightFile(
            name=name,
            size_bytes=size,
            problem=header.problem,
            detail=header.detail,
            missing_bytes=header.missing_bytes,
            tensors=header.tensors,
            kind="gguf",
        )
        for name, (header, size) in evidence.get("gguf_headers").items()
    )


@provides("gguf")
def describe_model(evidence: CheckpointEvidence) -> Gguf:
    """Return settings and tensors of a GGUF model.

    Raises:
        NotApplicable: the subject is no GGUF file.
        Missing: its header could not be read.
    """
    headers: dict[str, tuple[GgufHeader, int]] = evidence.get("gguf_headers")
    name, (first, _) = next(iter(headers.items()))
    if first.problem not in ("", "truncated"):
        raise Missing(f"{name} could not be read: {first.detail}")
    lost = tuple(part for part in parts_of(evidence.file) if part not in headers)
    tensors = {t.name: t for header, _ in headers.values() for t in header.tensors}
    whole = all(header.tensors or not header.problem for header, _ in headers.values())
    return Gguf(
        files=tuple(headers),
        settings=first.settings,
        tensors=tensors,
        complete=whole and not lost,
        lost=lost,
    )


@provides("gguf_token_changes", Depth.LINEAGE)
def compare_tokens(evidence: CheckpointEvidence) -> TokenChanges | None:
    """Return how the tokens differ from those of the base's tokenizer; None without one.

    Only byte-level BPE is compared: there the converter writes the texts of tokenizer.json as they
    are.
    """
    gguf: Gguf = evidence.get("gguf")
    base: Base | None = evidence.get("any_base")
    tokens = gguf.array("tokenizer.ggml.tokens", "string")
    if base is None or tokens is None or gguf.text("tokenizer.ggml.model") != "gpt2":
        return None
    ids: Mapping[str, int] = CheckpointEvidence(Path(base.root)).find("token_ids") or {}
    shared = {number: text for text, number in ids.items() if number < len(tokens.values)}
    odd = sorted(number for number, text in shared.items() if tokens.values[number] != text)
    if not odd:
        return TokenChanges(compared=len(shared), different=0)
    return TokenChanges(
        compared=len(shared),
        different=len(odd),
        first=odd[0],
        found=tokens.values[odd[0]],
        expected=shared[odd[0]],
    )


@provides("any_token_changes")
def give_token_changes(evidence: CheckpointEvidence) -> TokenChanges | None:
    """Return the comparison with the base, or None where it was not made."""
    found: TokenChanges | None = evidence.find("gguf_token_changes")
    return found
