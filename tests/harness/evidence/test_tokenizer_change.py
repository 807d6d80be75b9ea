"""A tokenizer that cuts like the base's in other words is the same; one that does not is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.evidence.source import CheckpointEvidence
from harness.facts.chat import TokenizerChange

VOCAB = {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4, "ab": 5, "<reserved_7>": 6}
OLD_BLANKS = {
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    },
    "pre_tokenizer": None,
    "decoder": {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    },
}
NEW_BLANKS = {
    "normalizer": None,
    "pre_tokenizer": {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "first",
        "split": False,
    },
    "decoder": {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ],
    },
}
BYTES = {
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": r"\p{N}"}, "behavior": "Isolated"},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ],
    },
    "decoder": {"type": "ByteLevel"},
}


def compare(folder: Path, theirs: dict[str, Any], mine: dict[str, Any]) -> TokenizerChange:
    for name, value in (("base", theirs), ("mine", mine)):
        (folder / name).mkdir()
        (folder / name / "tokenizer.json").write_text(json.dumps(value))
    base = CheckpointEvidence(folder / "base")
    given = {"base_evidence": base}
    found: TokenizerChange = CheckpointEvidence(folder / "mine", given=given).get(
        "tokenizer_change"
    )
    return found


def make(steps: dict[str, Any], vocab: dict[str, int] = VOCAB, **model: Any) -> dict[str, Any]:
    settings = {"type": "BPE", "vocab": vocab, "merges": ["a b"], **model}
    return {"model": settings, "added_tokens": [], **steps}


def test_both_ways_of_writing_blanks_are_one(tmp_path):
    found = compare(tmp_path, make(OLD_BLANKS), make(NEW_BLANKS, merges=[["a", "b"]]))
    assert not found.parts
    assert not found.merges
    assert found.tokens == len(VOCAB)


def test_the_library_reads_both_ways_as_one(tmp_path):
    from tokenizers import Tokenizer

    made = [Tokenizer.from_str(json.dumps(make(one))) for one in (OLD_BLANKS, NEW_BLANKS)]
    first, second = (one.encode("ab a b").tokens for one in made)
    assert first == second


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"normalizer": None}, "normalizer and pre_tokenizer"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "normalizer and pre_tokenizer"),
        ({"decoder": {"type": "WordPiece"}}, "decoder"),
    ],
)
def test_another_way_of_cutting_is_found(tmp_path, change, part):
    assert set(compare(tmp_path, make(BYTES), make({**BYTES, **change})).parts) == {part}


def test_settings_of_the_model_inside_count(tmp_path):
    found = compare(tmp_path, make(OLD_BLANKS, byte_fallback=True), make(OLD_BLANKS))
    assert set(found.parts) == {"model.byte_fallback"}


def test_added_and_renamed_tokens_are_told_from_moved_and_lost_ones(tmp_path):
    vocab = {**VOCAB, "<tool>": 6, "new": 7, "a": 4, "b": 3}
    del vocab["<reserved_7>"], vocab["</s>"]
    found = compare(tmp_path, make(BYTES), make(BYTES, vocab))
    assert found.moved == {"b": (4, 3), "a": (3, 4)}
    assert found.removed == ("</s>",)
    assert found.renamed == {"<reserved_7>": "<tool>"}
    assert found.added == 1
