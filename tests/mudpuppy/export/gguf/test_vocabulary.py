"""A whole vocabulary: rows, kinds, padding, names, and what lands in the file."""

from __future__ import annotations

import pytest

from mudpuppy.errors import ModelError
from mudpuppy.export.gguf import pretokenizer_rules as rules
from mudpuppy.export.gguf.vocabulary import read_vocabulary
from mudpuppy.sentencepiece_file import CONTROL, NORMAL, UNUSED, USER_DEFINED
from tests.mudpuppy.export.gguf.folders import edit_json, save_byte_level, split_by

gguf = pytest.importorskip("gguf", reason="pip install gguf writes the file")

ROWS = 400


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "m"
    return save_byte_level(folder, split_by(rules.QWEN2), size=ROWS)


@pytest.fixture
def folder(made, tmp_path):
    for path in made.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def add_token(folder, text: str, number: int, **more) -> None:
    token = {
        "id": number,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": False,
        **more,
    }
    edit_json(folder / "tokenizer.json", lambda value: value["added_tokens"].append(token))


def test_every_row_has_a_token_and_a_kind(folder):
    vocabulary = read_vocabulary(folder, ROWS)
    assert len(vocabulary.tokens) == len(vocabulary.kinds) == ROWS
    assert vocabulary.tokens[:4] == ("<|begin|>", "<|stop|>", "<|user|>", "<|bot|>")
    assert set(vocabulary.kinds[:4]) == {CONTROL}
    assert set(vocabulary.kinds[4:]) == {NORMAL}
    assert (vocabulary.model, vocabulary.pre) == ("gpt2", "qwen2")
    assert (vocabulary.scores, vocabulary.add_space_prefix) == ((), None)
    assert vocabulary.notes == ()


def test_rows_without_a_token_are_filled(folder):
    vocabulary = read_vocabulary(folder, ROWS + 2)
    assert vocabulary.tokens[-2:] == ("[PAD400]", "[PAD401]")
    assert vocabulary.kinds[-2:] == (UNUSED, UNUSED)
    assert "2 of 402 rows" in vocabulary.notes[0]


def test_gaps_between_ids_are_filled(folder):
    def move_the_last(value):
        vocab = value["model"]["vocab"]
        vocab[max(vocab, key=vocab.get)] = ROWS + 2

    edit_json(folder / "tokenizer.json", move_the_last)
    vocabulary = read_vocabulary(folder, ROWS + 3)
    assert vocabulary.tokens[ROWS - 1 : -1] == ("[PAD399]", "[PAD400]", "[PAD401]")
    assert vocabulary.kinds[ROWS - 1 :] == (UNUSED, UNUSED, UNUSED, NORMAL)


def test_a_filling_never_takes_a_tokens_text(folder):
    add_token(folder, "[PAD401]", ROWS)
    vocabulary = read_vocabulary(folder, ROWS + 2)
    assert vocabulary.tokens[ROWS:] == ("[PAD401]", "[PAD401]_")


def test_more_tokens_than_rows_are_refused_with_what_to_type(folder):
    with pytest.raises(ModelError, match=r"MP-V06.*399 rows") as caught:
        read_vocabulary(folder, ROWS - 1, architecture="qwen2")
    assert "embedding of this qwen2" in str(caught.value)
    assert "resize_token_embeddings" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "more", "kind", "written"),
    [
        ("<tool>", {}, USER_DEFINED, "<tool>"),
        ("<tool>", {"special": True}, CONTROL, "<tool>"),
        ("<|fim|>", {}, CONTROL, "<|fim|>"),
        ("<unused7>", {}, CONTROL, "<unused7>"),
        ("a▁b", {}, USER_DEFINED, "a b"),
        ("naïve", {}, USER_DEFINED, "naïve"),
    ],
)
def test_added_tokens_have_their_kind(text, more, kind, written, folder):
    add_token(folder, text, ROWS, **more)
    vocabulary = read_vocabulary(folder, ROWS + 1)
    assert (vocabulary.tokens[ROWS], vocabulary.kinds[ROWS]) == (written, kind)


def test_one_text_for_two_rows_is_refused(folder):
    add_token(folder, "a▁b", ROWS)
    add_token(folder, "a b", ROWS + 1)
    with pytest.raises(ModelError, match=r"MP-V07.*'a b' has the ids 400 and 401"):
        read_vocabulary(folder, ROWS + 2)


@pytest.mark.parametrize("how", ["lstrip", "rstrip", "single_word"])
def test_what_llama_cpp_does_not_do_around_tokens_is_told(how, folder):
    add_token(folder, "<tool>", ROWS, **{how: True})
    assert "'<tool>'" in read_vocabulary(folder, ROWS + 1).notes[0]


def test_names_with_phi_3_are_for_vocabularies_that_strip_as_it_does(folder):
    vocabulary = read_vocabulary(folder, ROWS)
    assert vocabulary.fitting_name("Mine") == "Mine"
    assert vocabulary.fitting_name("tiny-phi3 of PHI-3") == "tiny-phi 3 of PHI 3"


def test_a_vocabulary_that_strips_as_phi_3_gets_its_name(folder):
    texts = {"<unk>": False, "<s>": False, "</s>": True, "<|endoftext|>": False}
    for number, (text, strips) in enumerate(texts.items()):
        add_token(folder, text, ROWS + number, special=True, rstrip=strips)

    def strip(value):
        for token in value["added_tokens"][:4]:
            token["rstrip"] = True

    edit_json(folder / "tokenizer.json", strip)
    vocabulary = read_vocabulary(folder, ROWS + 4)
    assert vocabulary.strips_blanks
    assert vocabulary.fitting_name("Mine") == "Mine (Phi-3)"
    assert vocabulary.fitting_name("my-phi-3") == "my-phi-3"


def test_the_file_says_what_the_vocabulary_is(folder, tmp_path):
    vocabulary = read_vocabulary(folder, ROWS + 1)
    writer = gguf.GGUFWriter(tmp_path / "v.gguf", "qwen2")
    vocabulary.write(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    fields = gguf.GGUFReader(tmp_path / "v.gguf").fields
    found = {
        name.removeprefix("tokenizer."): field.contents()
        for name, field in fields.items()
        if name.startswith("tokenizer.")
    }
    assert found == {
        "ggml.model": "gpt2",
        "ggml.pre": "qwen2",
        "ggml.tokens": list(vocabulary.tokens),
        "ggml.token_type": list(vocabulary.kinds),
        "ggml.merges": list(vocabulary.merges),
        "ggml.bos_token_id": 0,
        "ggml.eos_token_id": 1,
        "ggml.add_bos_token": False,
        "ggml.add_eos_token": False,
        "chat_template": vocabulary.templates["default"],
    }
