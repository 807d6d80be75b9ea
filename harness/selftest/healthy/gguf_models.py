"""Models in GGUF form, written by llama.cpp's own package, in its usual types and vocabularies."""

from __future__ import annotations

import shutil
from dataclasses import replace

from harness.selftest.gguf_files import (
    Shape,
    Words,
    make_bpe,
    make_spm,
    write_gguf,
    write_tokenizer,
)
from harness.selftest.registry import Patient, Ward, healthy

QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>")
LLAMA_3_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
LLAMA_3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}"
    "<|end_header_id|>\n\n{{ message.content | trim }}<|eot_id|>{% endfor %}"
)
GEMMA_TOKENS = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message.role }}\n"
    "{{ message.content }}<end_of_turn>\n{% endfor %}"
)


def qwen() -> Words:
    """Return the vocabulary of a Qwen2."""
    return make_bpe(QWEN_TOKENS, pre="qwen2", bos="<|endoftext|>", eos="<|im_end|>")


def llama_3() -> Words:
    """Return the vocabulary of a Llama 3."""
    return make_bpe(
        LLAMA_3_TOKENS,
        pre="llama-bpe",
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        template=LLAMA_3_TEMPLATE,
    )


def save(ward: Ward, shape: Shape, words: Words) -> Patient:
    """Save a model as one file."""
    path = ward.folder / f"small-{shape.kind}.gguf"
    write_gguf(path, shape, words)
    return Patient(path=path)


@healthy("gguf-llama3-q4_0")
def save_llama(ward: Ward) -> Patient:
    """Save a Llama 3 in Q4_0."""
    return save(ward, Shape(), llama_3())


@healthy("gguf-llama2-q8_0")
def save_llama_2(ward: Ward) -> Patient:
    """Save a Llama 2 in Q8_0, with SentencePiece."""
    return save(ward, Shape(kind="Q8_0"), make_spm((), template=""))


@healthy("gguf-qwen2-q5_1")
def save_qwen(ward: Ward) -> Patient:
    """Save a Qwen2 in Q5_1, tied, with biases."""
    return save(ward, Shape(architecture="qwen2", kind="Q5_1", tied=True, biases=True), qwen())


@healthy("gguf-qwen2-base-f16")
def save_qwen_base(ward: Ward) -> Patient:
    """Save a Qwen2 that is no chat model, but has the template: its answers end otherwise."""
    words = replace(qwen(), eos="<|endoftext|>")
    return save(ward, Shape(architecture="qwen2", kind="F16", biases=True), words)


@healthy("gguf-gemma2-bf16")
def save_gemma(ward: Ward) -> Patient:
    """Save a Gemma 2 in BF16: tied, four norms a layer, an end of turn beside the end."""
    norms = ("post_attention_norm", "post_ffw_norm")
    shape = Shape(architecture="gemma2", kind="BF16", tied=True, more_norms=norms)
    words = make_spm(
        GEMMA_TOKENS, bos="<bos>", eos="<eos>", eot="<end_of_turn>", template=GEMMA_TEMPLATE
    )
    return save(ward, shape, words)


@healthy("gguf-llama3-f32")
def save_plain(ward: Ward) -> Patient:
    """Save a Llama 3 in F32."""
    return save(ward, Shape(kind="F32"), llama_3())


@healthy("gguf-llama3-k-quants")
def save_k_quants(ward: Ward) -> Patient:
    """Save a folder of models in the K-quants."""
    for kind in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"):
        save(ward, Shape(kind=kind), llama_3())
    return Patient(path=ward.folder)


@healthy("gguf-with-base")
def save_with_base(ward: Ward) -> Patient:
    """Save a model beside the base that it was converted from, whose positions turn otherwise."""
    from harness.selftest.edit import edit_json

    shape = Shape(theta=500_000.0)
    patient = save(ward, shape, llama_3())
    base = ward.folder / "base"
    shutil.copytree(ward.get("transformers-llama").path, base)
    rope = {"rope_theta": 500_000.0, "rope_type": "default"}
    edit_json(base / "config.json", rope_parameters=rope)
    write_tokenizer(base / "tokenizer.json", llama_3())
    return patient.asking(base=base)


@healthy("gguf-split")
def save_split(ward: Ward) -> Patient:
    """Save a model in parts, as llama.cpp splits large ones; the folder is examined."""
    path = ward.folder / "small.gguf"
    write_gguf(path, Shape(kind="Q4_1"), llama_3(), split_max_tensors=12)
    return Patient(path=ward.folder)


@healthy("gguf-mixed-types")
def save_mixed(ward: Ward) -> Patient:
    """Save a model without kinds of tokens and without a name of its type, as older tools did."""
    path = ward.folder / "small.gguf"
    left_out = ("tokenizer.ggml.token_type", "general.type", "llama.rope.freq_base")
    write_gguf(path, Shape(kind="Q5_0"), make_spm((), template=""), leave_out=left_out)
    return Patient(path=path)


@healthy("gguf-beside-safetensors")
def save_beside(ward: Ward) -> Patient:
    """Save a GGUF model into the folder of the model it was converted from."""
    folder = ward.folder / "model"
    shutil.copytree(ward.get("transformers-llama").path, folder)
    write_gguf(folder / "model-Q8_0.gguf", Shape(kind="Q8_0"), llama_3())
    return Patient(path=folder)


@healthy("gguf-adapter")
def save_adapter(ward: Ward) -> Patient:
    """Save an adapter in GGUF form: no vocabulary, no blocks of its own."""
    import gguf
    import numpy as np

    path = ward.folder / "adapter.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 16.0)
    random = np.random.default_rng(0)
    for block in range(2):
        for end, size in (("lora_a", (4, 64)), ("lora_b", (64, 4))):
            values = random.normal(0, 0.05, size).astype(np.float32)
            writer.add_tensor(f"blk.{block}.attn_q.weight.{end}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Patient(path=path)
