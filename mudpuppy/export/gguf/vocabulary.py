"""Everything of a GGUF file that is text: tokens, merges or scores, special tokens, templates.

Two kinds of tokenizer are written: byte-level BPE (`gpt2`: Llama 3, Qwen, GPT-2, Mistral Nemo) and
the BPE of sentencepiece with tokens for bytes (`llama`: Llama 2, Mistral, Phi-3, Gemma), whether it
comes as tokenizer.json or as tokenizer.model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mudpuppy.errors import ModelError
from mudpuppy.export.gguf.added_tokens import TokenKinds, classify_tokens
from mudpuppy.export.gguf.pretokenizers import (
    describe_change,
    find_pretokenizer,
    merge_pairs,
)
from mudpuppy.export.gguf.published import TEST_TEXT
from mudpuppy.export.gguf.sentencepiece_scores import score_tokens
from mudpuppy.export.gguf.special_tokens import (
    SpecialTokens,
    read_special_tokens,
    read_templates,
)
from mudpuppy.export.gguf.tokenizer_source import Source, read_source
from mudpuppy.export.gguf.vocabulary_codes import TOO_MANY, UNKNOWN_NAME

if TYPE_CHECKING:
    import gguf

_PHI3 = re.compile(r"(?i)phi-?3")


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of text."""

    model: str
    """`gpt2` (byte-level BPE) or `llama` (sentencepiece)."""
    pre: str
    """llama.cpp's name for how text is cut."""
    tokens: tuple[str, ...]
    """The text of every row of the embedding."""
    kinds: tuple[int, ...]
    """The kind of every token (`gguf.TokenType`)."""
    special: SpecialTokens
    """Special ids, and what is added to every text."""
    merges: tuple[str, ...] = ()
    """Pairs in the order of their merging; byte-level BPE alone has them."""
    scores: tuple[float, ...] = ()
    """A score a token; sentencepiece alone has them."""
    add_space_prefix: bool | None = None
    """Whether a blank is put before text; None for byte-level BPE, where llama.cpp never does."""
    templates: Mapping[str, str] = field(default_factory=dict)
    """Chat templates by name; `default` is the model's."""
    strips_blanks: bool = False
    """Whether blanks after special tokens go, as in Phi-3."""
    notes: tuple[str, ...] = ()
    """What is worth telling: padding, and what llama.cpp does otherwise than transformers."""

    def write(self, writer: gguf.GGUFWriter) -> None:
        """Add every key about text to a file that is being written."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        if self.scores:
            writer.add_token_scores(self.scores)
        if self.model == "gpt2":
            writer.add_token_merges(self.merges)
        for role, number in self.special.ids.items():
            getattr(writer, f"add_{role}_token_id")(number)
        writer.add_add_bos_token(self.special.add_bos)
        writer.add_add_eos_token(self.special.add_eos)
        if self.add_space_prefix is not None:
            writer.add_add_space_prefix(self.add_space_prefix)
        self._write_templates(writer)

    def _write_templates(self, writer: gguf.GGUFWriter) -> None:
        """Add the templates; the package itself lists their names in an order of chance."""
        named = {re.sub("[^A-Za-z0-9]", "_", name): text for name, text in self.templates.items()}
        default = named.pop("default", None)
        if default is not None:
            writer.add_chat_template(default)
        for name, text in sorted(named.items()):
            writer.add_string(f"tokenizer.chat_template.{name}", text)
        if named:
            writer.add_array("tokenizer.chat_templates", sorted(named))

    def fitting_name(self, name: str) -> str:
        """Return a name for `general.name` with which llama.cpp reads this vocabulary rightly.

        It looks for "phi-3" in the name: there it takes blanks away after special tokens, and ends
        with an exception where `</s>`, `<unk>`, `<s>` or `<|endoftext|>` is missing.
        """
        if self.strips_blanks:
            return name if _PHI3.search(name) else f"{name} (Phi-3)"
        return _PHI3.sub(lambda found: f"{found[0][:3]} {found[0][-1]}", name)


def read_vocabulary(
    folder: Path, num_rows: int, *, architecture: str = "", pre_tokenizer: str | None = None
) -> Vocabulary:
    """Read the tokenizer of a model folder for llama.cpp.

    Args:
        folder: the model's.
        num_rows: rows of the embedding; what the tokenizer leaves over is filled.
        architecture: llama.cpp's name of the architecture, for messages.
        pre_tokenizer: llama.cpp's name for how text is cut; found out where it is None.

    Raises:
        ModelError: the tokenizer is missing, damaged, larger than the embedding, or reads text in a
            way that llama.cpp cannot (MP-V01 to MP-V09).
    """
    source = read_source(folder)
    texts = _texts(source)
    _check_rows(folder, texts, num_rows, architecture)
    special = read_special_tokens(source, texts, num_rows)
    templates = read_templates(source, special, texts)
    kinds = classify_tokens(source, texts, num_rows)
    notes = (*_padding(texts, num_rows), *kinds.notes, *special.notes)
    notes += _chat_notes(templates, special, texts)
    make = _sentencepiece if source.document["model"].get("byte_fallback") else _byte_level
    return make(source, kinds, special, templates, notes, pre_tokenizer)


def _byte_level(
    source: Source,
    kinds: TokenKinds,
    special: SpecialTokens,
    templates: Mapping[str, str],
    notes: Sequence[str],
    asked: str | None,
) -> Vocabulary:
    found = find_pretokenizer(source.document, source.encode(TEST_TEXT), asked=asked)
    return Vocabulary(
        model="gpt2",
        pre=found.name,
        tokens=kinds.texts,
        kinds=kinds.kinds,
        special=special,
        merges=tuple(
            # a blank parts the two in a GGUF file, so one inside is written as bytes are
            " ".join(part.replace(" ", "Ġ") for part in pair)
            for pair in merge_pairs(source.document["model"])
        ),
        templates=templates,
        strips_blanks=kinds.strips_blanks,
        notes=(*notes, *_changes(source, asked), *found.notes),
    )


def _changes(source: Source, asked: str | None) -> tuple[str, ...]:
    """Return what is said where transformers cuts text otherwise than the file does."""
    if asked is not None:
        return ()
    name = type(source.tokenizer).__name__
    return describe_change(source.stored, source.document, name)


def _sentencepiece(
    source: Source,
    kinds: TokenKinds,
    special: SpecialTokens,
    templates: Mapping[str, str],
    notes: Sequence[str],
    asked: str | None,
) -> Vocabulary:
    if asked not in (None, "default"):
        raise ModelError(
            f"{UNKNOWN_NAME}: --pre-tokenizer {asked}: this tokenizer is sentencepiece's, and "
            "llama.cpp has one way of reading those",
            hint="leave --pre-tokenizer out, or say default to export it whatever differs",
        )
    scored = score_tokens(source, kinds, templates, insists=asked is not None)
    return Vocabulary(
        model="llama",
        pre="default",
        tokens=kinds.texts,
        kinds=kinds.kinds,
        special=special,
        scores=scored.scores,
        add_space_prefix=scored.prefix,
        templates=templates,
        strips_blanks=kinds.strips_blanks,
        notes=(*notes, *scored.notes),
    )


def _texts(source: Source) -> dict[int, str]:
    """Return every token of the tokenizer by its id."""
    found = {number: text for text, number in source.document["model"]["vocab"].items()}
    added: Sequence[Mapping[str, Any]] = source.document.get("added_tokens") or ()
    found.update({token["id"]: token["content"] for token in added})
    return found


def _check_rows(folder: Path, texts: Mapping[int, str], num_rows: int, architecture: str) -> None:
    """Raise ModelError where a token has no row."""
    beyond = sorted(number for number in texts if number >= num_rows)
    if beyond:
        raise ModelError(
            f"{TOO_MANY}: {folder}: the tokenizer has the token {texts[beyond[0]]!r} with the id "
            f"{beyond[0]}, and the embedding of this {architecture or 'model'} has {num_rows} rows "
            f"({len(beyond):,} tokens too many); llama.cpp refuses such a file",
            hint="model.resize_token_embeddings(len(tokenizer)) and save both, or copy the "
            "tokenizer files of the base model into the folder",
        )


def _chat_notes(
    templates: Mapping[str, str], special: SpecialTokens, texts: Mapping[int, str]
) -> tuple[str, ...]:
    """Return what llama.cpp does otherwise with chats."""
    if "default" not in templates:
        return ("there is no chat template; llama.cpp takes that of ChatML then",)
    template = templates["default"]
    first = texts[special.ids["bos"]] if special.add_bos else "bos_token"
    if "bos_token" in template or first in template or not special.add_bos:
        return ()
    return (f"the chat template writes no {first!r}, and llama.cpp puts it before chats, too",)


def _padding(texts: Mapping[int, str], num_rows: int) -> tuple[str, ...]:
    """Return what is said of rows that no token has."""
    lacking = num_rows - len(texts)
    if not lacking:
        return ()
    return (f"{lacking:,} of {num_rows:,} rows belong to no token; they are named [PADn]",)
