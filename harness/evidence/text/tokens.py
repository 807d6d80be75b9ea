"""Evidence about special tokens and the form of tokenizer.json, without the tokenizer's library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from harness.evidence.files.inventory import read_settings
from harness.evidence.source import CheckpointEvidence, provides
from harness.facts.checkpoint import Files, Vocabulary
from harness.facts.files import SpecialTokens, TokenizerForm
from harness.registry import NotApplicable

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Settings that name one special token."""
LISTS = ("additional_special_tokens", "extra_special_tokens")
"""Settings that name several."""
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
"""Files that name special tokens, the one that counts first."""
KINDS = {"BPE": dict, "WordPiece": dict, "WordLevel": dict, "Unigram": list}
"""Models of tokenizers, and what their vocabulary is."""
NAMED = 200
"""Special tokens that are looked at."""


@provides("special_tokens")
def compare_special(evidence: CheckpointEvidence) -> SpecialTokens:
    """Return the special tokens of the settings that the vocabulary does not have."""
    files: Files = evidence.get("files")
    if not {"tokenizer.json", "vocab.json", "tokenizer.model"} & set(files.names):
        raise NotApplicable("the folder holds no tokenizer")
    ids: Mapping[str, int] = evidence.get("token_ids")
    found = [name for name in SETTINGS if name in files.names]
    if not found:
        raise NotApplicable("no file beside the tokenizer names special tokens")
    named: dict[str, str] = {}
    known = dict(ids)
    for name in reversed(found):
        settings = read_settings(evidence, name)
        named |= dict(_special(settings))
        known |= dict(_decoded(settings.get("added_tokens_decoder")))
    vocabulary: Vocabulary | None = evidence.find("vocabulary")
    rows = None if vocabulary is None else _rows(vocabulary)
    special = {} if vocabulary is None else dict(vocabulary.special)
    held = set(known.values())
    ends = [number for role, number in special.items() if "eos" in role]
    return SpecialTokens(
        file=found[0],
        named=len(named),
        unknown={role: text for role, text in named.items() if text not in known},
        next_id=max(held) + 1,
        rows=rows,
        unnamed_ids={
            role: number
            for role, number in special.items()
            if number not in held and (rows is None or number < rows)
        },
        has_known_end=any(number in held for number in ends),
    )


def _rows(vocabulary: Vocabulary) -> int | None:
    return max(vocabulary.rows.values()) if vocabulary.rows else vocabulary.declared


def _special(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield role and text of every special token that is named."""
    for role in ROLES:
        if text := _text(settings.get(role)):
            yield role, text
    for key in LISTS:
        value = settings.get(key)
        several = list(value.values()) if isinstance(value, dict) else value
        for number, one in enumerate(several[:NAMED] if isinstance(several, list) else ()):
            if text := _text(one):
                yield f"{key}[{number}]", text


def _text(value: Any) -> str:
    """Return the text of a token: itself, or the content of an object that describes it."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else ""


def _decoded(value: Any) -> Iterator[tuple[str, int]]:
    """Yield text and id of `added_tokens_decoder`, which maps the id to the token."""
    for key, token in value.items() if isinstance(value, dict) else ():
        if isinstance(key, str) and key.isdecimal() and len(key) < 12 and (text := _text(token)):
            yield text, int(key)


@provides("tokenizer_form")
def examine_form(evidence: CheckpointEvidence) -> TokenizerForm:
    """Return what keeps loaders from making a tokenizer of tokenizer.json."""
    files: Files = evidence.get("files")
    if "tokenizer.json" not in files.names:
        raise NotApplicable("there is no tokenizer.json")
    model = read_settings(evidence, "tokenizer.json").get("model")
    if not isinstance(model, dict):
        return TokenizerForm(kind="", tokens=0, problems=("it holds no model",))
    vocab, kind = model.get("vocab"), model.get("type")
    if not isinstance(vocab, (dict, list)) or not vocab:
        return TokenizerForm(kind=_kind(kind), tokens=0, problems=("its model has no vocabulary",))
    return TokenizerForm(
        kind=_kind(kind), tokens=len(vocab), problems=tuple(_problems(model, vocab, kind))
    )


def _kind(value: Any) -> str:
    return value[:40] if isinstance(value, str) else ""


def _problems(model: Mapping[str, Any], vocab: Any, kind: Any) -> Iterator[str]:
    if kind is not None and (not isinstance(kind, str) or kind not in KINDS):
        yield f"its model is of the unknown type {str(kind)[:40]!r}"
    elif kind is not None and not isinstance(vocab, KINDS[kind]):
        yield f"the vocabulary of a {kind} model must be a {_word(KINDS[kind])}"
    if isinstance(vocab, dict):
        odd = next((text for text, n in vocab.items() if type(n) is not int or n < 0), None)
        if odd is not None:
            yield f"the id of {odd[:40]!r} is {str(vocab[odd])[:20]}, not a whole number"
        yield from _bad_merges(model, vocab)


def _word(kind: type) -> str:
    return "mapping from token to id" if kind is dict else "list of tokens and scores"


def _bad_merges(model: Mapping[str, Any], vocab: Mapping[str, Any]) -> Iterator[str]:
    """Yield the first merge of a BPE model that its vocabulary does not allow."""
    merges = model.get("merges")
    if not isinstance(merges, list):
        return
    prefix = model.get("continuing_subword_prefix")
    for one in merges:
        parts = one.split(" ", 1) if isinstance(one, str) else one
        if not (isinstance(parts, list) and len(parts) == 2):
            yield f"the merge {str(one)[:40]!r} is not a pair of tokens"
            return
        wanted = [*parts] if prefix else [*parts, f"{parts[0]}{parts[1]}"]
        lost = next((p for p in wanted if not isinstance(p, str) or p not in vocab), None)
        if lost is not None:
            yield f"its merges need the token {str(lost)[:40]!r}, which its vocabulary lacks"
            return
