"""Writer of small GGUF models for the self-test: real tokenizers' shapes, every usual type."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SCALES_AT = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""Where the float16 scales of a block lie, for types whose levels are random here."""
NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6
"""Kinds of tokens as ggml numbers them."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a small model looks like."""

    architecture: str = "llama"
    """`llama`, `qwen2` or `gemma2`."""
    kind: str = "Q4_0"
    """Type of its matrices."""
    hidden: int = 256
    """Width; a multiple of 256 for K-quants."""
    blocks: int = 3
    """Layers."""
    heads: int = 4
    """Heads; half as many for keys and values."""
    feed: int = 512
    """Width of the feed-forward part."""
    tied: bool = False
    """Whether there is no output head of its own."""
    biases: bool = False
    """Whether queries, keys and values have biases."""
    more_norms: tuple[str, ...] = ()
    """Norms beside those of attention and feed-forward."""
    theta: float = 10_000.0
    """Base of the rotation of positions."""


@dataclass(frozen=True, kw_only=True)
class Words:
    """A tokenizer's vocabulary."""

    model: str
    """`gpt2` for byte-level BPE, `llama` for SentencePiece."""
    pre: str
    """The pre-tokenizer."""
    tokens: tuple[str, ...]
    """Tokens in order."""
    kinds: tuple[int, ...]
    """Their kinds."""
    bos: str
    """Text of the first token."""
    eos: str
    """Text of the last one."""
    eot: str = ""
    """Text of the end of a turn, where it is another."""
    template: str = CHATML
    """Chat template; empty for none."""


def make_bpe(special: tuple[str, ...], **more: Any) -> Words:
    """Return a byte-level vocabulary: 256 byte tokens, some merges, and special tokens."""
    letters = [*range(33, 127), *range(161, 173), *range(174, 256)]
    plain = [chr(code) for code in letters]
    plain += [chr(256 + number) for number in range(256 - len(letters))]
    plain += [a + b for a in "Ġetaoin" for b in "shrdlu"]
    kinds = [NORMAL] * len(plain) + [CONTROL] * len(special)
    return Words(model="gpt2", tokens=(*plain, *special), kinds=tuple(kinds), **more)


