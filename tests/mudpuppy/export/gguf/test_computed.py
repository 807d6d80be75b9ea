"""llama.cpp computes of a written file what transformers computes of the folder."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from mudpuppy.export.gguf import export_gguf
from mudpuppy.tiny import resolve_model
from tests.mudpuppy.export.gguf.llama_cpp import LlamaCpp
from tests.mudpuppy.export.gguf.models import KINDS, make_model

TOKENS = 1024
PROMPT = [(7 * place * place + 11 * place + 300) % TOKENS for place in range(48)]
"""Longer than the windows of Gemma."""
SHOWN = 20


@pytest.fixture(scope="module")
def llama_cpp() -> Iterator[LlamaCpp]:
    process = LlamaCpp()
    yield process
    process.close()


def make_speaking(folder: Path, kind: str) -> Path:
    """Write a model of a kind with an embedded model's tokenizer."""
    make_model(folder, kind, dtype="fp32", vocab_size=TOKENS)
    # transformers adds a token to those of qwen2 that do not have it
    speaker = "tiny:qwen2" if kind.startswith("qwen2") else "tiny:llama"
    for path in Path(resolve_model(speaker)).glob("*token*"):
        shutil.copyfile(path, folder / path.name)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_token_is_as_likely_as_with_transformers(
    kind: str, tmp_path: Path, llama_cpp: LlamaCpp
):
    model = make_speaking(tmp_path / "newt", kind)
    path = export_gguf(model, tmp_path / "out.gguf", quant="f32").output
    asked = {"prompt": PROMPT, "n_predict": 1, "temperature": 0, "n_probs": SHOWN}

    answer = llama_cpp.serve(path).post("/completion", asked)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(model)(torch.tensor([PROMPT])).logits[0, -1]

    wanted = torch.log_softmax(logits.float(), -1)
    shown = answer["completion_probabilities"][0]["top_logprobs"]
    assert SHOWN == len(shown)
    worst = max(abs(one["logprob"] - wanted[one["id"]].item()) for one in shown)
    # its cache of keys and values is fp16, and its GELU a table of fp16
    assert worst < (0.03 if kind.startswith("gemma") else 0.004)
    spread = wanted.max().item() - wanted[shown[-1]["id"]].item()
    assert spread > 0.04, "the model says too little for a difference to show"
