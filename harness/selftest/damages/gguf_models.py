"""Damages of GGUF models: tokenizers, end tokens, missing tensors, settings, bytes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.selftest.edit import cut_file
from harness.selftest.gguf_files import CONTROL, NORMAL, Shape, Words, write_gguf
from harness.selftest.healthy.gguf_models import llama_3, qwen
from harness.selftest.registry import Patient, damage

PRE, WORDS, END, TENSORS, SETTINGS = (
    "gguf-pretokenizer-unknown",
    "gguf-vocabulary-disagrees",
    "gguf-end-token-wrong",
    "gguf-tensors-missing",
    "gguf-settings-disagree",
)
LLAMA = "gguf-llama3-q4_0"


def _rewrite(patient: Patient, words: Words, **more: Any) -> None:
    """Write the Llama 3 again, with something changed."""
    write_gguf(patient.path, Shape(), words, **more)


@damage("gguf-pre-default", patient=LLAMA, mode="FM49", probe=PRE)
def name_default(patient: Patient) -> None:
    """Name the pre-tokenizer `default`."""
    _rewrite(patient, replace(llama_3(), pre="default"))


@damage("gguf-pre-unknown", patient=LLAMA, mode="FM49", probe=PRE)
def name_unknown(patient: Patient) -> None:
    """Name a pre-tokenizer that nobody knows."""
    _rewrite(patient, replace(llama_3(), pre="my-fine-tune"))


@damage("gguf-pre-absent", patient=LLAMA, mode="FM49", probe=PRE)
def name_none(patient: Patient) -> None:
    """Leave the name of the pre-tokenizer out."""
    _rewrite(patient, llama_3(), leave_out=("tokenizer.ggml.pre",))


@damage("gguf-pre-of-another-family", patient=LLAMA, mode="FM49", probe=PRE)
def name_another(patient: Patient) -> None:
    """Name Qwen's rule over Llama 3's tokens."""
    _rewrite(patient, replace(llama_3(), pre="qwen2"))


@damage("gguf-qwen-pre-of-llama", patient="gguf-qwen2-q5_1", mode="FM49", probe=PRE)
def name_llama(patient: Patient) -> None:
    """Name Llama 3's rule over Qwen's tokens."""
    shape = Shape(architecture="qwen2", kind="Q5_1", tied=True, biases=True)
    write_gguf(patient.path, shape, replace(qwen(), pre="llama-bpe"))


@damage("gguf-tokens-beyond-rows", patient=LLAMA, mode="FM11", probe=WORDS)
def add_tokens(patient: Patient) -> None:
    """Add a token that the embedding has no row for."""
    words = llama_3()
    longer = replace(words, tokens=(*words.tokens, "<new>"), kinds=(*words.kinds, CONTROL))
    _rewrite(patient, longer, rows=len(words.tokens))


@damage("gguf-merges-absent", patient=LLAMA, mode="FM11", probe=WORDS)
def drop_merges(patient: Patient) -> None:
    """Leave the merges out."""
    _rewrite(patient, llama_3(), leave_out=("tokenizer.ggml.merges",))


@damage("gguf-end-out-of-range", patient=LLAMA, mode="FM11", probe=WORDS)
def leave_vocabulary(patient: Patient) -> None:
    """Name an end of text that no token is."""
    _rewrite(patient, llama_3(), change={"tokenizer.ggml.eos_token_id": 128_009})


@damage("gguf-token-twice", patient=LLAMA, mode="FM11", probe=WORDS)
def repeat_token(patient: Patient) -> None:
    """Give two tokens one text."""
    words = llama_3()
    _rewrite(patient, replace(words, tokens=(words.tokens[1], *words.tokens[1:])))


@damage("gguf-end-begins-turns", patient="gguf-qwen2-q5_1", mode="FM03", probe=END)
def end_with_start(patient: Patient) -> None:
    """End answers with the token that begins turns."""
    shape = Shape(architecture="qwen2", kind="Q5_1", tied=True, biases=True)
    write_gguf(patient.path, shape, replace(qwen(), eos="<|im_start|>"))


@damage("gguf-end-inside-words", patient=LLAMA, mode="FM03", probe=END)
def end_with_letters(patient: Patient) -> None:
    """End answers with an ordinary piece of a word."""
    _rewrite(patient, replace(llama_3(), eos=llama_3().tokens[40]))
    assert llama_3().kinds[40] == NORMAL


@damage("gguf-end-absent", patient=LLAMA, mode="FM03", probe=END)
def name_no_end(patient: Patient) -> None:
    """Leave the end of text out."""
    _rewrite(patient, llama_3(), leave_out=("tokenizer.ggml.eos_token_id",))


@damage("gguf-template-broken", patient=LLAMA, mode="FM04", probe="chat-template-broken")
def break_template(patient: Patient) -> None:
    """Cut the chat template off."""
    _rewrite(patient, replace(llama_3(), template=llama_3().template[:-14]))


@damage("gguf-tensor-missing", patient=LLAMA, mode="FM34", probe=TENSORS)
def drop_tensor(patient: Patient) -> None:
    """Leave one tensor of one block out."""
    _rewrite(patient, llama_3(), leave_out=("blk.1.ffn_down.weight",))


@damage("gguf-last-norm-missing", patient=LLAMA, mode="FM34", probe=TENSORS)
def drop_norm(patient: Patient) -> None:
    """Leave the last norm out."""
    _rewrite(patient, llama_3(), leave_out=("output_norm.weight",))


@damage("gguf-block-count-wrong", patient=LLAMA, mode="FM46", probe=TENSORS)
def count_blocks(patient: Patient) -> None:
    """Declare a block more than there is."""
    _rewrite(patient, llama_3(), change={"llama.block_count": 4})


@damage("gguf-part-missing", patient="gguf-split", mode="FM45", probe="shard-missing")
def drop_part(patient: Patient) -> None:
    """Take one part of a split model away."""
    sorted(patient.path.glob("*.gguf"))[1].unlink()


@damage("gguf-heads-wrong", patient=LLAMA, mode="FM46", probe=SETTINGS)
def count_heads(patient: Patient) -> None:
    """Declare as many heads for keys as for queries."""
    _rewrite(patient, llama_3(), change={"llama.attention.head_count_kv": 4})


@damage("gguf-context-zero", patient=LLAMA, mode="FM46", probe=SETTINGS)
def forget_context(patient: Patient) -> None:
    """Declare a context of no tokens."""
    _rewrite(patient, llama_3(), change={"llama.context_length": 0})


@damage("gguf-rope-lost", patient="gguf-with-base", mode="FM30", probe=SETTINGS)
def forget_rope(patient: Patient) -> None:
    """Leave out the base of the rotation that the base model has."""
    write_gguf(patient.path, Shape(), llama_3(), leave_out=("llama.rope.freq_base",))


@damage("gguf-cut", patient=LLAMA, mode="FM43", probe="weights-truncated")
def cut(patient: Patient) -> None:
    """Cut the file off in its tensors."""
    cut_file(patient.path, 0.8)


@damage("gguf-cut-in-header", patient=LLAMA, mode="FM43", probe="weights-truncated")
def cut_header(patient: Patient) -> None:
    """Cut the file off in its header."""
    cut_file(patient.path, 0.001)


@damage("gguf-lfs-pointer", patient=LLAMA, mode="FM44", probe="weights-file-unreadable")
def leave_pointer(patient: Patient) -> None:
    """Leave the pointer of git-LFS in place of the file."""
    patient.path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


@damage("gguf-scale-nan", patient=LLAMA, mode="FM41", probe="weights-nonfinite")
def break_scale(patient: Patient) -> None:
    """Make the scale of one block of levels NaN."""
    from harness.evidence.gguf.file import read_gguf_header

    header, _ = read_gguf_header(patient.path, patient.path.name)
    (tensor,) = (one for one in header.tensors if one.name == "blk.1.ffn_up.weight")
    with patient.path.open("rb+") as handle:
        handle.seek(tensor.start + 18 * 40)
        handle.write(b"\x00\x7e")


@damage("gguf-tokens-of-another-model", patient="gguf-with-base", mode="FM49", probe=PRE)
def exchange_tokens(patient: Patient) -> None:
    """Convert with the tokens of another model, in another order."""
    words = llama_3()
    plain = [text for text, kind in zip(words.tokens, words.kinds, strict=True) if kind == NORMAL]
    others = (*reversed(plain), *words.tokens[len(plain) :])
    write_gguf(patient.path, Shape(theta=500_000.0), replace(words, tokens=others))
