"""Evidence about everything that may end an answer: tokenizer, two configurations, template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.evidence.files.model import text_settings
from harness.evidence.source import CheckpointEvidence, provides
from harness.facts.chat import Chat, Naming, StopTokens
from harness.facts.checkpoint import Adapter, Drifts, Files
from harness.facts.files import Manifest
from harness.registry import Missing, NotApplicable

TRACES = ("trainer_state.json", "training_args.bin", "mudpuppy.json", "adapter_config.json")
"""Files that only training leaves."""
WRITERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForImageTextToText")
"""Endings of architectures that write text."""


@provides("model_config")
def give_model_config(evidence: CheckpointEvidence) -> Mapping[str, Any]:
    """Return config.json; that of the base for an adapter, which is read together with it.

    Raises:
        Missing: neither is there.
    """
    files: Files = evidence.get("files")
    if files.weights or not files.adapter:
        config: Mapping[str, Any] = evidence.get("config")
        return config
    base: CheckpointEvidence = evidence.get("base_evidence")
    theirs: Mapping[str, Any] = base.get("config")
    return theirs


@provides("model_generation")
def give_model_generation(evidence: CheckpointEvidence) -> Mapping[str, Any] | None:
    """Return generation_config.json, for an adapter that of the base; None without one."""
    files: Files = evidence.get("files")
    source: CheckpointEvidence | None = evidence
    if files.adapter and not files.weights:
        source = evidence.find("base_evidence")
    found: Mapping[str, Any] | None = None if source is None else source.find("generation")
    return found


@provides("any_chat")
def give_chat(evidence: CheckpointEvidence) -> Chat | None:
    """Return how the template writes a conversation; None where that is not known."""
    chat: Chat | None = evidence.find("chat")
    return chat


@provides("stop_tokens")
def gather_stops(evidence: CheckpointEvidence) -> StopTokens:
    """Return the four sources of stop tokens.

    Raises:
        Missing: the tokenizer or the configuration cannot be read.
    """
    naming: Naming = evidence.get("naming")
    config: Mapping[str, Any] = evidence.get("model_config")
    kinds = config.get("architectures")
    names = [k for k in kinds if isinstance(k, str)] if isinstance(kinds, list) else []
    if names and not any(name.endswith(WRITERS) for name in names):
        raise NotApplicable(f"{names[0][:80]} writes no text")
    generation: Mapping[str, Any] | None = evidence.find("model_generation")
    own = config.get("eos_token_id", text_settings(config).get("eos_token_id"))
    return StopTokens(
        naming=naming,
        end=naming.find_id("eos_token"),
        config=read_ids(own),
        generation=read_ids((generation or {}).get("eos_token_id")),
        has_generation=generation is not None,
        chat=evidence.find("chat"),
        was_trained=_was_trained(evidence),
        generates=bool(names),
        model_type=str(config.get("model_type", ""))[:40],
    )


def read_ids(value: Any) -> tuple[int, ...] | None:
    """Return one id or several; None for anything else."""
    several = value if isinstance(value, list) else [value]
    if not several or not all(type(one) is int and one >= 0 for one in several):
        return None
    return tuple(dict.fromkeys(several))


def _was_trained(evidence: CheckpointEvidence) -> bool:
    """Whether the folder shows that the model was tuned after its base."""
    files: Files = evidence.get("files")
    adapter: Adapter | None = evidence.find("adapter")
    if adapter is not None or any(name in files.names for name in TRACES):
        return True
    drifts: Drifts | None = evidence.find("drifts") if evidence.options.base else None
    return drifts is not None and not drifts.identical


@provides("any_manifest")
def give_manifest(evidence: CheckpointEvidence) -> Manifest | None:
    """Return the record of the training, or None without one."""
    manifest: Manifest | None = evidence.find("manifest")
    return manifest


@provides("generation_settings")
def give_generation(evidence: CheckpointEvidence) -> Mapping[str, Any]:
    """Return generation_config.json of this very folder.

    Raises:
        NotApplicable: there is none.
    """
    files: Files = evidence.get("files")
    if "generation_config.json" not in files.names:
        raise NotApplicable("there is no generation_config.json")
    found: Mapping[str, Any] | None = evidence.find("generation")
    if found is None:
        raise Missing("generation_config.json cannot be read")
    return found
