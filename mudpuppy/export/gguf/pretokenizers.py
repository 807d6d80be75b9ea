"""Find out llama.cpp's name for how a byte-level tokenizer cuts text: by what it says, by its ids.

A name decides how every text is read, so it is never guessed: either tokenizer.json describes a way
of cutting that llama.cpp knows (`pretokenizer_rules.RULES`), or the vocabulary is a published one
(`published`), or somebody says the name. Where both sources speak they must agree.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mudpuppy.errors import ModelError, printable
from mudpuppy.export.gguf.pretokenizer_rules import (
    BYTES,
    DIGIT_RUNS,
    DIGITS,
    GPT2,
    RULES,
    Rule,
    check_name,
    rule_of,
)
from mudpuppy.export.gguf.published import name_of_ids
from mudpuppy.export.gguf.vocabulary_codes import CONTRADICTION, UNKNOWN_CUTS

NOT_NORMALISED = (
    "this tokenizer composes characters (NFC) before it reads them, llama.cpp does not: text with "
    "decomposed accents gets other tokens there"
)


@dataclass(frozen=True)
class PreTokenizer:
    """How a tokenizer cuts text, in llama.cpp's words."""

    name: str
    """llama.cpp's name."""
    notes: tuple[str, ...] = ()
    """What llama.cpp does otherwise."""


def find_pretokenizer(
    document: Mapping[str, Any], test_ids: Sequence[int], *, asked: str | None = None
) -> PreTokenizer:
    """Return llama.cpp's name for how a byte-level BPE tokenizer cuts text.

    Args:
        document: tokenizer.json.
        test_ids: the ids of `published.TEST_TEXT`, special tokens included.
        asked: the name that somebody gave; it is taken, and what speaks against it is noted.

    Raises:
        ModelError: llama.cpp knows no such way, the sources contradict each other, or the name that
            was given is none of llama.cpp's.
    """
    stages = describe_stages(document.get("pre_tokenizer"))
    ignores = bool(document["model"].get("ignore_merges"))
    rule = next((one for one in RULES if one.stages == stages), None)
    published = name_of_ids(test_ids)
    if asked is not None:
        return _as_asked(check_name(asked), rule, published, document)
    normalised = _read_normaliser(document.get("normalizer"))
    if rule is None:
        if published:
            return PreTokenizer(published, normalised)
        raise _unknown(stages)
    name = _choose(rule, published, document, ignores)
    return PreTokenizer(name, (*normalised, *([rule.differs] if rule.differs else [])))


def describe_change(
    stored: Mapping[str, Any], loaded: Mapping[str, Any], class_name: str
) -> tuple[str, ...]:
    """Return what is said where transformers does not cut text as the file says.

    Some of its classes put their own pre-tokenizer in place of the file's (GPT2Tokenizer leaves out
    that of SmolLM, which parts digits).

    Args:
        stored: tokenizer.json; empty where there is none.
        loaded: what transformers made of it.
        class_name: the class that it took.
    """
    if not stored:
        return ()
    stages = describe_stages(stored.get("pre_tokenizer"))
    if stages == describe_stages(loaded.get("pre_tokenizer")):
        return ()
    rule = next((one for one in RULES if one.stages == stages), None)
    names = () if rule is None else rule.names(bool(stored["model"].get("ignore_merges")))
    return (
        f"tokenizer.json cuts text otherwise than {class_name}, by which transformers loads it; it "
        "is exported as it is loaded"
        + (f" (--pre-tokenizer {names[0]} for the file's way)" if names else ""),
    )


def _as_asked(
    name: str, rule: Rule | None, published: str, document: Mapping[str, Any]
) -> PreTokenizer:
    """Return the name that was given, and what speaks against it."""
    notes = []
    if rule is not None and rule is not rule_of(name):
        found = (rule.merged or rule.kept).split()[0]
        notes.append(f"tokenizer.json cuts text as '{found}' does, and you asked for '{name}'")
    elif rule is None and published and published != name:
        notes.append(f"the vocabulary is that of '{published}', and you asked for '{name}'")
    try:
        notes += _read_normaliser(document.get("normalizer"))
    except ModelError as problem:
        notes.append(problem.message.partition(": ")[2])
    return PreTokenizer(name, tuple(notes))


def _choose(rule: Rule, published: str, document: Mapping[str, Any], ignores: bool) -> str:
    """Return the name for a known way of cutting.

    Raises:
        ModelError: the vocabulary is a published one that is cut otherwise, or llama.cpp has no
            name for it together with the tokenizer's use of merges.
    """
    names = rule.names(ignores)
    if published:
        if published not in f"{rule.kept} {rule.merged}".split():
            raise ModelError(
                f"{CONTRADICTION}: the ids are those of the published vocabulary '{published}', "
                f"and tokenizer.json cuts text as '{(rule.merged or rule.kept).split()[0]}' does",
                hint=f"--pre-tokenizer {published}, if the files are that model's; else look at "
                "pre_tokenizer in tokenizer.json",
            )
        return published
    if names:
        return names[0]
    other = rule.names(not ignores)[0]
    lost = unreachable_tokens(document)
    if lost:
        raise ModelError(
            f"{UNKNOWN_CUTS}: this tokenizer "
            + ("takes" if ignores else "does not take")
            + f" words that are tokens without merging them, and llama.cpp's '{other}' "
            + ("does not" if ignores else "does")
            + f": {len(lost):,} tokens would be read otherwise, such as {lost[0]!r}",
            hint=f"--pre-tokenizer {other} exports it nonetheless",
        )
    return other


