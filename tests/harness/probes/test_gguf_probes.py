"""What llama.cpp refuses is found before it is asked."""

from __future__ import annotations

from harness.facts.checkpoint import Tensor
from harness.facts.gguf import Gguf, GgufArray
from harness.findings import Finding
from harness.probes import gguf_vocabulary_disagrees

PHI3 = ("</s>", "<unk>", "<s>", "<|endoftext|>")


def model(name: str, tokens: tuple[str, ...]) -> Gguf:
    rows = Tensor(
        name="token_embd.weight",
        dtype="F32",
        shape=(len(tokens), 4),
        start=0,
        end=16 * len(tokens),
        file="m",
    )
    return Gguf(
        files=("m.gguf",),
        settings={
            "general.architecture": "llama",
            "general.name": name,
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": GgufArray(kind="string", length=len(tokens), values=tokens),
        },
        tensors={rows.name: rows},
        complete=True,
    )


def test_a_name_with_phi_3_and_without_its_tokens_is_found():
    found = gguf_vocabulary_disagrees.check(model("My-Phi3-mini", ("a", "b", *PHI3[1:])))
    assert isinstance(found, Finding)
    assert "My-Phi3-mini" in found.message
    assert "</s>" in found.message
    assert "--general-name" in found.remedy


def test_a_name_with_phi_3_and_its_tokens_is_healthy():
    assert isinstance(gguf_vocabulary_disagrees.check(model("phi-3", ("a", *PHI3))), str)
    assert isinstance(gguf_vocabulary_disagrees.check(model("a delphi 3", ("a", "b"))), str)
