"""Tokenizers of the usual kinds, trained in the test, as they lie in model folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.mudpuppy.export.gguf.texts import training_texts

MARKS = ("<|begin|>", "<|stop|>", "<|user|>", "<|bot|>")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] | trim }}"
    "<|stop|>{% endfor %}{% if add_generation_prompt %}<|bot|>{% endif %}"
)


def split_by(expression: str) -> Any:
    """Return the pre-tokenizer of most byte-level tokenizers: an expression, then bytes."""
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(expression), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def save_byte_level(
    folder: Path,
    pre_tokenizer: Any,
    *,
    ignore_merges: bool = False,
    normalizer: Any = None,
    size: int = 900,
    begins: bool = False,
) -> Path:
    """Train a byte-level BPE and save it as transformers does, with a config.json beside it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    core.pre_tokenizer, core.decoder = pre_tokenizer, decoders.ByteLevel()
    if normalizer is not None:
        core.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(MARKS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(training_texts(), trainer)
    if begins:
        core.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|begin|>",
        eos_token="<|stop|>",
        extra_special_tokens=["<|user|>", "<|bot|>"],
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    write_config(folder, len(tokenizer))
    return folder


def save_sentencepiece(folder: Path, *, size: int = 900, **settings: Any) -> Path:
    """Train a sentencepiece BPE with tokens for bytes; `tokenizer.model` and nothing else."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    given = {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "split_digits": True,
        "character_coverage": 0.99,
        "hard_vocab_limit": False,
        "minloglevel": 2,
        **settings,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(training_texts()),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=size,
        **given,
    )
    (folder / "tokenizer.vocab").unlink()
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "LlamaTokenizer",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "add_bos_token": True,
            "add_eos_token": False,
        },
    )
    write_config(folder, size)
    return folder


def write_config(folder: Path, rows: int, **more: Any) -> None:
    """Write the settings of a tiny model."""
    write_json(folder / "config.json", {"model_type": "llama", "vocab_size": rows, **more})


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def edit_json(path: Path, change: Any) -> None:
    """Load a JSON file, hand it to `change`, and write it back."""
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    write_json(path, value)


def count_rows(folder: Path) -> int:
    """Return the smallest number of rows that the tokenizer fits."""
    from transformers import AutoTokenizer

    return max(AutoTokenizer.from_pretrained(folder).get_vocab().values()) + 1