def make_spm(special: tuple[str, ...], **more: Any) -> Words:
    """Return a SentencePiece vocabulary: unk, bos, eos, bytes, pieces and special tokens."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256))]
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256]
    pieces = [f"▁{a}{b}" for a in "tsaw" for b in "heonir"]
    tokens += [*pieces, *special]
    kinds += [NORMAL] * len(pieces) + [CONTROL] * len(special)
    words: dict[str, Any] = {"model": "llama", "pre": "default", "bos": "<s>", "eos": "</s>"}
    return Words(tokens=tuple(tokens), kinds=tuple(kinds), **{**words, **more})


def write_gguf(
    path: Path,
    shape: Shape,
    words: Words,
    *,
    rows: int | None = None,
    leave_out: tuple[str, ...] = (),
    change: dict[str, Any] | None = None,
    **options: Any,
) -> None:
    """Write a random model with llama.cpp's own writer.

    Args:
        path: the file; with `split_max_tensors` the stem of several.
        shape: sizes and types.
        words: vocabulary.
        rows: rows of the embedding; as many as there are tokens by default.
        leave_out: settings and tensors that are not written.
        change: values of settings that are written in place of the right ones.
        options: further arguments of the writer.
    """
    import gguf

    writer = gguf.GGUFWriter(path, shape.architecture, **options)
    _write_settings(writer, shape)
    _write_words(writer, words)
    for settings in writer.kv_data:
        for key in set(leave_out) & settings.keys():
            del settings[key]
        for key, value in (change or {}).items():
            settings[key].value = value
    random = np.random.default_rng(7)
    for name, size in list_tensors(shape, rows or len(words.tokens)).items():
        if name in leave_out:
            continue
        if len(size) == 1:
            is_norm = name.endswith("norm.weight")
            values = np.ones(size, np.float32) if is_norm else np.zeros(size, np.float32)
            values += random.normal(0, 0.05, size).astype(np.float32)
            writer.add_tensor(name, values)
            continue
        values = random.normal(0, 0.05, size).astype(np.float32)
        kind = gguf.GGMLQuantizationType[shape.kind]
        if shape.kind in SCALES_AT:
            packed = _random_blocks(size, shape.kind, gguf.GGML_QUANT_SIZES[kind])
        else:
            packed = gguf.quants.quantize(values, kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _random_blocks(size: tuple[int, ...], kind: str, block: tuple[int, int]) -> NDArray[np.uint8]:
    """Return blocks of random levels with small scales, of a type that the package cannot write."""
    elements, length = block
    raw = np.random.default_rng(3).integers(0, 256, (*size[:-1], size[-1] // elements, length))
    packed = raw.astype(np.uint8)
    for place in SCALES_AT[kind]:
        packed[..., place : place + 2] = np.frombuffer(np.float16(0.002).tobytes(), np.uint8)
    return packed.reshape(*size[:-1], -1)


def _write_settings(writer: Any, shape: Shape) -> None:
    writer.add_name("small model")
    writer.add_type("model")
    writer.add_context_length(2048)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.blocks)
    writer.add_feed_forward_length(shape.feed)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads // 2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(shape.theta)
    writer.add_rope_dimension_count(shape.hidden // shape.heads)


def _write_words(writer: Any, words: Words) -> None:
    writer.add_tokenizer_model(words.model)
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(list(words.tokens))
    writer.add_token_types(list(words.kinds))
    if words.model == "gpt2":
        writer.add_token_merges([f"{a} {b}" for a in "Ġetaoin" for b in "shrdlu"])
    else:
        writer.add_token_scores([-float(number) for number in range(len(words.tokens))])
    writer.add_bos_token_id(words.tokens.index(words.bos))
    writer.add_eos_token_id(words.tokens.index(words.eos))
    if words.eot:
        writer.add_eot_token_id(words.tokens.index(words.eot))
    if words.template:
        writer.add_chat_template(words.template)


def list_tensors(shape: Shape, tokens: int) -> dict[str, tuple[int, ...]]:
    """Return every tensor of a model and its shape, rows first."""
    wide, feed = shape.hidden, shape.feed
    keys = wide // 2
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (tokens, wide)}
    for block in range(shape.blocks):
        parts = {
            "attn_norm": (wide,),
            "attn_q": (wide, wide),
            "attn_k": (keys, wide),
            "attn_v": (keys, wide),
            "attn_output": (wide, wide),
            "ffn_norm": (wide,),
            "ffn_gate": (feed, wide),
            "ffn_up": (feed, wide),
            "ffn_down": (wide, feed),
        }
        parts |= dict.fromkeys(shape.more_norms, (wide,))
        found |= {f"blk.{block}.{part}.weight": size for part, size in parts.items()}
        if shape.biases:
            for part in ("attn_q", "attn_k", "attn_v"):
                found[f"blk.{block}.{part}.bias"] = parts[part][:1]
    found["output_norm.weight"] = (wide,)
    if not shape.tied:
        found["output.weight"] = (tokens, wide)
    return found


def write_tokenizer(path: Path, words: Words) -> None:
    """Write the tokenizer.json that a byte-level vocabulary was converted from."""
    special = [n for n, kind in enumerate(words.kinds) if kind == CONTROL]
    plain = {text: n for n, text in enumerate(words.tokens) if n not in special}
    added = [{"id": n, "content": words.tokens[n], "special": True} for n in special]
    merges = [f"{a} {b}" for a in "Ġetaoin" for b in "shrdlu"]
    model = {"type": "BPE", "vocab": plain, "merges": merges}
    path.write_text(json.dumps({"added_tokens": added, "model": model}), encoding="utf-8")
