"""llama.cpp's name for how text is cut: by what tokenizer.json says, by its ids, or refused."""

from __future__ import annotations

import hashlib
import json

import pytest

from harness.probes import gguf_pretokenizer_unknown
from mudpuppy.errors import ModelError
from mudpuppy.export.gguf import pretokenizer_rules as rules
from mudpuppy.export.gguf import published
from mudpuppy.export.gguf.pretokenizers import (
    NOT_NORMALISED,
    describe_stages,
    find_pretokenizer,
    unreachable_tokens,
)

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
MODEL = {
    "type": "BPE",
    "ignore_merges": False,
    "vocab": {"a": 0, "b": 1, "ab": 2, "<x>": 3},
    "merges": [["a", "b"]],
}
ADDED = [{"id": 3, "content": "<x>", "special": True}]


def split(expression: str, behaviour: str = "Isolated", *, invert: bool = False) -> dict:
    return {
        "type": "Split",
        "pattern": {"Regex": expression},
        "behavior": behaviour,
        "invert": invert,
    }


def sequence(*parts: dict) -> dict:
    return {"type": "Sequence", "pretokenizers": list(parts)}


def document(pre_tokenizer, *, ignore=False, normalizer=None, **model) -> dict:
    return {
        "pre_tokenizer": pre_tokenizer,
        "normalizer": normalizer,
        "added_tokens": ADDED,
        "model": {**MODEL, "ignore_merges": ignore, **model},
    }


def known_ids(monkeypatch, name: str) -> list[int]:
    """Return ids that count as those of a published vocabulary."""
    digest = hashlib.sha256(b"[5, 6]").hexdigest()
    monkeypatch.setitem(published._NAMES, digest, name)
    return [5, 6]


@pytest.mark.parametrize(
    ("expression", "ignore", "name"),
    [
        (rules.LLAMA3, True, "llama-bpe"),
        (rules.LLAMA3, False, "smaug-bpe"),
        (rules.QWEN2, False, "qwen2"),
        (rules.TEKKEN, True, "tekken"),
        (rules.GPT4O, False, "gpt-4o"),
    ],
)
@pytest.mark.parametrize("behaviour", ["Isolated", "Removed"])
def test_an_expression_has_one_name(expression, ignore, name, behaviour):
    stage = split(expression, behaviour, invert=behaviour == "Removed")
    assert find_pretokenizer(document(sequence(stage, BYTES), ignore=ignore), []).name == name


def test_the_expressions_are_those_of_the_published_files():
    # as the files of Llama 3 and Qwen 2 have them, with line ends as they are or escaped
    start = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    rest = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    llama, qwen = start + r"\p{N}{1,3}" + rest, start + r"\p{N}" + rest
    assert describe_stages(split(llama)) == (rules.LLAMA3,)
    assert describe_stages(split(qwen)) == (rules.QWEN2,)
    raw = qwen.replace(r"\r", "\r").replace(r"\n", "\n")
    assert describe_stages(split(raw)) == (rules.QWEN2,)


def test_stages_keep_their_order_and_count():
    single = {"type": "Digits", "individual_digits": True}
    assert find_pretokenizer(document(sequence(single, GPT2)), []).name == "smollm"
    assert find_pretokenizer(document(GPT2), []).name == "gpt-2"
    for odd in (sequence(GPT2, single), sequence(single, single, GPT2), BYTES, None):
        with pytest.raises(ModelError, match="MP-V03"):
            find_pretokenizer(document(odd), [])


@pytest.mark.parametrize(
    "odd",
    [
        {**GPT2, "add_prefix_space": True},
        {"type": "ByteLevel"},  # a missing add_prefix_space is a true one
        sequence(split(r"\p{L}+|\x1b[31m", "Isolated"), BYTES),
        sequence(split(rules.LLAMA3, "MergedWithNext"), BYTES),
        sequence(split(rules.LLAMA3, "Removed"), BYTES),
        {"type": "Whitespace"},
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
    ],
)
def test_what_llama_cpp_does_not_know_is_refused_and_shown(odd):
    with pytest.raises(ModelError) as caught:
        find_pretokenizer(document(odd, ignore=True), [])
    assert "MP-V03" in str(caught.value)
    assert "--pre-tokenizer" in caught.value.hint
    assert "\x1b" not in str(caught.value)


