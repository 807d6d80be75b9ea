"""Evidence about how tokenizer.json differs from that of the base model: ids, merges, cutting."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from harness.evidence.files.inventory import read_settings
from harness.evidence.source import CheckpointEvidence, provides
from harness.evidence.text.naming import RESERVED, find_begins
from harness.facts.chat import TokenizerChange
from harness.facts.checkpoint import Files
from harness.facts.tokenizers import GENERAL
from harness.registry import Missing, NotApplicable

FILE = "tokenizer.json"
LISTED = 5
"""Tokens that are listed by name."""
_MODEL_SETTINGS = {
    "type": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "byte_fallback": False,
    "ignore_merges": False,
}
"""Settings of the model inside that decide how texts are cut, and what absence means."""


@provides("tokenizer_change")
def compare_tokenizers(evidence: CheckpointEvidence) -> TokenizerChange:
    """Return how this tokenizer.json differs from the base's.

    Raises:
        Missing: there is no base, or its tokenizer cannot be read.
    """
    files: Files = evidence.get("files")
    if FILE not in files.names:
        raise NotApplicable(f"there is no {FILE}")
    base: CheckpointEvidence = evidence.get("base_evidence")
    theirs_files: Files = base.get("files")
    if FILE not in theirs_files.names:
        raise Missing(f"the base {base.folder} has no {FILE} to compare with")
    mine, theirs = read_settings(evidence, FILE), read_settings(base, FILE)
    ids: Mapping[str, int] = evidence.get("token_ids")
    their_ids: Mapping[str, int] = base.get("token_ids")
    return TokenizerChange(
        base=str(base.folder),
        merges=_compare_merges(_model(theirs), _model(mine)),
        parts=dict(_compare_parts(theirs, mine)),
        begins=(
            tuple(find_begins(theirs.get("post_processor"))),
            tuple(find_begins(mine.get("post_processor"))),
        ),
        rebuilt_as=_find_rebuilding(_read_class(base), _read_class(evidence)),
        **_compare_ids(their_ids, ids),
    )


def _read_class(evidence: CheckpointEvidence) -> str:
    try:
        return str(read_settings(evidence, "tokenizer_config.json").get("tokenizer_class"))
    except Missing:
        return ""


def _find_rebuilding(theirs: str, mine: str) -> str:
    """Return the class that AutoTokenizer of transformers 5 makes of a tokenizer of no family.

    It goes by the model's type then, and classes such as Qwen2Tokenizer bring their own rules.
    """
    return mine[:60] if theirs in GENERAL and mine.endswith("Tokenizer") else ""


def _model(tokenizer: Mapping[str, Any]) -> Mapping[str, Any]:
    model = tokenizer.get("model")
    return model if isinstance(model, dict) else {}


def _compare_ids(theirs: Mapping[str, int], mine: Mapping[str, int]) -> dict[str, Any]:
    moved = {t: (n, mine[t]) for t, n in theirs.items() if t in mine and mine[t] != n}
    lost = [text for text in theirs if text not in mine]
    texts = {number: text for text, number in mine.items()} if lost else {}
    renamed = {t: texts[theirs[t]] for t in lost if RESERVED.search(t) and theirs[t] in texts}
    removed = [text for text in lost if text not in renamed]
    kept = len(theirs) - len(moved) - len(lost)
    return {
        "tokens": kept,
        "moved": dict(sorted(moved.items(), key=lambda item: item[1])[:LISTED]),
        "moved_count": len(moved),
        "removed": tuple(removed[:LISTED]),
        "removed_count": len(removed),
        "renamed": dict(list(renamed.items())[:LISTED]),
        "added": sum(text not in theirs for text in mine) - len(renamed),
    }


def _compare_merges(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> str:
    """Return how the merges differ: how many there are, or the first that is another."""
    old, new = theirs.get("merges"), mine.get("merges")
    if not isinstance(old, list) or not isinstance(new, list):
        return "" if isinstance(old, list) == isinstance(new, list) else "only one has merges"
    if len(old) != len(new):
        return f"{len(new):,} merges where the base has {len(old):,}"
    for number, (left, right) in enumerate(zip(old, new, strict=True)):
        if left != right and _pair(left) != _pair(right):
            return (
                f"merge {number:,} is {_pair(right)[:60]!r} where the base has {_pair(left)[:60]!r}"
            )
    return ""


def _pair(merge: Any) -> str:
    """Return a merge as one text: a text with a blank, or a list of two."""
    return " ".join(str(one) for one in merge) if isinstance(merge, list) else str(merge)


def _compare_parts(
    theirs: Mapping[str, Any], mine: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[str, str]]]:
    for name in ("normalizer and pre_tokenizer", "decoder"):
        read = _cuts if name != "decoder" else _joins
        old, new = read(theirs), read(mine)
        if old != new:
            yield name, (old, new)
    old_model, new_model = _model(theirs), _model(mine)
    for key, absent in _MODEL_SETTINGS.items():
        left, right = (one.get(key) or absent for one in (old_model, new_model))
        if left != right and (key != "type" or (left is not None and right is not None)):
            yield f"model.{key}", (str(left)[:60], str(right)[:60])


def _cuts(tokenizer: Mapping[str, Any]) -> str:
    """Return how a text is cut before the model sees it, in a form that equals mean alike.

    What sentencepiece's blanks need is written in several ways, which the libraries turn into each
    other when they save: they all become `blanks`.
    """
    steps = [*_flatten(tokenizer.get("normalizer")), *_flatten(tokenizer.get("pre_tokenizer"))]
    blanks = any("\u2581" in json.dumps(step, ensure_ascii=False) for step in steps)
    told = [_tell(step) for step in steps if not (blanks and _is_blank(step))]
    return ", ".join(["blanks"] * blanks + [one for one in told if one])


def _is_blank(step: Mapping[str, Any]) -> bool:
    return step.get("type") in ("Metaspace", "Prepend", "Strip", "Replace") or (
        step.get("type") == "Split"
        and step.get("pattern") in ({"String": " "}, {"String": "\u2581"})
    )


def _joins(tokenizer: Mapping[str, Any]) -> str:
    """Return the kinds of the decoder's steps that are not about blanks."""
    kinds = [str(step.get("type"))[:40] for step in _flatten(tokenizer.get("decoder"))]
    about_blanks = ("Metaspace", "Replace", "Strip", "Fuse")
    return ", ".join(kind for kind in kinds if kind not in about_blanks)


def _flatten(step: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of a sequence in order."""
    if not isinstance(step, dict) or depth > 5:
        return
    several = step.get("normalizers") or step.get("pretokenizers") or step.get("decoders")
    if not isinstance(several, list):
        yield step
        return
    for one in several[:50]:
        yield from _flatten(one, depth + 1)


def _tell(step: Mapping[str, Any]) -> str:
    """Return what a step does: its type, its pattern, and settings that are not their default."""
    kind, pattern = str(step.get("type"))[:40], step.get("pattern")
    said = [kind]
    if isinstance(pattern, dict):
        said.append(str(next(iter(pattern.values()), ""))[:400])
    for key, usual in (
        ("behavior", None),
        ("invert", False),
        ("add_prefix_space", False),
        ("use_regex", True),
        ("individual_digits", False),
        ("lowercase", None),
        ("strip_accents", None),
    ):
        value = step.get(key, usual)
        if value is not None and value != usual:
            said.append(f"{key}={str(value)[:20]}")
    return " ".join(said)
