"""Evidence about how many layers, experts, positions and towers the headers hold."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from harness.evidence.files.model import text_settings
from harness.evidence.source import CheckpointEvidence, provides
from harness.facts.chat import Count, Unknown
from harness.facts.checkpoint import Tensor, Weights
from harness.registry import Missing, NotApplicable

LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
WIDTHS = ("hidden_size", "n_embd", "d_model")
"""Settings that count a thing, by the families' own names."""
_OWN_WIDTH = ("embedding_size", "word_embed_proj_dim", "embed_dim", "d_embed")
"""Settings of families whose embedding has a width of its own."""
SHAPES_KNOWN = (
    *("llama", "mistral", "mixtral", "qwen2", "qwen3", "phi3"),
    *("gemma", "gemma2", "gemma3_text"),
)
"""Families whose layers and widths shapes-disagrees compares."""
MORE_LAYERS = ("num_nextn_predict_layers", "mtp_num_layers", "num_mtp_modules")
"""Layers behind the last that predict further tokens."""
_OTHER = re.compile(r"visi|visual|audio|image|encoder|mtp|draft|vit\.|clip|talker|code2wav")
_LAYER = re.compile(r"^((?:.*?\.)?(?:layers|h|blocks|block))\.(\d{1,6})\.")
_EXPERT = re.compile(r"^(.*\.)experts\.(\d{1,6})\.")
_FUSED = re.compile(r"\.experts\.(?:gate_up_proj|down_proj)$")
_ROUTER = re.compile(r"\.(?:mlp|block_sparse_moe|feed_forward)\.(?:gate|router)\.weight$")
_POSITIONS = re.compile(r"(?:^|\.)(?:wpe|embeddings\.position_embeddings)\.weight$")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|embed_in)\.weight$")
_SEES = re.compile(r"visi|visual|image|vit|clip|patch_embed|sam_|pixel")
_HEARS = re.compile(r"audio|speech|whisper|conformer|mimi")
_FLOATS = ("F64", "F32", "F16", "BF16")


@provides("counts")
def count_parts(evidence: CheckpointEvidence) -> tuple[Count, ...]:
    """Return every count that config.json and the files both give."""
    weights: Weights = evidence.get("weights")
    config: Mapping[str, Any] = evidence.get("config")
    if not weights.complete:
        raise Missing("not all weight files could be read")
    settings = text_settings(config)
    tensors = [one for one in weights.tensors.values() if not _OTHER.search(one.name)]
    found = [*_experts(tensors, settings), *_positions(tensors, settings)]
    found += _towers(weights, config)
    if settings.get("model_type") not in SHAPES_KNOWN and not config.get("is_encoder_decoder"):
        found += [*_layers(tensors, settings), *_widths(tensors, settings)]
    return tuple(found)


def _first(settings: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[str, int] | None:
    """Return the first of some settings that is a positive number, with its name."""
    return next(
        ((k, settings[k]) for k in keys if type(settings.get(k)) is int and settings[k] > 0), None
    )


def _layers(tensors: list[Tensor], settings: Mapping[str, Any]) -> Iterator[Count]:
    """Yield the layers of the longest stack; those that are missing are another probe's."""
    stacks: dict[str, set[int]] = defaultdict(set)
    for one in tensors:
        if match := _LAYER.match(one.name):
            stacks[match[1]].add(int(match[2]))
    declared = _first(settings, LAYERS)
    if not stacks or declared is None:
        return
    longest = max(stacks.values(), key=len)
    more = _first(settings, MORE_LAYERS)
    key, count = declared
    most = count + (more[1] if more else 0)
    yield Count(what="layers", key=key, declared=count, stored=max(longest) + 1, least=0, most=most)


def _experts(tensors: list[Tensor], settings: Mapping[str, Any]) -> Iterator[Count]:
    declared = _first(settings, EXPERTS)
    if declared is None:
        return
    key, count = declared
    by_layer: dict[str, set[int]] = defaultdict(set)
    for one in tensors:
        if match := _EXPERT.match(one.name):
            by_layer[match[1]].add(int(match[2]))
        fused = _FUSED.search(one.name) is not None and len(one.shape) == 3
        router = _ROUTER.search(one.name) is not None and len(one.shape) == 2
        if (fused or router) and one.dtype in _FLOATS:
            what = "experts" if fused else "rows of the router"
            yield _exact(what, key, count, one.shape[0], one.name)
    for prefix, numbers in sorted(by_layer.items()):  # those that are missing are another probe's
        yield Count(
            what="experts",
            key=key,
            declared=count,
            stored=max(numbers) + 1,
            least=0,
            most=count,
            tensor=f"{prefix}experts",
        )


def _positions(tensors: list[Tensor], settings: Mapping[str, Any]) -> Iterator[Count]:
    declared = _first(settings, ("n_positions", "max_position_embeddings"))
    for one in tensors:
        if declared and _POSITIONS.search(one.name) and len(one.shape) == 2:
            key, count = declared
            yield Count(
                what="positions",
                key=key,
                declared=count,
                stored=one.shape[0],
                least=count,
                most=count + 2,  # some families begin to count behind the padding
                tensor=one.name,
            )


def _widths(tensors: list[Tensor], settings: Mapping[str, Any]) -> Iterator[Count]:
    declared = _first(settings, WIDTHS)
    if declared is None or any(settings.get(key) is not None for key in _OWN_WIDTH):
        return
    for one in tensors:
        is_plain = len(one.shape) == 2 and one.dtype in _FLOATS
        if is_plain and _EMBEDDING.search(one.name):
            yield _exact("columns of the embedding", *declared, one.shape[1], one.name)


def _towers(weights: Weights, config: Mapping[str, Any]) -> Iterator[Count]:
    """Yield towers that are declared, of models whose class has them."""
    kinds = config.get("architectures")
    names = [str(kind) for kind in kinds[:5]] if isinstance(kinds, list) else []
    if not any(name.endswith("ForConditionalGeneration") for name in names):
        return
    for key, what, pattern in (
        ("vision_config", "vision tensors", _SEES),
        ("audio_config", "audio tensors", _HEARS),
    ):
        if isinstance(config.get(key), dict) and config[key]:
            stored = sum(pattern.search(name) is not None for name in weights.tensors)
            yield Count(
                what=what, key=key, declared=1, stored=stored, least=1, most=len(weights.tensors)
            )


def _exact(what: str, key: str, declared: int, stored: int, tensor: str) -> Count:
    return Count(
        what=what,
        key=key,
        declared=declared,
        stored=stored,
        least=declared,
        most=declared,
        tensor=tensor,
    )


@provides("unknown_token")
def find_unknown(evidence: CheckpointEvidence) -> Unknown:
    """Return what the model in tokenizer.json takes for the unknown."""
    from harness.evidence.files.inventory import read_settings

    ids: Mapping[str, int] = evidence.get("token_ids")
    model = read_settings(evidence, "tokenizer.json").get("model")
    settings = model if isinstance(model, dict) else {}
    kind = str(settings.get("type") or "tokenizer")[:40]
    token, number, vocab = settings.get("unk_token"), settings.get("unk_id"), settings.get("vocab")
    if isinstance(vocab, list) and number is not None:
        held = type(number) is int and 0 <= number < len(vocab)
        return Unknown(kind=kind, named=f"the id {str(number)[:20]}", is_there=held)
    if not isinstance(token, str) or not token:
        raise NotApplicable("the tokenizer names no token for the unknown")
    return Unknown(kind=kind, named=repr(token), is_there=token in ids)
