"""llama.cpp computes of a written file what transformers computes of the folder."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from mudpuppy.export.gguf import export_gguf
from mudpuppy.tiny import resolve_model
from tests.mudpuppy.export.gguf.llama_cpp import LlamaCpp
from tests.mudpuppy.export.gguf.models import KINDS, LONG, make_model

TOKENS = 1024
PROMPT = [(7 * place * place + 11 * place + 300) % TOKENS for place in range(48)]
"""Longer than the windows of Gemma."""
SHOWN = 20


@pytest.fixture(scope="module")
def llama_cpp() -> Iterator[LlamaCpp]:
    process = LlamaCpp()
    yield process
    process.close()


def make_speaking(folder: Path, kind: str, **changes: Any) -> Path:
    """Write a model of a kind with an embedded model's tokenizer."""
    make_model(folder, kind, dtype="fp32", vocab_size=TOKENS, **changes)
    # transformers adds a token to those of qwen2 that do not have it
    speaker = "tiny:qwen2" if kind.startswith("qwen2") else "tiny:llama"
    for path in Path(resolve_model(speaker)).glob("*token*"):
        shutil.copyfile(path, folder / path.name)
    return folder


def compare(model: Path, llama_cpp: LlamaCpp) -> tuple[float, float]:
    """Return how far the likeliest tokens differ from transformers', and how far they spread."""
    path = export_gguf(model, model.with_suffix(".gguf"), quant="f32").output
    asked = {"prompt": PROMPT, "n_predict": 1, "temperature": 0, "n_probs": SHOWN}
    answer = llama_cpp.serve(path).post("/completion", asked)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(model)(torch.tensor([PROMPT])).logits[0, -1]
    wanted = torch.log_softmax(logits.float(), -1)
    shown = answer["completion_probabilities"][0]["top_logprobs"]
    assert SHOWN == len(shown)
    worst = max(abs(one["logprob"] - wanted[one["id"]].item()) for one in shown)
    return worst, wanted.max().item() - wanted[shown[-1]["id"]].item()


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_token_is_as_likely_as_with_transformers(
    kind: str, tmp_path: Path, llama_cpp: LlamaCpp
):
    worst, spread = compare(make_speaking(tmp_path / "newt", kind), llama_cpp)

    # its cache of keys and values is fp16, and its GELU a table of fp16
    assert worst < (0.03 if kind.startswith("gemma") else 0.004)
    assert spread > 0.04, "the model says too little for a difference to show"


def yarn(**more: Any) -> dict[str, Any]:
    trained = {"original_max_position_embeddings": 16, "rope_theta": 1e4}
    return {"rope_type": "yarn", "factor": 32.0, **trained, **more}


STRETCHED = {
    "attention-2": ("llama", yarn(attention_factor=2.0)),
    "attention-1": ("llama", yarn(attention_factor=1.0)),
    "mscale": ("llama", yarn(mscale=1.0, mscale_all_dim=0.3)),
    "mscale-alike": ("qwen3", yarn(mscale=0.7, mscale_all_dim=0.7)),
    "mscale-alone": ("qwen3", yarn(mscale=0.7)),
    "attention-first": ("llama", yarn(mscale=1.0, mscale_all_dim=0.3, attention_factor=1.5)),
    "factor-null": ("llama", yarn(factor=None)),
    "betas": ("llama", yarn(beta_fast=8, beta_slow=2)),
    "extrapolation": ("llama", yarn(extrapolation_factor=0.2, attn_factor=3.0)),
    "gemma2-linear": ("gemma2", {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}),
    "gemma2-yarn": ("gemma2", yarn(attention_factor=2.0)),
    "gemma3-linear": (
        "gemma3",
        {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        },
    ),
    "gemma3-yarn": (
        "gemma3",
        {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": yarn(),
        },
    ),
    "long-factor": ("phi3-long", {**LONG, "factor": 32.0}),
    "long-attention": ("phi3-long", {**LONG, "attention_factor": 2.0}),
}


@pytest.mark.parametrize("name", STRETCHED)
def test_a_stretched_rotation_is_computed_as_with_transformers(
    name: str, tmp_path: Path, llama_cpp: LlamaCpp
):
    kind, rope = STRETCHED[name]
    model = make_speaking(tmp_path / "newt", kind, rope_parameters=rope)

    worst, _ = compare(model, llama_cpp)

    # the table for GELU is worth up to 0.04 here, a rotation left unstretched 3
    assert worst < (0.05 if kind.startswith("gemma") else 0.004)
