"""Rotations and windows that llama.cpp does not compute as transformers does."""

import json
from typing import Any

import pytest

from mudpuppy.export.gguf.architectures import find_family
from mudpuppy.export.gguf.refusals import ExportRefused
from mudpuppy.export.gguf.settings import complete
from tests.mudpuppy.export.gguf.models import LONG, SHAPE

CLASSES = {"llama": "Llama", "gemma3": "Gemma3", "phi3": "Phi3", "qwen3": "Qwen3"}
DEFAULT = {"rope_type": "default", "rope_theta": 1e4}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}


def tell(kind: str, **changes: Any) -> tuple[dict[str, Any], list[str]]:
    """Return metadata and notes of settings."""
    raw = {**SHAPE, "vocab_size": 256, "architectures": [f"{CLASSES[kind]}ForCausalLM"], **changes}
    family = find_family(raw)
    settings = complete(json.loads(json.dumps(raw)), family)
    notes = list(family.check(settings))
    return dict(family.describe(settings)), notes


def gemma(full: dict[str, Any], sliding: dict[str, Any]) -> dict[str, Any]:
    parts = {"full_attention": full, "sliding_attention": sliding}
    return {"rope_parameters": parts, "head_dim": 32, "query_pre_attn_scalar": 32}


LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
REFUSED = {
    "window-linear": ("gemma3", gemma(DEFAULT, LINEAR), "sliding_attention"),
    "window-yarn": ("gemma3", gemma(DEFAULT, {**YARN, "rope_theta": 1e4}), "sliding_attention"),
    "both-linear": ("gemma3", gemma(LINEAR, LINEAR), "sliding_attention"),
    "alternating": ("gemma3", gemma({**YARN, "attention_factor": 2.0}, DEFAULT), "attention"),
    "mscale": ("gemma3", gemma({**YARN, "mscale": 1, "mscale_all_dim": 2}, DEFAULT), "mscale"),
    "no-factor": ("llama", {"rope_parameters": {"rope_type": "linear"}}, "factor"),
    "null-factor": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": None}}, "fact"),
    "yarn-no-factor": ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "factor"),
    "shrunk": ("llama", {"rope_parameters": {**YARN, "factor": 0.5}}, "only stretches"),
    "truncate": ("llama", {"rope_parameters": {**YARN, "truncate": False}}, "truncate"),
    "attention": ("llama", {"rope_parameters": {**YARN, "attention_factor": -1}}, "attention"),
    "partial": ("llama", {"rope_parameters": {**DEFAULT, "partial_rotary_factor": 0.5}}, "partial"),
    "partial-beside": ("qwen3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_computes_otherwise_is_refused(name: str):
    kind, changes, said = REFUSED[name]

    with pytest.raises(ExportRefused) as caught:
        tell(kind, **changes)

    assert caught.value.code == "MP-X03"
    assert said in str(caught.value)


def test_a_window_of_phi_3_that_llama_cpp_leaves_out_is_told():
    _, notes = tell("phi3", sliding_window=256)
    _, none = tell("phi3", sliding_window=512)

    assert "sliding_window 256 is not used" in notes[0]
    assert none == []


def test_attention_is_told_by_the_key_that_llama_cpp_multiplies_with():
    told, _ = tell("llama", rope_parameters={**YARN, "attention_factor": 2.0})
    plain, _ = tell("llama", rope_parameters=YARN)

    assert told["rope_scaling_attn_factors"] == pytest.approx(2 / 1.1386294361)
    assert "rope_scaling_attn_factors" not in plain


def test_the_context_beside_the_rotation_counts_before_that_in_it():
    trained = {"original_max_position_embeddings": 64}
    told, _ = tell("llama", rope_parameters={**YARN}, **trained)

    assert told["rope_scaling_orig_ctx_len"] == 64


def test_a_given_attention_factor_of_long_contexts_is_written():
    told, _ = tell("phi3", rope_parameters={**LONG, "attention_factor": 1.75})
    scaled, _ = tell(
        "phi3",
        rope_parameters={**LONG, "factor": 128.0},
        original_max_position_embeddings=128,
    )

    assert told["rope_scaling_attn_factors"] == 1.75
    assert scaled["rope_scaling_attn_factors"] == pytest.approx(2**0.5)
