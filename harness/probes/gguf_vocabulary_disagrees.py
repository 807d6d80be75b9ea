"""The parts of a GGUF model's vocabulary disagree with each other or with the embedding.

What it does: compares the number of tokens with the rows of the embedding and the head, and with
the scores and kinds of tokens; looks for tokens that occur twice, for merges that byte-level BPE
needs, for special ids that no token has, and for four tokens of Phi-3 where the model's name has
that in it.

Why it is bad: llama.cpp refuses most of it ("wrong shape", "cannot find tokenizer merges", an
assertion on tokens that occur twice); readers that do not check look up rows that are another
token's (FM11). In a model whose name has "phi-3" in it llama.cpp looks for Phi-3's special tokens,
and ends with an exception where one is missing.

Example: 32,002 tokens and an embedding of 32,000 rows: two tokens were added to the tokenizer and
the model was not resized.

What to do: resize the embedding before the conversion (`model.resize_token_embeddings`), or take
the tokenizer files of the base model, and convert again. A name is changed with
`gguf-new-metadata --general-name NAME IN.gguf OUT.gguf`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from harness.facts.gguf import Gguf
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, NotApplicable, probe

TOKENS, NAME = "tokenizer.ggml.tokens", "general.name"
BESIDE = ("tokenizer.ggml.scores", "tokenizer.ggml.token_type")
"""Arrays with one entry a token."""
ROLES = ("bos", "eos", "eot", "eom", "unknown", "separator", "padding", "cls", "mask")
PHI3 = re.compile(r"(?i)phi-?3")
PHI3_TOKENS = ("</s>", "<unk>", "<s>", "<|endoftext|>")
"""What llama.cpp looks for by text in every model of that name (src/llama-vocab.cpp)."""
UNSET = 0xFFFFFFFF
"""How some writers say that there is no such token."""


@probe("MPD841", modes=["FM11"], severity=Severity.HIGH)
def check(gguf: Gguf) -> Finding | str:
    """Compare every size and id of the vocabulary."""
    tokens = gguf.array(TOKENS, "string")
    if not gguf.is_model or gguf.text("tokenizer.ggml.model") in ("no_vocab", "none", ""):
        raise NotApplicable("the file is no model with a vocabulary")
    if tokens is None or not tokens.length:
        evidence = [Evidence(what=TOKENS, found="absent", expected="the vocabulary")]
    elif not tokens.values:
        raise Missing("the vocabulary is too long to be read")
    else:
        evidence = [*_sizes(gguf, tokens.length), *_ids(gguf, tokens.length)]
        evidence += _twice(tokens.values)
        evidence += _named_phi3(gguf, tokens.values)
    if not evidence:
        return f"{tokens.length if tokens else 0:,} tokens fit the embedding and each other"
    first = evidence[0]
    named = first.what == NAME
    return Finding(
        message=f"the vocabulary does not fit: {first.what} is {first.found}, "
        f"expected {first.expected}",
        evidence=tuple(evidence),
        cause="the name says Phi-3, and the tokenizer is another's"
        if named
        else "tokens were added without resizing the embedding, or files of two models were mixed",
        remedy="gguf-new-metadata --general-name NAME IN.gguf OUT.gguf"
        if named
        else "model.resize_token_embeddings(len(tokenizer)), save both, and convert again",
    )


def _sizes(gguf: Gguf, count: int) -> Iterator[Evidence]:
    for name in ("token_embd.weight", "output.weight"):
        tensor = gguf.tensors.get(name)
        if tensor is not None and len(tensor.shape) == 2 and tensor.shape[0] != count:
            yield Evidence(
                what=f"rows of {name}",
                tensor=name,
                found=tensor.shape[0],
                expected=f"{count}, the number of tokens",
            )
    for key in BESIDE:
        array = gguf.array(key)
        if array is not None and array.length != count:
            yield Evidence(what=f"length of {key}", found=array.length, expected=count)
    merges = gguf.array("tokenizer.ggml.merges")
    needs = gguf.text("tokenizer.ggml.model") == "gpt2"
    if needs and not (merges and merges.length) and gguf.text("tokenizer.ggml.pre") != "kimi-k2":
        yield Evidence(what="tokenizer.ggml.merges", found="absent", expected="merges of the BPE")


def _ids(gguf: Gguf, count: int) -> Iterator[Evidence]:
    for role in ROLES:
        key = f"tokenizer.ggml.{role}_token_id"
        number = gguf.number(key)
        if number is not None and number != UNSET and not 0 <= number < count:
            yield Evidence(what=key, found=number, expected=f"below {count}")


def _twice(tokens: tuple[str, ...]) -> list[Evidence]:
    twice = [token for token, number in Counter(tokens).items() if number > 1 and token]
    return [
        Evidence(what=f"occurrences of the token {token[:40]!r}", found=2, expected=1)
        for token in twice[:10]
    ]


def _named_phi3(gguf: Gguf, tokens: tuple[str, ...]) -> Iterator[Evidence]:
    lacking = [token for token in PHI3_TOKENS if token not in tokens]
    if lacking and PHI3.search(gguf.text(NAME)):
        yield Evidence(
            what=NAME,
            found=gguf.text(NAME)[:60],
            expected=f"a name without phi-3, since there is no token {lacking[0]}",
        )
