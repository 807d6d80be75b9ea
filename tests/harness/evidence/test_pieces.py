"""The vocabulary of a sentencepiece model is read without its library, and damage is survived."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.doctor import diagnose
from harness.evidence.source import CheckpointEvidence
from harness.evidence.text.pieces import read_pieces
from harness.findings import Status
from harness.registry import Missing

WORDS = ["<unk>", "<s>", "</s>", "<0x00>", "▁the", "ä", "x" * 300]


def write_field(number: int, value: bytes) -> bytes:
    """Return a field of bytes as protocol buffers write it."""
    return write_number(number << 3 | 2) + write_number(len(value)) + value


def write_number(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def make_model(words: list[str]) -> bytes:
    """Return a sentencepiece model with scores, kinds, and settings behind the pieces."""
    score, kind = b"\x15\x00\x00\x80\xbf", b"\x18\x03"
    pieces = [write_field(1, write_field(1, word.encode()) + score + kind) for word in words]
    return b"".join(pieces) + write_field(2, b"\x20\x07") + write_field(3, b"\x0a\x03abc")


def test_the_order_of_the_pieces_is_their_id(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(make_model(WORDS))
    assert list(read_pieces(path)) == [(word, number) for number, word in enumerate(WORDS)]


def test_the_pieces_are_those_of_the_library(tmp_path):
    proto = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    model = proto.ModelProto()
    for word in WORDS:
        piece = model.pieces.add()
        piece.piece, piece.score, piece.type = word, -1.5, 1
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model.SerializeToString())
    assert [word for word, _ in read_pieces(path)] == WORDS


@given(st.binary(max_size=200), st.integers(0, 400))
def test_damage_is_survived(tmp_path_factory, noise, cut):
    path = tmp_path_factory.mktemp("m") / "tokenizer.model"
    whole = make_model(WORDS)
    path.write_bytes(whole[:cut] + noise + whole[cut:])
    with contextlib.suppress(Missing):
        assert all(isinstance(word, str) for word, _ in read_pieces(path))


def test_the_form_of_tiktoken_is_said_not_to_be_read(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_text("IQ== 0\nIg== 1\n")
    with pytest.raises(Missing, match="not read here"):
        list(read_pieces(path))
    path.unlink()
    (tmp_path / "tekken.json").write_text("{}")
    with pytest.raises(Missing, match="tekken"):
        CheckpointEvidence(tmp_path).get("token_ids")


def test_an_old_folder_is_judged_by_its_pieces(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(make_model(WORDS))
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "eos_token_id": 2}
    (tmp_path / "config.json").write_text(json.dumps({**config, "bos_token_id": 1}))
    found = {r.code: r.status for r in diagnose(tmp_path, select=["MPD808", "MPD809"]).probes}
    assert set(found.values()) == {Status.PASSED}
    (tmp_path / "config.json").write_text(json.dumps({**config, "eos_token_id": 1}))
    found = {r.code: r.status for r in diagnose(tmp_path, select=["MPD808", "MPD809"]).probes}
    assert found == {"MPD808": Status.SKIPPED, "MPD809": Status.FAILED}
