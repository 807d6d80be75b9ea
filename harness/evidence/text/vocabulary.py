"""Evidence about the vocabulary: rows of embedding and head, declared size, special ids."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from harness.evidence.files.model import text_settings
from harness.evidence.source import CheckpointEvidence, Depth, provides
from harness.evidence.values.decodable import can_decode
from harness.facts.adapters import SURE_HEADS
from harness.facts.checkpoint import Adapter, Base, Tensor, TiedPair, Tokenizer, Vocabulary, Weights
from harness.registry import Missing, NotApplicable

PICTURE_ROWS = 8
"""Rows of Mllama's embedding beyond `vocab_size`."""
EMBEDDING = re.compile(
    r"(?:^|\.)(?:embed_tokens|wte|embed_in|word_embeddings|tok_embeddings)\.weight$"
)
"""Names of token embeddings."""
HEAD = re.compile(rf"(?:^|\.)(?:{'|'.join(SURE_HEADS)})\.weight$")
"""Names of output heads."""
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Settings that hold token ids."""
TIED_BY_DEFAULT = ("gemma", "gemma2", "gemma3", "gemma3_text")
"""Families whose configuration leaves tie_word_embeddings out when it is true."""


@provides("config_or_empty")
def give_config(evidence: CheckpointEvidence) -> Mapping[str, Any]:
    """Return config.json, or an empty mapping when it cannot be read."""
    config: Mapping[str, Any] | None = evidence.find("config")
    return config or {}


@provides("any_base")
def give_base(evidence: CheckpointEvidence) -> Base | None:
    """Return the base, or None when it is not known."""
    base: Base | None = evidence.find("base")
    return base


@provides("vocabulary")
def measure_vocabulary(evidence: CheckpointEvidence) -> Vocabulary:
    """Return all sizes of the vocabulary that can be seen."""
    if evidence.get("files").is_gguf:
        raise NotApplicable("a GGUF model's vocabulary is gguf-vocabulary-disagrees' business")
    weights: Weights | None = evidence.find("weights")
    adapter: Adapter | None = evidence.find("adapter")
    tokenizer: Tokenizer | None = evidence.find("tokenizer")
    base: Base | None = evidence.find("base") if adapter is not None else None
    if weights is None and adapter is None:
        raise NotApplicable("the folder holds neither a model nor an adapter that can be read")
    config = evidence.find("config") or {}
    if weights is None:
        config = {}  # an adapter's own config.json, if any, says nothing about its rows
    return Vocabulary(
        tokenizer=tokenizer,
        declared=_declared(config),
        rows=_model_rows(weights, config) if weights else _adapter_rows(adapter, base),
        special=_special(config, evidence.find("generation") or {}),
    )


@provides("generation")
def read_generation(evidence: CheckpointEvidence) -> Mapping[str, Any]:
    """Return generation_config.json."""
    from harness.evidence.files.inventory import read_settings

    return read_settings(evidence, "generation_config.json")


def _declared(config: Mapping[str, Any]) -> int | None:
    """Return `vocab_size`, of the decoder where it has settings of its own (T5Gemma)."""
    decoder = config.get("decoder")
    inner = _size(decoder.get("vocab_size")) if isinstance(decoder, dict) else None
    return inner if inner is not None else _size(text_settings(config).get("vocab_size"))


def _model_rows(weights: Weights, config: Mapping[str, Any]) -> dict[str, int]:
    found = [
        t for name, t in weights.tensors.items() if EMBEDDING.search(name) or HEAD.search(name)
    ]
    vision = re.compile(r"visi|audio|image")
    kinds = (config.get("model_type"), text_settings(config).get("model_type"))
    # Mllama embeds its picture tokens in rows behind those that vocab_size counts.
    behind = PICTURE_ROWS if "mllama" in kinds or "mllama_text_model" in kinds else 0
    return {
        t.name: t.shape[0] - (behind if EMBEDDING.search(t.name) else 0)
        for t in found
        if len(t.shape) == 2 and not vision.search(t.name)
    }


def _adapter_rows(adapter: Adapter | None, base: Base | None) -> dict[str, int]:
    """Return the rows an adapter brings itself; where it brings none, those of its base."""
    if adapter is None:
        return {}
    rows = {
        name: tensor.shape[0]
        for name, key in adapter.replaced.items()
        if (tensor := adapter.tensors[key]) and len(tensor.shape) == 2
        if (EMBEDDING.search(name) or HEAD.search(name)) and "trainable_tokens" not in key
    }
    if base is None or any(EMBEDDING.search(name) for name in rows):
        return rows
    return _model_rows(Weights(tensors=base.tensors, complete=True), base.config) | rows


def _special(config: Mapping[str, Any], generation: Mapping[str, Any]) -> dict[str, int]:
    found = {}
    for where, settings in (("", text_settings(config)), ("generation ", generation)):
        for key in SPECIAL:
            value = settings.get(key)
            for number in value if isinstance(value, list) else [value]:
                if type(number) is int and number >= 0:
                    found[f"{where}{key} {number}" if where else key] = number
    return found


def _size(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


@provides("tied_pair", Depth.WEIGHTS)
def compare_tied(evidence: CheckpointEvidence) -> TiedPair:
    """Return head and embedding that the configuration ties, compared value by value."""
    config = evidence.get("config")
    weights: Weights = evidence.get("weights")
    tied = config.get("tie_word_embeddings", text_settings(config).get("tie_word_embeddings"))
    if tied is None:
        tied = config.get("model_type") in TIED_BY_DEFAULT
    if not tied:
        raise NotApplicable("config.json does not tie head and embedding")
    heads = [t for name, t in weights.tensors.items() if HEAD.search(name)]
    embeddings = [t for name, t in weights.tensors.items() if EMBEDDING.search(name)]
    lost = _find_lost_head(evidence) if embeddings and not heads else ""
    if lost:
        first = embeddings[0]
        return TiedPair(head=first, embedding=first, different=first.elements, base_head=lost)
    if not heads or not embeddings:
        raise NotApplicable("head and embedding are tied and stored once")
    head, embedding = heads[0], embeddings[0]
    return TiedPair(
        head=head, embedding=embedding, different=_differences(evidence, head, embedding)
    )


def _find_lost_head(evidence: CheckpointEvidence) -> str:
    """Return the head of a base of the same family that ties nothing; empty without one."""
    base: Base | None = evidence.find("base")
    if base is None or base.config.get("tie_word_embeddings") is not False:
        return ""
    if base.config.get("model_type") != evidence.get("config").get("model_type"):
        return ""
    return next((name for name in base.tensors if HEAD.search(name)), "")


def _differences(evidence: CheckpointEvidence, head: Tensor, embedding: Tensor) -> int:
    import numpy as np

    from harness.evidence.values.arrays import iterate_rows

    if head.shape != embedding.shape:
        return head.elements
    if not (can_decode(head) and can_decode(embedding)):
        raise Missing(f"values of type {head.dtype} cannot be compared")
    pairs = zip(
        iterate_rows(evidence.folder, head), iterate_rows(evidence.folder, embedding), strict=True
    )
    return sum(int(np.count_nonzero(left != right)) for left, right in pairs)
