"""Damaged tokenizers are told, with a code and what to do, and never end in a traceback."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from mudpuppy.errors import ModelError, UsageError
from mudpuppy.export.gguf import tokenizer_source
from mudpuppy.export.gguf.tokenizer_source import read_source
from mudpuppy.export.gguf.vocabulary import read_vocabulary
from tests.mudpuppy.export.gguf.folders import edit_json, save_byte_level, write_json


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "m"
    return save_byte_level(folder, pre_tokenizers.ByteLevel(add_prefix_space=False), size=400)


@pytest.fixture
def folder(made, tmp_path):
    for path in made.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def first_merge(value) -> list[str]:
    return value["model"]["merges"][0]


def drop(*keys):
    def change(value):
        for key in keys[:-1]:
            value = value[key]
        del value[keys[-1]]

    return change


def put(*keys_and_value):
    *keys, last, new = keys_and_value

    def change(value):
        for key in keys:
            value = value[key]
        value[last] = new

    return change


def lose_a_token(value):
    del value["model"]["vocab"]["".join(first_merge(value))]


def same_id(value):
    value["model"]["vocab"]["new one"] = 300


def another_id(value):
    value["added_tokens"].append({**value["added_tokens"][-1], "id": 400})


def not_utf8(value):
    value["model"]["vocab"]["\ud800"] = 400


DAMAGE = {
    "no model": (drop("model"), "MP-V01"),
    "no merges": (drop("model", "merges"), "MP-V0[12]"),
    "empty merges": (put("model", "merges", []), "MP-V01.*no merges"),
    "no vocabulary": (put("model", "vocab", {}), "MP-V01.*no vocab"),
    "vocabulary of lists": (put("model", "vocab", [["a", 0]]), "MP-V01.*no vocab"),
    "a unigram": (put("model", "type", "Unigram"), "MP-V02.*Unigram"),
    "a word piece": (put("model", "type", "WordPiece"), "MP-V02.*WordPiece"),
    "marked pieces": (put("model", "end_of_word_suffix", "</w>"), "MP-V02.*</w>"),
    "id that is text": (put("model", "vocab", "a", "7"), "MP-V01.*no number"),
    "id that is negative": (put("model", "vocab", "a", -1), "MP-V01.*no number"),
    "id that is true": (put("model", "vocab", "a", True), "MP-V01.*no number"),
    "merge of three": (put("model", "merges", 0, ["a", "b", "c"]), "MP-V01.*merge 0"),
    "merge of numbers": (put("model", "merges", 0, [1, 2]), "MP-V01.*merge 0"),
    "merge without its token": (lose_a_token, "MP-V01.*merge"),
    "one id, two tokens": (same_id, "MP-V07.*300"),
    "one token, two ids": (another_id, "MP-V07.*two ids"),
    "no UTF-8": (not_utf8, "MP-V01.*UTF-8"),
    "added token without id": (put("added_tokens", [{"content": "x"}]), "MP-V01.*added_tokens"),
    "unknown pre-tokenizer": (put("pre_tokenizer", {"type": "Nonsense"}), "MP-V01"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_has_a_code(name, folder):
    change, said = DAMAGE[name]
    edit_json(folder / "tokenizer.json", change)
    with pytest.raises(ModelError, match=f"(?s){said}") as caught:
        read_vocabulary(folder, 1000)
    assert caught.value.exit_code == 2
    assert caught.value.hint


def test_a_token_that_is_there_twice_is_told(folder):
    path = folder / "tokenizer.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"vocab": {', '"vocab": {"a": 5, ', 1), encoding="utf-8")
    with pytest.raises(ModelError, match=r"MP-V07.*'a' is there twice"):
        read_source(folder)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 20_000, b'{"model": 1e999}'])
def test_what_is_no_json_is_told(raw, folder):
    (folder / "tokenizer.json").write_bytes(raw)
    with pytest.raises(ModelError, match="MP-V01"):
        read_source(folder)


def test_no_tokenizer_is_told(tmp_path):
    with pytest.raises(ModelError, match=r"MP-V01.*no tokenizer.json"):
        read_source(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(ModelError, match=r"no vocab.json with merges.txt"):
        read_source(tmp_path)
    (tmp_path / "tekken.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tekken.json is not read") as caught:
        read_source(tmp_path)
    assert "save_pretrained" in caught.value.hint


def test_an_old_pair_of_files_is_read(folder):
    expected = read_vocabulary(folder, 400)
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (folder / "tokenizer.json").unlink()
    write_json(folder / "vocab.json", model["vocab"])
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    names = {"tokenizer_class": "GPT2Tokenizer", "unk_token": "<|stop|>"}
    edit_json(folder / "tokenizer_config.json", lambda value: value.update(names))
    edit_json(folder / "config.json", put("model_type", "gpt2"))
    found = read_vocabulary(folder, 400)
    assert (found.pre, found.tokens, found.merges) == ("gpt-2", expected.tokens, expected.merges)
    assert found.special.ids["eos"] == expected.special.ids["eos"]
    (folder / "merges.txt").write_text("#version: 0.2\na\n", encoding="utf-8")
    with pytest.raises(ModelError, match="MP-V01"):
        read_vocabulary(folder, 400)


@pytest.mark.parametrize("raw", [b"", b"IQ== 0\n", b"\n\xff\xff\xff\xff", b"\n\x05\n\x03abc"])
def test_a_damaged_tokenizer_model_is_told(raw, folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(raw)
    with pytest.raises(ModelError, match="MP-V0") as caught:
        read_vocabulary(folder, 1000)
    assert caught.value.hint


def test_a_package_that_is_missing_is_named(folder, monkeypatch):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\n\x05\n\x03abc")
    monkeypatch.setattr(tokenizer_source, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="needs the package sentencepiece") as caught:
        read_source(folder)
    assert caught.value.hint == "pip install 'mudpuppy[gguf]'"


@pytest.mark.parametrize("name", ["tokenizer_config.json", "config.json", "generation_config.json"])
def test_damaged_settings_are_told(name, folder):
    (folder / name).write_text("{")
    with pytest.raises(UsageError, match="MP-V01"):
        read_source(folder)


def test_code_of_the_folder_is_not_run(folder):
    (folder / "evil.py").write_text("raise SystemExit('run')")
    edit_json(
        folder / "tokenizer_config.json",
        lambda value: value.update(
            tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", None]}
        ),
    )
    try:
        source = read_source(folder)
    except ModelError as error:
        assert "MP-V01" in str(error)  # noqa: PT017 - either answer is right, running it is not
    else:
        assert source.document["model"]["type"] == "BPE"


@given(cut=st.integers(0, 4000), noise=st.binary(max_size=20))
def test_noise_never_ends_in_a_traceback(made, tmp_path_factory, cut, noise):
    folder = tmp_path_factory.mktemp("noise")
    for path in made.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    raw = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(raw[:cut] + noise + raw[cut:])
    try:
        read_vocabulary(folder, 1000)
    except UsageError as error:
        assert "MP-V0" in str(error)  # noqa: PT017 - noise may also be harmless


def test_what_transformers_loads_is_what_is_exported_and_told(folder):
    assert read_vocabulary(folder, 400).notes == ()
    # a class of transformers' own, whose pre-tokenizer is not the file's
    edit_json(folder / "config.json", put("model_type", "qwen2"))
    names = {"tokenizer_class": "Qwen2Tokenizer", "unk_token": None, "pad_token": "<|stop|>"}
    edit_json(folder / "tokenizer_config.json", lambda value: value.update(names))
    vocabulary = read_vocabulary(folder, 401)
    assert vocabulary.pre == "qwen2"
    said = " ".join(vocabulary.notes)
    assert "than Qwen2Tokenizer, by which transformers loads it" in said
    assert "--pre-tokenizer gpt-2 for the file's way" in said
    assert read_vocabulary(folder, 401, pre_tokenizer="gpt-2").pre == "gpt-2"
