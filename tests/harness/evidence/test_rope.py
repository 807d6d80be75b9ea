"""Rotary positions as published models declare them are fine; lost and changed ones are found."""

from __future__ import annotations

import json
from typing import Any

import pytest

from harness.evidence.source import CheckpointEvidence
from harness.evidence.text.rope import describe_rope
from harness.facts.checkpoint import Base
from harness.findings import Finding, Severity
from harness.probes.rope_disagrees import check
from harness.registry import NotApplicable

LLAMA_31 = {
    "model_type": "llama",
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}
GEMMA_3 = {
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text",
        "max_position_embeddings": 131072,
        "rope_theta": 1e6,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    },
}
GEMMA_3_NEW = {
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text",
        "max_position_embeddings": 131072,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "llama-2-before-theta": {
        "model_type": "llama",
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
    },
    "llama-3.1": LLAMA_31,
    "mistral": {
        "model_type": "mistral",
        "vocab_size": 32000,
        "max_position_embeddings": 32768,
        "rope_theta": 10000.0,
    },
    "qwen-distilled": {
        "model_type": "qwen2",
        "vocab_size": 151936,
        "max_position_embeddings": 131072,
        "rope_theta": 10000,
    },
    "qwen-stretched": {
        "model_type": "qwen2",
        "vocab_size": 152064,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "rope_scaling": {
            "factor": 4.0,
            "original_max_position_embeddings": 32768,
            "type": "yarn",
        },
    },
    "qwen-vl": {
        "model_type": "qwen2_vl",
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    },
    "phi-long": {
        "model_type": "phi3",
        "hidden_size": 3072,
        "num_attention_heads": 32,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "type": "su",
            "short_factor": [1.0] * 48,
            "long_factor": [2.0] * 48,
        },
    },
    "phi-partial": {
        "model_type": "phi3",
        "hidden_size": 3072,
        "num_attention_heads": 24,
        "partial_rotary_factor": 0.75,
        "max_position_embeddings": 131072,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0] * 48,
            "long_factor": [2.0] * 48,
        },
    },
    "deepseek": {
        "model_type": "deepseek_v3",
        "qk_rope_head_dim": 64,
        "max_position_embeddings": 163840,
        "rope_theta": 10000,
        "rope_scaling": {
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 40,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096,
            "type": "yarn",
        },
    },
    "gemma-3": GEMMA_3,
    "gemma-3-new": GEMMA_3_NEW,
    "neox": {"model_type": "gpt_neox", "rotary_emb_base": 10000, "rotary_pct": 0.25},
}
"""What the config.json files of published models say of rotary positions."""


def judge(config: dict[str, Any], base: dict[str, Any] | None, folder) -> Finding | str:
    (folder / "config.json").write_text(json.dumps(config))
    found = None if base is None else Base(root="b", named_by="--base", config=base, tensors={})
    given = {} if found is None else {"base": found}
    return check(CheckpointEvidence(folder, given=given).get("rope"))


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("with_base", [True, False])
def test_published_settings_are_fine(tmp_path, name, with_base):
    config = PUBLISHED[name]
    assert isinstance(judge(config, config if with_base else None, tmp_path), str)


def test_the_new_dialect_of_a_base_in_the_old_one_is_a_note_at_most(tmp_path):
    found = judge(GEMMA_3_NEW, GEMMA_3, tmp_path)
    assert isinstance(found, Finding)
    assert found.severity is Severity.NOTE


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("llama-3.1", {"rope_theta": None, "rope_scaling": None}, "rope_theta"),
        ("llama-3.1", {"rope_scaling": None}, "llama3"),
        ("llama-3.1", {"rope_theta": 10000.0}, "rope_theta"),
        ("mistral", {"rope_theta": None}, "rope_theta"),
        ("qwen-stretched", {"rope_scaling": {"type": "yarn"}}, "lacks"),
        ("phi-long", {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 7}}, "lacks"),
        ("phi-long", {"hidden_size": 2048}, "half a head"),
        ("neox", {"rotary_emb_base": -1}, "above 1"),
        ("deepseek", {"rope_scaling": {"type": "yarn", "factor": "40"}}, "at least 1"),
    ],
)
def test_lost_and_impossible_settings_are_found_without_a_base(tmp_path, name, change, word):
    config = {k: v for k, v in {**PUBLISHED[name], **change}.items() if v is not None}
    found = judge(config, None, tmp_path)
    assert isinstance(found, Finding)
    assert found.severity is Severity.HIGH
    assert word in f"{found.message} {found.evidence}"


@pytest.mark.parametrize(
    ("change", "severity"),
    [
        ({"rope_theta": 1e6}, Severity.HIGH),
        ({"rope_theta": 1e6, "max_position_embeddings": 262144}, Severity.NOTE),
        ({"rope_scaling": None}, Severity.HIGH),
        ({"rope_scaling": {**LLAMA_31["rope_scaling"], "factor": 32.0}}, Severity.HIGH),
    ],
)
def test_changes_against_the_base_are_weighed(tmp_path, change, severity):
    config = {k: v for k, v in {**LLAMA_31, **change}.items() if v is not None}
    found = judge(config, LLAMA_31, tmp_path)
    assert isinstance(found, Finding)
    assert found.severity is severity


def test_the_theta_of_near_layers_counts(tmp_path):
    rope = json.loads(json.dumps(GEMMA_3_NEW))
    rope["text_config"]["rope_parameters"]["sliding_attention"]["rope_theta"] = 1e6
    found = judge(rope, GEMMA_3_NEW, tmp_path)
    assert isinstance(found, Finding)
    assert "near layers" in found.message


def test_a_model_without_rotary_positions_is_left_alone(tmp_path):
    with pytest.raises(NotApplicable):
        judge({"model_type": "gpt2", "n_positions": 1024}, None, tmp_path)
    assert describe_rope({"model_type": "bert"}) is None