def unreachable_tokens(document: Mapping[str, Any]) -> list[str]:
    """Return the tokens that no merges lead to: they are read only by who looks words up whole."""
    from tokenizers import models

    model = document["model"]
    plain = models.BPE(vocab=dict(model["vocab"]), merges=merge_pairs(model))
    added = {token["content"] for token in document.get("added_tokens") or ()}
    candidates = (token for token in model["vocab"] if token not in added)
    return [token for token in candidates if len(plain.tokenize(token)) != 1]


def merge_pairs(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the merges of a BPE in their order; older files write a pair as one text."""
    pairs = (one.split(" ", 1) if isinstance(one, str) else one for one in model["merges"])
    return [(left, right) for left, right in pairs]


def _unknown(stages: Sequence[str]) -> ModelError:
    """Return the refusal of a way of cutting that nobody knows."""
    said = "".join(f"\n    {printable(stage)}" for stage in stages) or " not at all"
    return ModelError(
        f"{UNKNOWN_CUTS}: tokenizer.json cuts text in a way that llama.cpp does not know:{said}",
        hint="--pre-tokenizer NAME takes a rule of llama.cpp's (--pre-tokenizer help lists them); "
        "compare ids before you trust the file",
    )


def describe_stages(pre_tokenizer: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return how text is cut: regular expressions in their order, `BYTES`, or what else it says.

    Two spellings of one expression give the same text.
    """
    if pre_tokenizer is None:
        return ()
    kind = pre_tokenizer.get("type")
    if kind == "Sequence":
        parts = pre_tokenizer.get("pretokenizers") or ()
        return tuple(stage for part in parts for stage in describe_stages(part))
    if kind == "ByteLevel":
        first = ("add_prefix_space",) if pre_tokenizer.get("add_prefix_space", True) else ()
        cut = (GPT2,) if pre_tokenizer.get("use_regex", True) else ()
        return (*first, *cut, BYTES)
    if kind == "Digits":
        return (DIGITS if pre_tokenizer.get("individual_digits") else DIGIT_RUNS,)
    if kind == "Punctuation":
        return (f"punctuation:{str(pre_tokenizer.get('behavior')).lower()}",)
    if kind == "Split":
        return (_describe_split(pre_tokenizer),)
    return (json.dumps(pre_tokenizer, ensure_ascii=False, sort_keys=True),)


def _describe_split(stage: Mapping[str, Any]) -> str:
    """Return the expression that text is split by; anything unusual stays as it is written."""
    pattern = stage.get("pattern") or {}
    expression = pattern.get("Regex")
    behaviour, inverted = stage.get("behavior"), bool(stage.get("invert"))
    if isinstance(expression, str):
        # What matches stays, what lies between goes: alike where an expression matches everything.
        covers = behaviour == "Removed" and inverted and expression.endswith(r"|\s+")
        if covers or (behaviour == "Isolated" and not inverted):
            return canonical(expression)
    return json.dumps(stage, ensure_ascii=False, sort_keys=True)


def canonical(expression: str) -> str:
    """Return an expression in the spelling of `RULES`."""
    for sign, written in (("\r", r"\r"), ("\n", r"\n"), ("\t", r"\t")):
        expression = expression.replace(sign, written)
    spelt = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    expression = expression.replace(spelt, r"(?i:'s|'t|'re|'ve|'m|'ll|'d)")
    return expression.replace(r"\p{N}{1}|", r"\p{N}|")


def _read_normaliser(normaliser: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return what is to be said of how text is changed first; llama.cpp changes nothing.

    Raises:
        ModelError: usual text is changed.
    """
    parts = _flat(normaliser)
    if not parts:
        return ()
    if all(part.get("type") == "NFC" for part in parts):
        return (NOT_NORMALISED,)
    said = ", ".join(json.dumps(part, ensure_ascii=False) for part in parts)
    raise ModelError(
        f"{UNKNOWN_CUTS}: the tokenizer changes text before it reads it ({printable(said)[:300]}), "
        "and llama.cpp does not",
        hint="--pre-tokenizer NAME exports it nonetheless; such text then gets other tokens",
    )


def _flat(normaliser: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """Return the steps of a normaliser."""
    if normaliser is None:
        return []
    if normaliser.get("type") == "Sequence":
        return [step for part in normaliser.get("normalizers") or () for step in _flat(part)]
    return [normaliser]
