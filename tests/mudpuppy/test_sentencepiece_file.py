"""Pieces, scores and kinds of a sentencepiece model are those that its own library tells."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mudpuppy.sentencepiece_file import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    BadModel,
    Piece,
    read_pieces,
)
from tests.mudpuppy.export.gguf.folders import save_sentencepiece

sentencepiece = pytest.importorskip("sentencepiece", reason="pip install sentencepiece")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = save_sentencepiece(tmp_path_factory.mktemp("m"), user_defined_symbols=["<a b>"])
    return folder / "tokenizer.model"


def test_pieces_scores_and_kinds_are_the_librarys(model):
    library = sentencepiece.SentencePieceProcessor(model_file=str(model))
    kinds = {
        UNKNOWN: library.IsUnknown,
        CONTROL: library.IsControl,
        BYTE: library.IsByte,
    }
    expected = []
    for number in range(library.GetPieceSize()):
        text = library.IdToPiece(number)
        kind = next((kind for kind, asks in kinds.items() if asks(number)), NORMAL)
        kind = USER_DEFINED if text == "<a b>" else kind
        expected.append(Piece(text, library.GetScore(number), kind))
    assert list(read_pieces(model)) == expected
    assert {piece.kind for piece in expected} == {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE}


@given(cut=st.integers(0, 3000), noise=st.binary(max_size=30))
def test_damage_is_told_or_harmless(model, tmp_path_factory, cut, noise):
    path = tmp_path_factory.mktemp("damaged") / "tokenizer.model"
    raw = model.read_bytes()
    path.write_bytes(raw[:cut] + noise)
    with contextlib.suppress(BadModel):
        assert all(isinstance(piece.score, float) for piece in read_pieces(path))
