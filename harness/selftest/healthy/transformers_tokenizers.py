"""Models with the tokenizers that transformers 5 writes: fast, by class, resized, padded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.selftest.make import SIZES, SPECIAL, load_model, make_config, save_random
from harness.selftest.registry import Patient, Ward, healthy

TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "a model answers what it was asked, and then it stops",
    "words and more words, so that there are pairs to merge",
    "Numbers such as 12, 345 and 6789; Umlauts such as ä, ö and ü.",
]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKERS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def train_bpe(size: int = 320, specials: tuple[str, ...] = MARKERS) -> Any:
    """Return a byte-level BPE of `tokenizers` with `specials` first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(TEXTS, trainer)
    return core


def make_tokenizer(**settings: Any) -> Any:
    """Return a fast tokenizer of ChatML form."""
    from transformers import PreTrainedTokenizerFast

    made = PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(),
        **{"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", **settings},
    )
    made.chat_template = TEMPLATE
    return made


def save_chat_model(
    folder: Path, tokenizer: Any, *, rows: int | None = None, kind: str = "LlamaConfig"
) -> Any:
    """Save a random model for a tokenizer, with `rows` embeddings, and the tokenizer."""
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    shape = {**SIZES, **ids, "vocab_size": rows or len(tokenizer)}
    model = save_random(folder, make_config(kind, **shape))
    tokenizer.save_pretrained(folder)
    return model


@healthy("tokenizer-fast")
def save_fast(ward: Ward) -> Patient:
    """Save model and tokenizer of one size."""
    save_chat_model(ward.folder, make_tokenizer())
    return Patient(path=ward.folder)


@healthy("tokenizer-padded-vocabulary")
def save_padded(ward: Ward) -> Patient:
    """Save a model whose embedding has more rows than the tokenizer has tokens."""
    tokenizer = make_tokenizer()
    save_chat_model(ward.folder, tokenizer, rows=len(tokenizer) + 64)
    return Patient(path=ward.folder)


@healthy("tokenizer-resized")
def save_resized(ward: Ward) -> Patient:
    """Add two tokens to the tokenizer and their rows to the model, as TRL and people do."""
    import torch

    tokenizer = make_tokenizer()
    model = save_chat_model(ward.folder, tokenizer)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<think>", "</think>"]})
    torch.manual_seed(4)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(ward.folder)
    tokenizer.save_pretrained(ward.folder)
    return Patient(path=ward.folder)


@healthy("tokenizer-resized-to-multiple")
def save_rounded_up(ward: Ward) -> Patient:
    """Add tokens and round the rows up to a multiple of 64, with the mean as the start."""
    tokenizer = make_tokenizer()
    model = save_chat_model(ward.folder, tokenizer)
    tokenizer.add_tokens(["<extra>"])
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
    model.save_pretrained(ward.folder)
    tokenizer.save_pretrained(ward.folder)
    return Patient(path=ward.folder)


@healthy("tokenizer-qwen2-class")
def save_qwen2_class(ward: Ward) -> Patient:
    """Save what transformers 5 makes of a Qwen2 model's tokenizer: its own class, its own end."""
    from transformers import AutoTokenizer

    make_tokenizer().save_pretrained(ward.folder / "raw")
    (ward.folder / "m").mkdir()
    save_random(ward.folder / "m", make_config("Qwen2Config", **SIZES | {"vocab_size": 320}))
    from transformers import Qwen2Tokenizer

    raw = AutoTokenizer.from_pretrained(ward.folder / "raw")
    made = Qwen2Tokenizer(
        vocab=raw.get_vocab(), merges=[], eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    made.add_tokens(["<|im_start|>"], special_tokens=True)  # else it is cut into pieces
    made.chat_template = TEMPLATE
    save_chat_model(ward.folder / "m", made, kind="Qwen2Config")
    return Patient(path=ward.folder / "m")


@healthy("tokenizer-beside-adapter")
def save_beside_adapter(ward: Ward) -> Patient:
    """Save the tokenizer beside an adapter, as every trainer does."""
    from peft import LoraConfig, get_peft_model

    from harness.selftest.make import train_a_little

    source = ward.get("tokenizer-fast").path
    from transformers import AutoTokenizer

    settings = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])
    wrapped = get_peft_model(load_model(source), settings)
    train_a_little(wrapped)
    wrapped.save_pretrained(ward.folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(ward.folder)
    return Patient(path=ward.folder, options={"base": source})


@healthy("tokenizer-loaded-and-saved")
def save_again(ward: Ward) -> Patient:
    """Load model and tokenizer by their automatic classes and save them elsewhere."""
    from transformers import AutoTokenizer

    source = ward.get("tokenizer-fast").path
    load_model(source, dtype="fp16").save_pretrained(ward.folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(ward.folder)
    return Patient(path=ward.folder)


@healthy("tokenizer-legacy-files")
def save_legacy(ward: Ward) -> Patient:
    """Write the files of transformers 4: special tokens apart, the template in the settings."""
    from harness.selftest.edit import edit_json

    save_chat_model(ward.folder, make_tokenizer())
    template = ward.folder / "chat_template.jinja"
    edit_json(
        ward.folder / "tokenizer_config.json",
        chat_template=template.read_text(encoding="utf-8"),
        tokenizer_class="PreTrainedTokenizerFast",
        added_tokens_decoder={
            str(number): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for number, token in enumerate(MARKERS)
        },
        backend=None,
    )
    template.unlink()
    import json

    (ward.folder / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})
    )
    return Patient(path=ward.folder)


@healthy("tokenizer-llama3-stops")
def save_llama3_stops(ward: Ward) -> Patient:
    """Save a chat model that ends at the end of turn and at the end of text."""
    from transformers import GenerationConfig

    tokenizer = make_tokenizer()
    model = save_chat_model(ward.folder, tokenizer)
    stops = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    model.generation_config = GenerationConfig(
        eos_token_id=stops, pad_token_id=stops[1], do_sample=True, temperature=0.7, top_p=0.9
    )
    model.save_pretrained(ward.folder)
    return Patient(path=ward.folder)


@healthy("tokenizer-without-pad")
def save_without_pad(ward: Ward) -> Patient:
    """Save a base model's tokenizer: it pads with nothing, begins with something, no template."""
    from transformers import PreTrainedTokenizerFast

    core = train_bpe(specials=("<s>", "</s>", "<unk>"))
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    save_chat_model(ward.folder, made)
    return Patient(path=ward.folder)


@healthy("tokenizer-handmade")
def write_by_hand(ward: Ward) -> Patient:
    """Put a minimal tokenizer.json beside a model, of fewer tokens than it has rows."""
    import json

    save_random(ward.folder, make_config("LlamaConfig", **SIZES, **SPECIAL))
    vocab = {f"t{number}": number for number in range(89)}
    added = [{"id": 89, "content": "<end>", "special": True}]
    value = {"model": {"type": "BPE", "vocab": vocab, "merges": []}, "added_tokens": added}
    (ward.folder / "tokenizer.json").write_text(json.dumps(value))
    return Patient(path=ward.folder)
