"""Tensors that a GGUF model needs and does not hold.

What it does: the architecture and `block_count` say which tensors there must be: the embedding, the
last norm, every block, and in every block what its neighbours have. A missing output head is fine:
the embedding then serves as one.

Why it is bad: llama.cpp stops with "missing tensor"; readers that do not check leave a layer to
what memory holds (FM34). A wrong `block_count` invents layers or drops the last ones (FM46).

Example: `block_count` 32 and blocks 0 to 30: the conversion was interrupted, or the settings are
another model's.

What to do: convert the model again from a complete folder; examine that folder
first.
"""

from __future__ import annotations

import re
from collections import defaultdict

from harness.facts.gguf import Gguf
from harness.findings import Evidence, Finding, Severity, agree
from harness.registry import Missing, NotApplicable, probe

_BLOCK = re.compile(r"^blk\.(\d{1,5})\.(.+)$")
MOST_BLOCKS = 2_000
_ATTENTION = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output")
_DENSE = ("ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
_GEMMA = (*_ATTENTION, *_DENSE, "post_attention_norm", "post_ffw_norm")
REQUIRED = {
    "llama": ("attn_norm", "attn_output", "ffn_norm"),
    "qwen2": (*_ATTENTION, *_DENSE),
    "qwen3": (*_ATTENTION, *_DENSE, "attn_q_norm", "attn_k_norm"),
    "gemma": (*_ATTENTION, *_DENSE),
    "gemma2": _GEMMA,
    "gemma3": (*_GEMMA, "attn_q_norm", "attn_k_norm"),
    "phi3": ("attn_norm", "attn_output", "ffn_norm", "ffn_up", "ffn_down"),
}
"""Weights of every block, for architectures whose blocks are alike."""


@probe("MPD843", modes=["FM34", "FM46"], severity=Severity.CRITICAL)
def check(gguf: Gguf) -> Finding | str:
    """Compare the tensors with the settings, and block with block."""
    if not gguf.is_model:
        raise NotApplicable("the file is no language model")
    if not gguf.complete:
        raise Missing("not all parts of the model could be read")
    blocks = _blocks(gguf)
    if len(blocks) > MOST_BLOCKS:
        raise Missing(f"{len(blocks):,} blocks are too many to be compared")
    lost = dict.fromkeys(_lost_outside(gguf), "every model of this kind has it")
    lost |= dict.fromkeys(_lost_blocks(gguf, blocks), f"{gguf.architecture}.block_count")
    lost |= dict.fromkeys(_lost_inside(gguf, blocks), "the other blocks have it")
    if not lost:
        return f"nothing is missing among {len(gguf.tensors)} tensors in {len(blocks)} blocks"
    first = next(iter(lost))
    return Finding(
        message=f"{agree(len(lost), 'part of the model is', 'parts of the model are')} not in the "
        f"file, such as {first}",
        evidence=tuple(
            Evidence(what="missing", tensor=name, expected=f"present: {why}")
            for name, why in lost.items()
        ),
        cause="the conversion was partial, or block_count is another model's",
        remedy="convert the model again from a complete folder",
    )


def _blocks(gguf: Gguf) -> dict[int, set[str]]:
    found: dict[int, set[str]] = defaultdict(set)
    for name in gguf.tensors:
        if match := _BLOCK.match(name):
            found[int(match[1])].add(match[2])
    return found


def _lost_outside(gguf: Gguf) -> list[str]:
    if gguf.architecture not in REQUIRED:
        return []
    return [n for n in ("token_embd.weight", "output_norm.weight") if n not in gguf.tensors]


def _lost_blocks(gguf: Gguf, blocks: dict[int, set[str]]) -> list[str]:
    count = gguf.number("%.block_count")
    if not isinstance(count, int) or not 0 < count <= MOST_BLOCKS or not blocks:
        count = max(blocks, default=-1) + 1
    return [f"blk.{number}" for number in range(min(count, MOST_BLOCKS)) if number not in blocks]


def _lost_inside(gguf: Gguf, blocks: dict[int, set[str]]) -> list[str]:
    """Return what a block lacks: by its architecture, or because every other block has it."""
    lost = []
    required = REQUIRED.get(gguf.architecture, ())
    for number, parts in sorted(blocks.items()):
        absent = {f"{part}.weight" for part in required} - parts
        others = [held for other, held in blocks.items() if other != number]
        if len(others) >= 2:
            common, known = set.intersection(*others), set[str]().union(*others)
            # A kind of block of its own has parts that the others lack; a damaged one has not.
            if parts <= known:
                absent |= common - parts
        absent = {part for part in absent if not _is_fused(part, parts)}
        lost += [f"blk.{number}.{part}" for part in sorted(absent)]
    return lost


def _is_fused(part: str, held: set[str]) -> bool:
    """Whether a part is one with its neighbours: queries, keys and values, gate and up."""
    if re.match(r"attn_[qkv]\.", part):
        return "attn_qkv.weight" in held
    has_experts = any(name.startswith(("ffn_gate_exps", "ffn_up_exps")) for name in held)
    return has_experts and re.match(r"ffn_(gate|up|down)\.", part) is not None
