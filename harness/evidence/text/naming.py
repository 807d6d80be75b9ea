"""Evidence about the special tokens of a tokenizer: who names them, their ids, what is added."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.evidence.files.inventory import read_settings
from harness.evidence.source import CheckpointEvidence, provides
from harness.evidence.text.tokens import ROLES, SETTINGS
from harness.facts.chat import Clash, Naming
from harness.facts.checkpoint import Base, Files
from harness.registry import Missing, NotApplicable

DEFAULTS = {
    "llama": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "gpt2": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
    "gemma": {
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
    },
    "qwen2": {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
}
"""Special tokens of classes whose settings may leave them out, by `tokenizer_class`."""
RESERVED = re.compile(r"reserved|unused|extra|placeholder|dummy|fim_|SPECIAL_\d|\[control_\d+\]")
"""Texts of tokens that a base keeps free for whoever tunes it, and that get new names."""
LISTED = 20
"""Clashes that are listed."""


@provides("naming")
def read_naming(evidence: CheckpointEvidence) -> Naming:
    """Return which special tokens the files name, and which are written before a text.

    Raises:
        Missing: no file names special tokens, or the vocabulary cannot be read here.
    """
    files: Files = evidence.get("files")
    found = [name for name in SETTINGS if name in files.names]
    if not {"tokenizer.json", "vocab.json", "tokenizer.model", *found} & set(files.names):
        raise NotApplicable("the folder holds no tokenizer")
    if not found:
        raise NotApplicable("no file beside the tokenizer names special tokens")
    ids: Mapping[str, int] = evidence.get("token_ids")
    by_file = {name: dict(_roles(read_settings(evidence, name))) for name in found}
    settings = read_settings(evidence, SETTINGS[0]) if SETTINGS[0] in found else {}
    decoded = {text: number for number, text in list_decoded(settings)}
    known = {**decoded, **ids}
    chosen = {r: t for r, t in class_defaults(settings).items() if t in known}
    for roles in reversed(by_file.values()):
        chosen |= roles
    return Naming(
        by_file=by_file,
        chosen=chosen,
        ids=known,
        special=frozenset([*_added(evidence, files), *decoded, *chosen.values()]),
        begins=_begins(evidence, files, settings, chosen),
        settings=settings,
    )


@provides("base_evidence")
def open_base(evidence: CheckpointEvidence) -> CheckpointEvidence:
    """Return evidence about the folder of the base model."""
    base: Base = evidence.get("base")
    return CheckpointEvidence(Path(base.root))


@provides("base_naming")
def read_base_naming(evidence: CheckpointEvidence) -> Naming | None:
    """Return the special tokens of the base; None without a base or a tokenizer in it."""
    base: CheckpointEvidence | None = evidence.find("base_evidence")
    naming: Naming | None = None if base is None else base.find("naming")
    return naming


def class_defaults(settings: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the special tokens that the class of a tokenizer has where nothing is written."""
    kind = settings.get("tokenizer_class")
    if not isinstance(kind, str):
        return {}
    return DEFAULTS.get(kind.lower().removesuffix("fast").removesuffix("tokenizer"), {})


