"""config.json names two kinds of model.

What it does: compares `model_type` with the class in `architectures`, for well-known families and
models without code of their own.

Why it is bad: transformers builds what model_type says, vLLM and others what architectures say. One
of them computes something else with the same weights, or refuses them (FM46).

Example: `"model_type": "llama", "architectures": ["Qwen2ForCausalLM"]`: the biases of Qwen's
attention are dropped.

What to do: put the config.json back that was saved with these weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe

FILE = "config.json"
FAMILIES = (
    *("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen2moe", "qwen3moe", "gemma", "gemma2"),
    *("gemma3", "phi", "phi3", "falcon", "gpt2", "gptneox", "gptj", "opt", "bloom", "mpt", "olmo"),
    *("olmo2", "cohere", "cohere2", "granite", "stablelm", "starcoder2", "deepseekv2"),
    *("deepseekv3", "smollm3", "t5", "bart", "bert", "roberta", "whisper"),
)
"""Families whose classes begin with their name, without underscores and in small letters."""
_HEAD = re.compile(r"^(.*?)(For[A-Z]\w*|Model|LMHeadModel|EncoderModel)$")


@probe("MPD828", modes=["FM46"], severity=Severity.HIGH)
def check(config: Mapping[str, Any]) -> Finding | str:
    """Compare family and class."""
    kinds, family = config.get("architectures"), config.get("model_type")
    if not isinstance(kinds, list) or not kinds or not isinstance(kinds[0], str):
        raise NotApplicable("config.json names no class of model")
    if not isinstance(family, str) or config.get("auto_map"):
        raise NotApplicable("the model has code of its own, or no family")
    match = _HEAD.match(kinds[0][:200])
    named = match[1].lower() if match else ""
    plain = family.lower().replace("_", "").removesuffix("text")
    if named not in FAMILIES or plain not in FAMILIES or named == plain:
        return f"{kinds[0][:60]} is a class of {family[:40]}, as far as is known here"
    return Finding(
        message=f"config.json says {family[:40]} as model_type and {kinds[0][:60]} as class",
        evidence=(
            Evidence(what="architectures", file=FILE, found=kinds[0][:80], expected=family[:80]),
        ),
        cause="config.json was put together from those of two models",
        remedy="put the config.json back that was saved with these weights",
    )
