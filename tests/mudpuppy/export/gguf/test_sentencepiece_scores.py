"""Scores for sentencepiece: found again from merges, or refused where none give their order."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mudpuppy.errors import ModelError
from mudpuppy.export.gguf.sentencepiece_scores import (
    Blanks,
    _list_cuts,
    _object_to_merges,
    read_blanks,
)
from mudpuppy.export.gguf.vocabulary import read_vocabulary
from mudpuppy.sentencepiece_file import BYTE, NORMAL
from tests.mudpuppy.export.gguf.folders import write_config, write_json

REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PREPEND = {"type": "Prepend", "prepend": "▁"}
IDLE = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}


def both(*steps):
    return {"type": "Sequence", "normalizers": list(steps)}


def metaspace(scheme: str, *, split: bool = False) -> dict:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer", "expected"),
    [
        (both(PREPEND, REPLACE), None, Blanks("always", splits=False)),  # Llama 2, Phi-3
        (REPLACE, None, Blanks("never", splits=False)),
        (REPLACE, IDLE, Blanks("never", splits=False)),  # Gemma
        (
            None,
            metaspace("first"),
            Blanks("first", splits=False, doubles=False),
        ),  # Llama
        (None, metaspace("always", split=True), Blanks("always", splits=True, doubles=False)),
        (None, None, None),
        (PREPEND, None, None),
        (both(REPLACE, {"type": "NFKC"}), None, None),
        (REPLACE, metaspace("first"), None),
        (None, {**metaspace("first"), "replacement": "_"}, None),
        (both(PREPEND, REPLACE), {"type": "Whitespace"}, None),
    ],
)
def test_how_blanks_are_written_is_read_from_the_file(normalizer, pre_tokenizer, expected):
    found = read_blanks({"normalizer": normalizer, "pre_tokenizer": pre_tokenizer})
    assert found == expected


MERGES = [["a", "b"], ["▁", "a"], ["▁", "ab"], ["▁a", "b"]]


def save(folder, merges, *, normalizer=None, pre_tokenizer=None, lacking=(), more=()):
    """Write a small tokenizer as sentencepiece's converted ones are written."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256) if n not in lacking)]
    pieces += ["▁", "a", "b", *more]
    made = [left + right for left, right in merges]
    pieces += [piece for piece in dict.fromkeys(made) if piece not in pieces]
    special = [
        {
            "id": number,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for number, text in enumerate(pieces[:3])
    ]
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": normalizer or both(PREPEND, REPLACE),
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: number for number, piece in enumerate(pieces)},
            "merges": merges,
        },
    }
    write_json(folder / "tokenizer.json", document)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", **names},
    )
    write_config(folder, len(pieces), model_type="phi3")
    return len(pieces)


def test_the_order_of_merges_becomes_scores(tmp_path):
    rows = save(tmp_path, MERGES)
    vocabulary = read_vocabulary(tmp_path, rows)
    scores = dict(zip(vocabulary.tokens, vocabulary.scores, strict=True))
    assert (scores["ab"], scores["▁a"], scores["▁ab"]) == (0, -1, -2)
    assert max(scores["a"], scores["b"], scores["▁"]) < -2
    assert vocabulary.kinds[3] == BYTE
    assert vocabulary.kinds[-1] == NORMAL
    assert vocabulary.add_space_prefix is True
    assert (vocabulary.model, vocabulary.pre, vocabulary.merges) == ("llama", "default", ())


def test_a_pair_that_is_not_in_the_list_is_refused(tmp_path):
    rows = save(tmp_path, MERGES[:3])
    with pytest.raises(ModelError, match=r"MP-V09.*'▁a' and 'b'") as caught:
        read_vocabulary(tmp_path, rows)
    assert "--pre-tokenizer default" in caught.value.hint
    vocabulary = read_vocabulary(tmp_path, rows, pre_tokenizer="default")
    assert "'▁a' and 'b'" in " ".join(vocabulary.notes)


def test_merges_of_one_token_that_do_not_follow_each_other_are_refused(tmp_path):
    rows = save(tmp_path, [MERGES[0], MERGES[1], MERGES[2], ["b", "a"], MERGES[3]])
    with pytest.raises(ModelError, match=r"MP-V09.*'▁ab' do not follow"):
        read_vocabulary(tmp_path, rows)


@given(
    st.sets(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=12),
    st.lists(st.tuples(st.text("ab", min_size=1, max_size=3), st.text("ab", min_size=1))),
)
def test_every_pair_that_would_join_is_counted(tokens, merges):
    vocabulary = dict.fromkeys(sorted(tokens), 0)
    every = [
        (left, right)
        for left, right in itertools.product(vocabulary, repeat=2)
        if left + right in vocabulary and (left, right) not in merges
    ]
    found = _object_to_merges({"vocab": vocabulary, "merges": merges}, vocabulary.keys() - tokens)
    if found is not None and "do not follow" in found.message:
        return
    assert (found is None) == (not every)
    assert found is None or f"would join {len(every):,} pairs" in found.message


def test_a_token_of_a_stranger_is_cut_in_few_places():
    vocabulary = dict.fromkeys(["a", "aa", "a" * 200_000], 0)
    assert _list_cuts(vocabulary) == {1: (), 2: (1,), 200_000: ()}


def test_missing_bytes_are_refused(tmp_path):
    rows = save(tmp_path, MERGES, lacking=(10, 200))
    with pytest.raises(ModelError, match=r"MP-V02.*2 of the 256.*<0x0A>"):
        read_vocabulary(tmp_path, rows, pre_tokenizer="default")


def test_tokens_with_characters_that_are_none_are_told(tmp_path):
    rows = save(tmp_path, MERGES, more=("aé",))
    assert "'aé'" in " ".join(read_vocabulary(tmp_path, rows).notes)


def test_gemmas_tab_is_its_own_token(tmp_path):
    rows = save(tmp_path, MERGES, lacking=(9,), more=("\t",))
    vocabulary = read_vocabulary(tmp_path, rows)
    assert vocabulary.kinds[vocabulary.tokens.index("\t")] == NORMAL


def test_text_that_is_changed_first_is_refused(tmp_path):
    rows = save(tmp_path, MERGES, normalizer=both({"type": "NFKC"}, PREPEND, REPLACE))
    with pytest.raises(ModelError, match=r"MP-V03.*NFKC"):
        read_vocabulary(tmp_path, rows)


def test_tokens_across_blanks_are_refused_where_text_is_cut_at_blanks(tmp_path):
    save(tmp_path, MERGES, pre_tokenizer=metaspace("always", split=True))
    document = tmp_path / "tokenizer.json"
    text = document.read_text(encoding="utf-8")
    start = text.index('"normalizer": ')
    end = text.index(', "pre_tokenizer"')
    document.write_text(text[:start] + '"normalizer": null' + text[end:], encoding="utf-8")
    assert read_vocabulary(tmp_path, 300).add_space_prefix is True
    crossing = [*MERGES, ["a", "▁"]]
    save(tmp_path, crossing, pre_tokenizer=metaspace("always", split=True))
    text = document.read_text(encoding="utf-8")
    start, end = text.index('"normalizer": '), text.index(', "pre_tokenizer"')
    document.write_text(text[:start] + '"normalizer": null' + text[end:], encoding="utf-8")
    with pytest.raises(ModelError, match=r"MP-V03.*'a▁'"):
        read_vocabulary(tmp_path, 300)
