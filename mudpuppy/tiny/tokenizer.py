"""The tiny model's tokenizer: a byte-level BPE trained in-process, with a chat template."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TEMPLATE_PATH = Path(__file__).with_name("chat_template.jinja")
PAD, END = "<|pad|>", "<|end|>"
ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>")
MAX_LENGTH = 256
"""Longest sequence that the tiny models are made for, in tokens."""


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, *, extra_tokens: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    """Train a tokenizer with exactly `vocab_size` entries, `extra_tokens` (specials) included.

    Raises:
        ValueError: the texts are too poor for that many entries.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    specials = (PAD, END, *ROLE_TOKENS, *extra_tokens)
    core = Tokenizer(models.BPE())
    # single digits, so that a year never seen is still read as a later year
    digits = pre_tokenizers.Digits(individual_digits=True)
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    if core.get_vocab_size() != vocab_size:
        raise ValueError(f"the texts give {core.get_vocab_size()} tokens, not {vocab_size}")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        # transformers 5 calls every other special token an extra one
        extra_special_tokens=[*ROLE_TOKENS, *extra_tokens],
        model_max_length=MAX_LENGTH,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE_PATH.read_text(encoding="utf-8")
    return tokenizer