def test_a_published_vocabulary_is_known_by_its_ids(monkeypatch):
    ids = known_ids(monkeypatch, "chameleon")
    odd = sequence(split("[a-z]"), BYTES)
    assert find_pretokenizer(document(odd), ids).name == "chameleon"
    with pytest.raises(ModelError, match="MP-V03"):
        find_pretokenizer(document(odd), [5, 7])


def test_both_sources_must_agree(monkeypatch):
    ids = known_ids(monkeypatch, "deepseek-r1-qwen")
    stage = sequence(split(rules.QWEN2), BYTES)
    assert find_pretokenizer(document(stage), ids).name == "deepseek-r1-qwen"
    with pytest.raises(ModelError, match=r"MP-V05.*deepseek-r1-qwen.*smaug-bpe"):
        find_pretokenizer(document(sequence(split(rules.LLAMA3), BYTES)), ids)


def test_whole_words_without_merges_matter_only_where_merges_do_not_reach_them():
    stage = sequence(split(rules.QWEN2), BYTES)
    assert unreachable_tokens(document(stage)) == []
    assert find_pretokenizer(document(stage, ignore=True), []).name == "qwen2"
    vocab = {**MODEL["vocab"], "abab": 4}
    with pytest.raises(ModelError, match=r"MP-V03.*'qwen2' does not.*'abab'"):
        find_pretokenizer(document(stage, ignore=True, vocab=vocab), [])


def test_a_name_that_is_given_is_taken_and_what_speaks_against_it_is_told():
    stage = sequence(split(rules.QWEN2), BYTES)
    found = find_pretokenizer(document(stage), [], asked="llama-bpe")
    assert found.name == "llama-bpe"
    assert found.notes == (
        "tokenizer.json cuts text as 'qwen2' does, and you asked for 'llama-bpe'",
    )
    assert find_pretokenizer(document(stage), [], asked="stablelm2").notes == ()
    assert find_pretokenizer(document(sequence(split("x"), BYTES)), [], asked="qwen2").notes == ()
    with pytest.raises(ModelError, match=r"MP-V04.*did you mean 'qwen2'"):
        find_pretokenizer(document(stage), [], asked="qwen-2")


def test_composing_is_told_and_other_changes_are_refused():
    stage = sequence(split(rules.QWEN2), BYTES)
    composed = find_pretokenizer(document(stage, normalizer={"type": "NFC"}), [])
    assert composed.notes == (NOT_NORMALISED,)
    lower = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}
    with pytest.raises(ModelError, match=r"MP-V03.*Lowercase"):
        find_pretokenizer(document(stage, normalizer=lower), [])
    found = find_pretokenizer(document(stage, normalizer=lower), [], asked="qwen2")
    assert "Lowercase" in " ".join(found.notes)


def test_what_llama_cpp_approximates_is_told():
    stage = sequence(split(rules.TEKKEN), BYTES)
    assert rules.CASELESS in find_pretokenizer(document(stage, ignore=True), []).notes


def test_every_name_is_llama_cpps():
    assert set(rules.NAMES) == gguf_pretokenizer_unknown.KNOWN
    used = {name for rule in rules.RULES for name in f"{rule.kept} {rule.merged}".split()}
    assert used <= set(rules.NAMES)
    assert set(published._NAMES.values()) <= set(rules.NAMES)
    assert len({rule.stages for rule in rules.RULES}) == len(rules.RULES)


def test_the_hash_is_that_of_the_list_as_python_writes_it(monkeypatch):
    digest = hashlib.sha256(json.dumps([1, 22]).encode()).hexdigest()
    monkeypatch.setitem(published._NAMES, digest, "found")
    assert published.name_of_ids((1, 22)) == "found"
    assert published.name_of_ids([1, 2]) == ""
