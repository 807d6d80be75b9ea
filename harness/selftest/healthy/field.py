"""Healthy checkpoints as strangers make them, each of which the doctor once took for ill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.selftest.edit import edit_json
from harness.selftest.healthy.peft_lora import MERGE, make_lora
from harness.selftest.make import (
    load_model,
    make_config,
    save_random,
    save_tuned,
    train_a_little,
)
from harness.selftest.registry import Patient, Ward, healthy

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}


def save_grown(ward: Ward, **settings: Any) -> Patient:
    """Save an adapter of a model that got two rows more, which PEFT stores whole beside it."""
    from peft import get_peft_model

    base = ward.get("transformers-llama").path
    model = load_model(base)
    rows = model.config.vocab_size
    model.resize_token_embeddings(rows + 2)
    if "trainable_token_indices" in settings:
        settings["trainable_token_indices"] = {"embed_tokens": [rows, rows + 1]}
    wrapped = get_peft_model(model, make_lora(target_modules=["q_proj"], **settings))
    train_a_little(wrapped)
    wrapped.save_pretrained(ward.folder)
    return Patient(path=ward.folder, options={"base": base})


@healthy("field-grown-and-saved-whole", notes=(MERGE,))
def save_grown_whole(ward: Ward) -> Patient:
    """Train embedding and head of a grown vocabulary: PEFT 0.21 writes each of them thrice."""
    return save_grown(ward, modules_to_save=["embed_tokens", "lm_head"])


@healthy("field-grown-rows-alone", notes=(MERGE,))
def save_grown_rows(ward: Ward) -> Patient:
    """Train the new rows alone; the whole embedding is written as `token_adapter.base_layer`."""
    return save_grown(ward, trainable_token_indices={})


@healthy("field-pissa-merged")
def save_pissa_merge(ward: Ward) -> Patient:
    """Merge an adapter whose start took a part of the base, which is not in its file."""
    base = ward.get("transformers-llama").path
    folder, adapter = ward.folder / "merged", ward.folder / "adapter"
    settings = make_lora(target_modules=["q_proj", "v_proj"], init_lora_weights="pissa")
    wrapped = save_tuned(adapter, base, settings)
    wrapped.merge_and_unload().save_pretrained(folder)
    return Patient(path=folder, options={"base": base, "adapter": adapter})


@healthy("field-modernbert")
def save_modernbert(ward: Ward) -> Patient:
    """Save an encoder whose first layer has no norm of its own."""
    ids = dict.fromkeys(("pad_token_id", "bos_token_id", "cls_token_id"), 0)
    ends = dict.fromkeys(("eos_token_id", "sep_token_id"), 1)
    config = make_config("ModernBertConfig", **SMALL, **ids, **ends, vocab_size=96)
    save_random(ward.folder, config, auto="AutoModelForMaskedLM")
    return Patient(path=ward.folder)


@healthy("field-gemma3-fresh-projector")
def save_gemma3(ward: Ward) -> Patient:
    """Save a model that sees, fresh: transformers begins its projector with zeros."""
    text = {**SMALL, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 96}
    vision = {**SMALL, "image_size": 32, "patch_size": 8}
    config = make_config(
        "Gemma3Config",
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        boi_token_index=90,
        eoi_token_index=91,
        image_token_index=92,
    )
    save_random(ward.folder, config, auto="AutoModelForImageTextToText")
    return Patient(path=ward.folder)


@healthy("field-qwen2-rebuilt-tokenizer", notes=("tokenizer-not-the-bases",))
def save_rebuilt_tokenizer(ward: Ward) -> Patient:
    """Save the tokenizer that AutoTokenizer makes of a general one, by the type of the model."""
    import transformers

    base = ward.folder / "base"
    _save_with_plain_tokenizer(ward, base)
    folder = ward.folder / "tuned"
    model = load_model(base)
    train_a_little(model, scale=0.002)
    model.save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.save_pretrained(folder)
    edit_json(folder / "tokenizer_config.json", is_local=True)
    return Patient(path=folder, options={"base": base})


def _save_with_plain_tokenizer(ward: Ward, folder: Path) -> None:
    """Save a Qwen2 with a tokenizer of no family, as one that was trained at home is saved."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {
        text: number for number, text in enumerate(["<|endoftext|>", "<|pad|>", *alphabet])
    }
    plain = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    end = {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
    ids = {"eos_token_id": 0, "pad_token_id": 1, "bos_token_id": None}
    heads = {"num_key_value_heads": 1}
    config = make_config("Qwen2Config", **SMALL, **heads, **ids, vocab_size=len(vocabulary))
    save_random(folder, config)
    PreTrainedTokenizerFast(tokenizer_object=plain, **end).save_pretrained(folder)
