"""Tokens that a vocabulary has and no text becomes: told as the tokenizers library has it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from harness.evidence.text.chat import find_split
from harness.selftest.healthy.chat_models import STYLES
from harness.selftest.ward import Recovery


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    return Recovery(tmp_path_factory.mktemp("ward"))


def is_one(tokenizer: dict, text: str) -> bool:
    """Whether the library makes one token of a text."""
    made = Tokenizer.from_str(json.dumps(tokenizer))
    return len(made.encode(text, add_special_tokens=False).ids) == 1


@pytest.mark.parametrize("style", ["chatml", "thinking", "headers", "turns"])
def test_special_tokens_are_split_when_they_are_not_added(ward, style):
    path: Path = ward.get(f"chat-{style}").path
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    specials = STYLES[style].specials
    assert all(is_one(tokenizer, text) for text in specials)

    tokenizer["added_tokens"] = []
    assert not any(is_one(tokenizer, text) for text in specials)
    assert find_split(tokenizer["model"], specials) == set(specials)


PAIRS = st.lists(st.tuples(st.sampled_from("<ab>"), st.sampled_from("<ab>")), max_size=4)


@settings(max_examples=200, deadline=None)
@given(PAIRS, st.lists(st.integers(0, 20), max_size=4), st.booleans())
def test_what_is_told_to_be_split_is_never_one_token(pairs, picked, as_text):
    """Merges of letters, then of what they made; the markers `<a>` and `<b>` are in the middle."""
    pieces = ["<", "a", "b", ">"]
    merges = []
    for left, right in pairs:
        merges.append([left, right])
        pieces.append(left + right)
    for number in picked:
        left, right = pieces[number % len(pieces)], pieces[(number * 7 + 1) % len(pieces)]
        merges.append([left, right])
        pieces.append(left + right)
    texts = ["<a>", "<b>", "<ab>"]
    vocab = {text: number for number, text in enumerate(dict.fromkeys([*pieces, *texts]))}
    said = [" ".join(one) for one in merges] if as_text else merges
    model = {"type": "BPE", "vocab": vocab, "merges": said}
    tokenizer = {"version": "1.0", "model": model, "added_tokens": []}

    for text in find_split(model, texts):
        assert not is_one(tokenizer, text)
    made = {left + right for left, right in merges}
    assert find_split(model, texts) == {text for text in texts if text not in made}


@pytest.mark.parametrize(
    "model",
    [
        None,
        {},
        {"type": ["BPE"], "merges": []},
        {"type": "Unigram", "vocab": [["<a>", 0.0]]},
        {"type": "WordLevel", "vocab": {"<a>": 0}},
        {"type": "BPE", "merges": "no list"},
        {"type": "BPE", "merges": [], "ignore_merges": True},
    ],
)
def test_of_other_models_nothing_is_said(model):
    assert find_split(model, ["<a>"]) == frozenset()


@pytest.mark.parametrize("merges", [[3, None, ["<a>"], ["<", 3], "<a>", [["<"], ">"]], [[]]])
def test_merges_of_a_stranger_are_read_or_passed_over(merges):
    assert find_split({"merges": merges}, ["<z>"]) == {"<z>"}
