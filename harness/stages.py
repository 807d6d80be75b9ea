"""Measure what one stage of a lifecycle left: size, adapters, the doctor's word, the merge's k."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.doctor import diagnose
from harness.evidence.source import CheckpointEvidence, Options
from harness.facts.checkpoint import Lineage
from harness.facts.lifecycle import Kind, Stage
from harness.remains import hash_tensors
from mudpuppy.safefile import read_header

WRAPPER = "base_model.model"
"""What PEFT puts before a name, once for each wrapper."""


def measure_stage(
    folder: Path,
    *,
    name: str,
    step: str,
    kind: Kind,
    base: Path,
    adapter: Path | None = None,
    same_as: Path | None = None,
    **more: Any,
) -> Stage:
    """Return what lies in `folder`.

    Args:
        folder: what the stage left.
        name: the stage, with its round.
        step: the stage, without it.
        kind: what it is.
        base: the model that it was made from.
        adapter: what was merged into it.
        same_as: folder whose tensors it has to have.
        more: further fields of the stage.
    """
    # a base that came back is not a merge, of which it would be wrong to change nothing
    made_from = None if kind == "base" and same_as is not None else base
    diagnosis = diagnose(folder, base=made_from, adapter=adapter)
    files = sorted(folder.glob("*.safetensors"))
    names = [one for file in files for one in read_header(file)]
    ks: list[float] = []
    if adapter is not None:
        lineage: Lineage = CheckpointEvidence(folder, Options(base=base, adapter=adapter)).get(
            "lineage"
        )
        ks = [one.k for one in lineage.modules if one.resolvable]
    return Stage(
        name=name,
        step=step,
        kind=kind,
        bytes=sum(file.stat().st_size for file in files),
        tensors=len(names),
        adapters=count_adapters(names),
        verdict=str(diagnosis.verdict),
        findings=tuple(dict.fromkeys(one.code for one in diagnosis.findings if one.is_sick)),
        k_low=min(ks, default=None),
        k_high=max(ks, default=None),
        judged=len(ks),
        foreign=0 if same_as is None else _count_foreign(folder, same_as),
        **more,
    )


def count_adapters(names: list[str]) -> int:
    """Return how many adapters the names of a file's tensors tell of, beside or inside each other.

    Args:
        names: as a file has them; PEFT leaves the adapter's own name out where it saves one alone.
    """
    factors = [name for name in names if ".lora_" in name]
    if not factors:
        return 0
    inside = max(name.count(WRAPPER) for name in factors)
    beside = {name.rpartition(".lora_")[2].split(".")[1] for name in factors} - {"weight"}
    return max(1, inside, len(beside))


def _count_foreign(folder: Path, other: Path) -> int:
    """Return how many tensors of two folders are not the same, bit for bit."""
    ours, theirs = (
        {k: v for file in one.glob("*.safetensors") for k, v in hash_tensors(file).items()}
        for one in (folder, other)
    )
    return sum(ours.get(name) != theirs.get(name) for name in {*ours, *theirs})
