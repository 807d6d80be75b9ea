"""Evidence about rotary positions: both dialects of config.json, and what the base says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.evidence.files.model import text_settings
from harness.evidence.source import CheckpointEvidence, provides
from harness.facts.chat import Rope, RopeFacts
from harness.facts.checkpoint import Base
from harness.registry import NotApplicable

SAME_KINDS = {"su": "longrope", "mrope": "default"}
"""Older names of kinds of scaling."""
TEN_THOUSAND = (
    *("llama", "mistral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "phi", "phi3", "gemma"),
    *("gemma2", "olmo", "olmo2", "stablelm", "starcoder2", "deepseek_v2", "deepseek_v3"),
    *("granite", "glm", "glm4", "gpt_neox", "internlm2", "falcon"),
)
"""Families whose readers take 10,000 for a theta that is not written."""
OTHER_DEFAULTS = {
    "mixtral": 1e6,
    "gpt_oss": 150_000.0,
    "cohere": 500_000.0,
    "cohere2": 500_000.0,
    "llama4_text": 500_000.0,
    "gemma3_text": 1e6,
    "gemma3n_text": 1e6,
    "smollm3": 2e6,
}
"""Those whose readers take another number (`default_theta` of transformers 5)."""
OLD_THETAS = ("rope_theta", "rotary_emb_base", "global_rope_theta")
"""Where a theta was written before transformers 5."""


@provides("rope")
def read_rope(evidence: CheckpointEvidence) -> RopeFacts:
    """Return what config.json says of rotary positions, and the same of the base."""
    config: Mapping[str, Any] = evidence.get("config")
    found = describe_rope(config)
    base: Base | None = evidence.find("base")
    if found is None:
        if base is None or (theirs := describe_rope(base.config)) is None:
            raise NotApplicable("config.json says nothing of rotary positions")
        settings = text_settings(config)
        if settings.get("model_type") != theirs.model_type:
            raise NotApplicable("the model has no rotary positions that are known here")
        found = _facts(settings, None, None)
    if base is None:
        return found
    theirs = describe_rope(base.config)
    if theirs is None or theirs.model_type != found.model_type:
        return found
    return RopeFacts(**{**vars(found), "base": theirs})


def describe_rope(config: Mapping[str, Any]) -> RopeFacts | None:
    """Return both dialects; None where the model is not known to turn anything."""
    settings = text_settings(config)
    new, old = _read_new(settings), _read_old(settings)
    known = settings.get("model_type") in TEN_THOUSAND or settings.get("model_type") == "mixtral"
    if new is None and old is None and not known:
        return None
    return _facts(settings, new, old)


def _facts(settings: Mapping[str, Any], new: Rope | None, old: Rope | None) -> RopeFacts:
    kind = str(settings.get("model_type", ""))[:80]
    default = 10_000.0 if kind in TEN_THOUSAND else OTHER_DEFAULTS.get(kind)
    return RopeFacts(
        new=new,
        old=old,
        model_type=kind,
        default_theta=default,
        max_positions=_whole(settings.get("max_position_embeddings")),
        vocab_size=_whole(settings.get("vocab_size")),
        half_rotary=_half_rotary(settings, new or old),
    )


def _read_new(settings: Mapping[str, Any]) -> Rope | None:
    """Return `rope_parameters`; where layers differ, those of the layers that see everything."""
    value = settings.get("rope_parameters")
    if not isinstance(value, dict) or not value:
        return None
    nested = [one for one in value.values() if isinstance(one, dict)]
    near = value.get("sliding_attention")
    if nested and "rope_type" not in value and "rope_theta" not in value:
        whole = value.get("full_attention")
        value = whole if isinstance(whole, dict) else nested[0]
    return _rope(
        value, value.get("rope_theta"), near.get("rope_theta") if isinstance(near, dict) else None
    )


def _read_old(settings: Mapping[str, Any]) -> Rope | None:
    scaling = settings.get("rope_scaling")
    written = [key for key in OLD_THETAS if settings.get(key) is not None]
    if not written and not isinstance(scaling, dict):
        return None
    values = scaling if isinstance(scaling, dict) else {}
    near = settings.get("rope_local_base_freq", settings.get("local_rope_theta"))
    return _rope(values, settings.get(written[0]) if written else None, near)


def _rope(values: Mapping[str, Any], theta: Any, near: Any) -> Rope:
    kind = values.get("rope_type", values.get("type", "default"))
    kind = kind[:40] if isinstance(kind, str) else "default"
    others = {
        key: value
        for key, value in values.items()
        if key not in ("rope_type", "type", "rope_theta") and value is not None
    }
    return Rope(
        theta=_number(theta),
        near_theta=_number(near),
        kind=SAME_KINDS.get(kind, kind),
        values=dict(list(others.items())[:40]),
    )


def _number(value: Any) -> float | None:
    """Return a number; what is none, or is not finite, counts as 0, which is reported."""
    if value is None:
        return None
    if type(value) not in (int, float) or not abs(value) < 1e300:
        return 0.0
    return float(value)


def _whole(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


def _half_rotary(settings: Mapping[str, Any], rope: Rope | None) -> int | None:
    heads, hidden = _whole(settings.get("num_attention_heads")), _whole(settings.get("hidden_size"))
    size = _whole(settings.get("head_dim")) or (hidden // heads if hidden and heads else None)
    share = settings.get("partial_rotary_factor")
    if share is None and rope is not None:
        share = rope.values.get("partial_rotary_factor")
    if settings.get("qk_rope_head_dim") is not None or size is None:
        return None
    factor = _number(share)
    return int(size * (factor if factor is not None and 0 < factor <= 1 else 1)) // 2
