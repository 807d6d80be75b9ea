"""Evidence about a model folder: its settings, its tensors by header, its provenance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.evidence.files.inventory import read_settings
from harness.evidence.files.nothing import explain_no_weights
from harness.evidence.source import CheckpointEvidence, provides
from harness.facts.checkpoint import Files, Weights
from harness.registry import Missing, NotApplicable


@provides("config")
def read_config(evidence: CheckpointEvidence) -> dict[str, Any]:
    """Return `config.json`; an adapter needs none."""
    files: Files = evidence.get("files")
    if files.adapter and not files.weights and "config.json" not in files.names:
        raise NotApplicable("an adapter has no config.json")
    return read_settings(evidence, "config.json")


@provides("weights")
def list_weights(evidence: CheckpointEvidence) -> Weights:
    """Return the model's tensors by header, and whether all of them could be seen."""
    files: Files = evidence.get("files")
    if not files.weights:
        raise (NotApplicable if files.adapter else Missing)(explain_no_weights(files))
    readable = [f for f in files.weights if f.problem in ("", "truncated") and f.tensors]
    if not readable:
        first = files.weights[0]
        raise Missing(f"{first.name} could not be read: {first.detail}")
    index = files.index
    lost = index is not None and (index.missing or index.escaping or index.problem)
    whole = all(not f.problem for f in files.weights)
    return Weights(
        tensors={tensor.name: tensor for file in readable for tensor in file.tensors},
        complete=whole and (not lost or "model.safetensors" in files.names),
    )


def text_settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of the language model, which vision models nest."""
    for key in ("text_config", "llm_config", "language_config"):
        nested = config.get(key)
        if isinstance(nested, dict):
            return nested
    return config
