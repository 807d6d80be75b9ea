"""A GGUF model does not say how its text is cut before the tokenizer works, or says it wrongly.

What it does: byte-level BPE (`tokenizer.ggml.model: gpt2`) cuts text by a rule of its family before
it merges bytes, and `tokenizer.ggml.pre` names the rule. It must be there, be a name that llama.cpp
knows, and be that of the vocabulary: Llama 3's tokens do not go with Qwen's rule. With `--base`,
the tokens must be those of the base's tokenizer, number by number.

Why it is bad: without the name llama.cpp warns "GENERATION QUALITY WILL BE DEGRADED!" and cuts
numbers and spaces otherwise than in training; with a name it does not know it stops with "unknown
pre-tokenizer type" (FM49). A converter writes `default` when a fine-tune changed tokenizer.json.

Example: `tokenizer.ggml.pre` absent from a Llama 3 that was converted in spring 2024.

What to do: convert the model again with the converter of today and the base model's tokenizer
files; or set the name alone: `gguf-new-metadata --pre-tokenizer llama-bpe IN OUT`.
"""

from __future__ import annotations

from harness.facts.gguf import Gguf, GgufArray, TokenChanges
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe

KEY = "tokenizer.ggml.pre"
BYTE_LEVEL = ("gpt2",)
"""Tokenizer models that need a rule."""
_NAMES = """a.x-4.0 afmoe bailingmoe bailingmoe2 bloom chameleon chatglm-bpe codeshell cohere2moe
    command-r dbrx deepseek-coder deepseek-llm deepseek-r1-qwen deepseek-v3 exaone exaone-moe
    exaone4 f2llmv2 falcon falcon-h1 falcon3 gemma4 gigachat glm4 glm5 gpt-2 gpt-4o gpt3-finnish
    granite-docling granite-embed-multi-311m granite-embed-multi-97m grok-2 hunyuan hunyuan-dense
    hy_v4 jais jais-2 jina-de jina-es jina-v1-en jina-v2-code jina-v2-de jina-v2-es jina-v5-nano
    joyai-llm kanana2 kimi-k2 kolibri kormo laguna lfm2 llada-moe llama-bpe llama-v3 llama3 llama4
    megrez mellum mellum2 midm-2.0 minerva-7b minicpm5 minimax-m2 mmbert modern-bert mpt olmo
    phi-2 pixtral poro-chat qwen2 qwen35 refact roberta-bpe sarvam-moe seed-coder smaug-bpe smollm
    solar-open spark2_5 stablelm2 starcoder superbpe talkie tekken tiny_aya trillion ufakzeka
    viking whitespace youtu"""
KNOWN = frozenset(_NAMES.split())
"""Names that llama.cpp knows (src/llama-vocab.cpp, autumn 2026)."""
MOST_CHANGED = 0.01
"""Share of the base's tokens that may differ: converters write a few special ones otherwise."""
FAMILIES = (
    (
        "Llama 3",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|eot_id|>"),
        ("llama-bpe", "llama3", "llama-v3", "smaug-bpe", "llama4", "kanana2"),
    ),
    (
        "Qwen 2",
        ("<|endoftext|>", "<|im_start|>", "<|object_ref_start|>"),
        ("qwen2", "qwen35", "deepseek-r1-qwen", "megrez", "kormo", "f2llmv2", "kolibri"),
    ),
)
"""Vocabularies that are known by three of their tokens, and the rules that go with them."""


@probe("MPD840", modes=["FM49"], severity=Severity.HIGH)
def check(gguf: Gguf, any_token_changes: TokenChanges | None) -> Finding | str:
    """Look for the name of the rule, and whether it can be right."""
    if gguf.text("tokenizer.ggml.model") not in BYTE_LEVEL:
        raise NotApplicable("the tokenizer needs no pre-tokenizer: it is not byte-level BPE")
    name, tokens = gguf.text(KEY), gguf.array("tokenizer.ggml.tokens", "string")
    family, fitting = _family(tokens)
    if not name:
        return _finding("is absent", "absent", fitting)
    if name == "default":
        return _finding("is 'default', which no model's tokenizer is", name, fitting)
    if fitting and name not in fitting and name in KNOWN:
        return _finding(f"is '{name}', and the tokens are those of {family}", name, fitting)
    if name not in KNOWN:
        return _finding(f"is '{name[:60]}', which llama.cpp does not know", name[:60], fitting)
    changes = any_token_changes
    if changes is not None and changes.different > MOST_CHANGED * changes.compared:
        return _changed(changes)
    return f"{KEY} is '{name}'" + ("" if changes is None else ", and the tokens are the base's")


def _family(tokens: GgufArray | None) -> tuple[str, tuple[str, ...]]:
    """Return the family of a vocabulary and the rules that go with it; nothing when not known."""
    held = frozenset(tokens.values) if tokens is not None else frozenset()
    for family, marks, fitting in FAMILIES:
        if held.issuperset(marks):
            return family, fitting
    return "", ()


def _finding(said: str, found: str, fitting: tuple[str, ...]) -> Finding:
    name = fitting[0] if fitting else "NAME"
    return Finding(
        message=f"the pre-tokenizer ({KEY}) {said}: text is cut otherwise than in training, or "
        "the model does not load",
        evidence=(
            Evidence(what=KEY, found=found, expected=name if fitting else "a name of llama.cpp's"),
        ),
        cause="an old converter, or a fine-tune whose tokenizer.json the converter did not know",
        remedy="convert it again with today's convert_hf_to_gguf.py and the base's tokenizer "
        f"files, or: gguf-new-metadata --pre-tokenizer {name} IN.gguf OUT.gguf",
    )


def _changed(changes: TokenChanges) -> Finding:
    return Finding(
        message=f"{changes.different:,} of {changes.compared:,} tokens are not those of the base: "
        f"number {changes.first} is {changes.found[:40]!r}, in the base {changes.expected[:40]!r}",
        evidence=(
            Evidence(
                what=f"text of token {changes.first}",
                found=changes.found[:80],
                expected=changes.expected[:80],
            ),
        ),
        cause="the tokenizer of another model lay in the folder when it was converted",
        remedy="put the base model's tokenizer files into the folder, and convert it again",
    )
