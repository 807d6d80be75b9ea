"""Evidence about where a checkpoint comes from: its base model and, when merged, its adapter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from harness.evidence.files.jsonfile import UnreadableJson, is_path, read_object
from harness.evidence.files.places import is_of_current_folder, list_places
from harness.evidence.source import CheckpointEvidence, Options, provides
from harness.facts.checkpoint import Adapter, Base, Files, Weights
from harness.registry import Missing, NotApplicable

PROVENANCE = "mudpuppy.json"
"""What this project's engine writes beside an artefact."""
OF_A_RUN = ("method", "base", "trainable", "labels")
"""What is the same in the records of one run, whichever form of its model they lie beside."""
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
"""How a model hub names its models: owner/name."""


@provides("base")
def find_base(evidence: CheckpointEvidence) -> Base:
    """Return the base model, when a local folder of it is known."""
    path, named_by = _locate_base(evidence)
    if path.resolve() == evidence.folder.resolve() and not evidence.file:
        raise NotApplicable("the base that is named is this very folder")
    source = CheckpointEvidence(path)
    try:
        weights: Weights = source.get("weights")
    except Missing as missing:
        raise Missing(f"the base {path} cannot be read: {missing}") from missing
    return Base(
        root=str(path),
        named_by=named_by,
        config=source.find("config") or {},
        tensors=weights.tensors,
    )


@provides("merged_adapter")
def find_merged_adapter(evidence: CheckpointEvidence) -> Adapter:
    """Return the adapter that a merged model was made with."""
    files: Files = evidence.get("files")
    if not files.weights:
        raise NotApplicable("the folder holds no model weights, so nothing was merged into them")
    for folder in _adapter_folders(evidence):
        found: Adapter | None = CheckpointEvidence(folder).find("adapter")
        if found is not None:
            return found
    if evidence.options.adapter is not None:
        raise Missing(f"the adapter {evidence.options.adapter} cannot be read")
    raise Missing("no adapter of this model is known; pass --adapter PATH if it is a merged model")


@provides("origin")
def give_origin(evidence: CheckpointEvidence) -> dict[str, Any]:
    """Return the provenance of the folder or of the output it lies in; empty when there is none."""
    return {} if evidence.file else read_origin(evidence.folder)


def read_origin(folder: Path) -> dict[str, Any]:
    """Return the provenance of a folder or of the output it lies in; empty when there is none."""
    for place in (folder, folder.parent):
        path = place / PROVENANCE
        if path.is_file():
            try:
                return read_object(path)
            except UnreadableJson:
                continue
    return {}


def find_output(folder: Path) -> Path | None:
    """Return the output whose model a folder in it holds in another form, as `int8/` does.

    None where the output holds no model beside its record, or the folder's is of another run.
    """
    output = folder.absolute().parent
    record = _read_record(output)
    if not record or not _is_model(output):
        return None
    own = _read_record(folder)
    if own and (own.get("kind") == "model" or any(own.get(k) != record.get(k) for k in OF_A_RUN)):
        return None
    return output


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        return read_object(folder / PROVENANCE)
    except (UnreadableJson, OSError):
        return {}


def _locate_base(evidence: CheckpointEvidence) -> tuple[Path, str]:
    """Return the folder of the base and who named it.

    Raises:
        Missing: nobody did, or what they named is no local folder.
    """
    if evidence.options.base is not None:
        return evidence.options.base, evidence.options.base_source
    named: list[tuple[str, str]] = []
    origin = evidence.get("origin").get("base")
    if isinstance(origin, dict) and isinstance(origin.get("path"), str):
        named.append((origin["path"], PROVENANCE))
    for adapter in (evidence.find("adapter"), evidence.find("merged_adapter")):
        name = adapter.settings.get("base_model_name_or_path") if adapter else None
        if isinstance(name, str) and name:
            named.append((name, "adapter_config.json"))
    for name, source in named:
        for folder in list_places(name, evidence.folder.absolute()):
            if _is_model(folder):
                here = ", in the current folder" if is_of_current_folder(folder) else ""
                return folder, source + here
    if named:
        name = named[0][0][:200]
        kind = "a hub id" if HUB_ID.fullmatch(name) else "not a local folder"
        raise Missing(f"the base {name} is {kind}; pass --base PATH")
    raise Missing("the checkpoint names no base model; pass --base PATH to compare with it")


def _is_model(folder: Path) -> bool:
    try:
        return (folder / "config.json").is_file()
    except OSError:
        return False


def _adapter_folders(evidence: CheckpointEvidence) -> list[Path]:
    """Return where the adapter of a merged model may lie, the surest place first."""
    options: Options = evidence.options
    if options.adapter is not None:
        return [options.adapter]
    folder, found = evidence.folder, []
    named = evidence.get("origin").get("adapter")
    if isinstance(named, str) and named and is_path(named):
        found.append(folder / named)
    if folder.name == "merged" and not evidence.file:
        found.append(folder.parent)
    return [place for place in found if place.resolve() != folder.resolve()]


@provides("base_names")
def list_base_modules(evidence: CheckpointEvidence) -> frozenset[str] | None:
    """Return the names of the base's modules that hold tensors; None without a base."""
    base: Base | None = evidence.find("base")
    if base is None:
        return None
    return frozenset(name.rpartition(".")[0] for name in base.tensors)


@provides("why_no_base")
def explain_no_base(evidence: CheckpointEvidence) -> str:
    """Return why there is no base to compare with; empty when there is one."""
    try:
        evidence.get("base")
    except Missing as missing:
        return str(missing)
    return ""