def text_of(value: Any) -> str:
    """Return the text of a token: itself, or the content of an object that describes it."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else ""


def list_decoded(settings: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    """Yield id and text of `added_tokens_decoder`."""
    value = settings.get("added_tokens_decoder")
    for key, token in value.items() if isinstance(value, dict) else ():
        if isinstance(key, str) and key.isdecimal() and len(key) < 12 and (text := text_of(token)):
            yield int(key), text


def _roles(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for role in ROLES:
        if text := text_of(settings.get(role)):
            yield role, text


def _added(evidence: CheckpointEvidence, files: Files) -> Iterator[str]:
    if "tokenizer.json" in files.names:
        yield from (text for _, text in _listed(read_settings(evidence, "tokenizer.json")))
    elif "added_tokens.json" in files.names:
        yield from read_settings(evidence, "added_tokens.json")


def _listed(tokenizer: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    added = tokenizer.get("added_tokens")
    for one in added if isinstance(added, list) else ():
        if isinstance(one, dict) and type(one.get("id")) is int and text_of(one):
            yield one["id"], text_of(one)


def _begins(
    evidence: CheckpointEvidence, files: Files, settings: Mapping[str, Any], chosen: dict[str, str]
) -> tuple[str, ...]:
    """Return what is written before a text; `add_bos_token` goes before the post-processor."""
    asked = settings.get("add_bos_token")
    if type(asked) is bool:
        return (chosen["bos_token"],) if asked and "bos_token" in chosen else ()
    if "tokenizer.json" not in files.names:
        return ()
    return tuple(find_begins(read_settings(evidence, "tokenizer.json").get("post_processor")))


def find_begins(processor: Any, depth: int = 0) -> Iterator[str]:
    """Yield the tokens that a post-processor of tokenizer.json writes before a single text."""
    if not isinstance(processor, dict) or depth > 5:
        return
    if isinstance(several := processor.get("processors"), list):
        for one in several[:20]:
            yield from find_begins(one, depth + 1)
    cls = processor.get("cls")
    if isinstance(cls, list) and cls and isinstance(cls[0], str):
        yield cls[0]
    single = processor.get("single")
    for piece in single[:20] if isinstance(single, list) else ():
        token = piece.get("SpecialToken") if isinstance(piece, dict) else None
        if not isinstance(token, dict) or not isinstance(token.get("id"), str):
            return
        yield token["id"]


@provides("added_clashes")
def compare_added(evidence: CheckpointEvidence) -> tuple[Clash, ...]:
    """Return the tokens about whose ids the files of one tokenizer disagree."""
    files: Files = evidence.get("files")
    if "tokenizer.json" not in files.names:
        raise NotApplicable("there is no tokenizer.json to compare the other files with")
    tokenizer = read_settings(evidence, "tokenizer.json")
    model = tokenizer.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict | list):
        raise Missing("tokenizer.json holds no vocabulary that can be read here")
    added = list(_listed(tokenizer))
    found = [*_clashes_inside(added, vocab)]
    texts = dict(added)
    if "tokenizer_config.json" in files.names:
        decoded = list_decoded(read_settings(evidence, "tokenizer_config.json"))
        found += _clashes_beside(decoded, texts, "tokenizer_config.json")
    if "added_tokens.json" in files.names:
        pairs = read_settings(evidence, "added_tokens.json").items()
        listed = ((n, t) for t, n in pairs if type(n) is int)
        found += _clashes_beside(listed, texts, "added_tokens.json")
    return tuple(found[:LISTED])


def _clashes_inside(added: list[tuple[int, str]], vocab: Any) -> Iterator[Clash]:
    """Yield ids that two added tokens have, and texts that have two ids."""
    file, by_id, by_text = "tokenizer.json", dict[int, str](), dict[str, int]()
    for number, text in added:
        if by_id.setdefault(number, text) != text:
            what = f"added token {number}"
            yield Clash(what=what, file=file, found=repr(text), expected=repr(by_id[number]))
        if by_text.setdefault(text, number) != number:
            what = f"id of the added token {text[:40]!r}"
            yield Clash(what=what, file=file, found=str(number), expected=str(by_text[text]))
        own = vocab.get(text) if isinstance(vocab, dict) else None
        if type(own) is int and own != number:
            what = f"id of {text[:40]!r}, which the vocabulary has too"
            yield Clash(what=what, file=file, found=str(number), expected=str(own))
    if isinstance(vocab, dict):
        taken = {n: t for t, n in vocab.items() if type(n) is int and n in by_id}
        for number, text in taken.items():
            if by_id[number] != text and not RESERVED.search(text):
                what = f"token {number}, which the vocabulary gives another text"
                found, wanted = repr(by_id[number])[:60], repr(text)[:60]
                yield Clash(what=what, file=file, found=found, expected=wanted)


def _clashes_beside(
    pairs: Iterator[tuple[int, str]], texts: Mapping[int, str], file: str
) -> Iterator[Clash]:
    ids = {text: number for number, text in texts.items()}
    for number, text in pairs:
        other, place = texts.get(number), ids.get(text)
        if other is not None and other != text:
            what = f"added token {number}"
            yield Clash(what=what, file=file, found=repr(text)[:60], expected=repr(other)[:60])
        elif other is None and place is not None:
            what = f"id of the added token {text[:40]!r}"
            yield Clash(what=what, file=file, found=str(number), expected=str(place))
