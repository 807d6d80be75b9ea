"""Evidence from `mudpuppy.json`, held against what lies beside it, and from the traces of a run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.evidence.files.inventory import read_settings
from harness.evidence.files.places import list_places
from harness.evidence.lineage.base import PROVENANCE
from harness.evidence.source import CheckpointEvidence, provides
from harness.facts.checkpoint import Adapter, Files
from harness.facts.files import Manifest, Traces
from harness.registry import NotApplicable
from mudpuppy.files import open_regular
from mudpuppy.provenance import fingerprint_model, hash_names

STEPS, RUN = "steps.jsonl", "run.json"
"""What the engine writes while it works, and when it has finished."""
TAIL_BYTES = 65_536
"""Bytes at the end of the step log that are read."""
_FACTOR = re.compile(r"^(?P<module>base_model\.model\..+\.lora_[AB])\.weight$")
_HUB_FOLDER = re.compile(r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)")


@provides("manifest")
def read_manifest(evidence: CheckpointEvidence) -> Manifest:
    """Return the provenance of this very folder and what it can be compared with."""
    files: Files = evidence.get("files")
    if PROVENANCE not in files.names:
        raise NotApplicable(f"there is no {PROVENANCE}: the folder was not made by this project")
    value = read_settings(evidence, PROVENANCE)
    adapter: Adapter | None = evidence.find("adapter")
    settings = {} if adapter is None else adapter.settings
    other, surely = _other_base(value.get("base"), settings, evidence.folder)
    return Manifest(
        value=value,
        lies_beside=_name_artefact(files, evidence.find("config") or {}),
        adapter=settings,
        names_hash=_hash_adapter(adapter, value),
        other_base=other,
        other_is_surely=surely,
    )


def _name_artefact(files: Files, config: Mapping[str, Any]) -> str:
    if files.adapter:
        return "adapter"
    if not files.weights:
        return "nothing"
    quantisation = config.get("quantization_config")
    method = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
    return {"gptq": "gptq", "compressed-tensors": "int8"}.get(str(method), "model")


def _hash_adapter(adapter: Adapter | None, value: Mapping[str, Any]) -> str:
    """Return the hash that the engine would record for these keys; empty beyond plain LoRA."""
    if adapter is None or not adapter.tensors:
        return ""
    matches = [_FACTOR.match(key) for key in adapter.tensors]
    trained = value.get("trainable")
    described = trained.get("adapter") if isinstance(trained, dict) else None
    name = described.get("name") if isinstance(described, dict) else None
    if not all(matches) or not isinstance(name, str):
        return ""
    return hash_names([f"{match['module']}.{name}.weight" for match in matches if match])


def _other_base(recorded: Any, settings: Mapping[str, Any], folder: Path) -> tuple[str, bool]:
    """Return the adapter's base when it is not the recorded one, and whether that is sure."""
    named = settings.get("base_model_name_or_path")
    if not isinstance(recorded, dict) or not isinstance(named, str) or not named:
        return "", False
    known = [recorded.get(key) for key in ("name", "path")]
    same = {_last_part(one) for one in known if isinstance(one, str)}
    if not same:
        return "", False
    stored = recorded.get("fingerprint")
    if isinstance(stored, str) and stored and (found := _fingerprint(named, folder)):
        return ("", False) if found == stored else (named, True)
    return ("", False) if _last_part(named) in same else (named, False)


def _last_part(name: str) -> str:
    """Return what names a model wherever it lies: the last word, without a hub's folders."""
    found = _HUB_FOLDER.search(name)
    return (found["name"] if found else name.rstrip("/").rpartition("/")[2]).lower()


def _fingerprint(name: str, folder: Path) -> str:
    """Return the fingerprint of a local folder; empty when it cannot be made."""
    for place in list_places(name, folder.absolute()):
        try:
            if place.is_dir() and (found := fingerprint_model(place)):
                return found
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue  # another probe reports a base that cannot be read
    return ""


@provides("traces")
def find_traces(evidence: CheckpointEvidence) -> Traces:
    """Return what the engine left in the folder while it worked."""
    files: Files = evidence.get("files")
    if files.alone:
        raise NotApplicable("one file was given, not the folder of a run")
    found = read_traces(evidence.folder, files.names, bool(files.weights or files.adapter))
    if not found.is_ours:
        raise NotApplicable("no run of this project wrote into the folder")
    return found


def read_traces(folder: Path, names: tuple[str, ...], holds_weights: bool) -> Traces:
    """Return the traces of a run in a folder whose plain files are `names`."""
    try:
        inside = [path.name for path in folder.iterdir() if path.is_dir()]
    except OSError:
        inside = []
    steps = [name for name in inside if re.fullmatch(r"checkpoint-\d{1,12}", name)]
    return Traces(
        # A cell of the matrix keeps the records and puts the artefact into `checkpoint/`.
        finished=PROVENANCE in names or (folder / "checkpoint" / PROVENANCE).is_file(),
        last_step=_last_step(folder / STEPS) if STEPS in names else None,
        has_record=RUN in names and _is_record(folder / RUN),
        staging=tuple(sorted(name for name in inside if name.startswith(".saving-"))),
        checkpoints=tuple(sorted(steps, key=lambda name: int(name.rpartition("-")[2]))),
        holds_weights=holds_weights,
    )


def _last_step(path: Path) -> int | None:
    """Return the last step of a log of ours; None for a file of somebody else."""
    try:
        with open_regular(path) as handle:
            first = handle.readline(TAIL_BYTES)
            handle.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = handle.read(TAIL_BYTES).splitlines()
    except OSError:
        return None
    if not first.strip():
        return 0
    if _step_of(first) is None:
        return None
    return next((step for line in reversed(lines) if (step := _step_of(line)) is not None), 0)


def _step_of(line: bytes) -> int | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    ours = isinstance(value, dict) and "elapsed_s" in value and "grad_norm" in value
    step = value.get("step") if ours else None
    return step if type(step) is int else None


def _is_record(path: Path) -> bool:
    """Whether run.json is a record of ours."""
    try:
        with open_regular(path) as handle:
            value = json.loads(handle.read(1_000_000))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and {"method", "precision", "choices"} <= value.keys()
