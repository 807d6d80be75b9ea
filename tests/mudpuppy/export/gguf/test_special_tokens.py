"""Which tokens begin and end: as the tokenizer works and generation stops."""

from __future__ import annotations

import pytest
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from mudpuppy.errors import ModelError
from mudpuppy.export.gguf.vocabulary import read_vocabulary
from tests.mudpuppy.export.gguf.folders import (
    TEMPLATE,
    edit_json,
    save_byte_level,
    write_config,
    write_json,
)

ROWS = 400


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "m"
    return save_byte_level(
        folder, pre_tokenizers.ByteLevel(add_prefix_space=False), size=ROWS, begins=True
    )


@pytest.fixture
def folder(made, tmp_path):
    for path in made.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def read(folder):
    return read_vocabulary(folder, ROWS).special


def change_settings(folder, **given):
    edit_json(folder / "tokenizer_config.json", lambda value: value.update(given))


def frame(folder, *single):
    """Put tokens around every text."""
    ids = {"<|begin|>": 0, "<|stop|>": 1, "<|user|>": 2, "<|bot|>": 3}
    parts = [
        {"Sequence": {"id": "A", "type_id": 0}}
        if one == "A"
        else {"SpecialToken": {"id": one, "type_id": 0}}
        for one in single
    ]
    known = {one: {"id": one, "ids": [ids[one]], "tokens": [one]} for one in single if one != "A"}
    processor = {
        "type": "TemplateProcessing",
        "single": parts,
        "pair": [*parts, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": known,
    }
    edit_json(folder / "tokenizer.json", lambda value: value.update(post_processor=processor))


def test_the_tokenizers_own_tokens_are_written(folder):
    special = read(folder)
    assert special.ids == {"bos": 0, "eos": 1}
    assert (special.add_bos, special.add_eos) == (True, False)
    assert special.notes == ()


@pytest.mark.parametrize(
    ("single", "bos", "eos"),
    [
        (("A",), False, False),
        (("<|begin|>", "A"), True, False),
        (("A", "<|stop|>"), False, True),
        (("<|begin|>", "A", "<|stop|>"), True, True),
    ],
)
def test_what_is_added_is_what_the_tokenizer_adds(single, bos, eos, folder):
    frame(folder, *single)
    special = read(folder)
    assert (special.add_bos, special.add_eos) == (bos, eos)
    assert special.notes == ()


def test_two_tokens_before_a_text_are_told(folder):
    frame(folder, "<|begin|>", "<|user|>", "A")
    special = read(folder)
    assert special.add_bos is False
    assert "<|begin|> <|user|>" in special.notes[0]


def test_another_first_and_last_token_are_told(folder):
    frame(folder, "<|user|>", "A", "<|bot|>")
    special = read(folder)
    assert special.ids["bos"] == 2
    assert special.ids["eos"] == 1
    assert (special.add_bos, special.add_eos) == (True, False)
    assert len(special.notes) == 2


def test_the_models_settings_fill_what_the_tokenizer_leaves_open(folder):
    change_settings(folder, bos_token=None)
    frame(folder, "A")
    write_config(folder, ROWS, bos_token_id=2, pad_token_id=3, eos_token_id=0)
    assert read(folder).ids == {"bos": 2, "eos": 1, "pad": 3, "eot": 0}


def test_the_settings_of_a_part_for_text_count(folder):
    write_config(folder, ROWS, text_config={"pad_token_id": 3})
    assert read(folder).ids["pad"] == 3


def test_ids_without_a_row_are_left_out(folder):
    write_config(folder, ROWS, pad_token_id=ROWS, mask_token_id=-1)
    assert read(folder).ids == {"bos": 0, "eos": 1}


def test_further_ends_become_ends_of_turns(folder):
    write_json(folder / "generation_config.json", {"eos_token_id": [1, 2, 3]})
    special = read(folder)
    assert (special.ids["eot"], special.ids["eom"]) == (2, 3)
    assert special.notes == ()
    write_json(folder / "generation_config.json", {"eos_token_id": [1, 2, 3, 0]})
    assert "'<|begin|>'" in read(folder).notes[0]


def test_ends_that_llama_cpp_knows_by_name_are_told(folder):
    edit_json(
        folder / "tokenizer.json",
        lambda value: value["added_tokens"][2].update(content="<|im_end|>"),
    )
    edit_json(
        folder / "tokenizer.json",
        lambda value: value["model"]["vocab"].update(
            {"<|im_end|>": value["model"]["vocab"].pop("<|user|>")}
        ),
    )
    change_settings(folder, extra_special_tokens=["<|im_end|>", "<|bot|>"])
    write_json(folder / "generation_config.json", {"eos_token_id": 1})
    assert "<|im_end|>" in read(folder).notes[0]
    write_json(folder / "generation_config.json", {"eos_token_id": [1, 2]})
    special = read(folder)
    assert "eot" not in special.ids  # found by its name
    assert special.notes == ()


def test_a_model_without_an_end_is_refused(folder):
    change_settings(folder, eos_token=None)
    with pytest.raises(ModelError, match="MP-V08") as caught:
        read(folder)
    assert "eos_token" in caught.value.hint
    write_config(folder, ROWS, eos_token_id=[1])
    assert read(folder).ids["eos"] == 1


def test_the_template_comes_along(folder):
    assert read_vocabulary(folder, ROWS).templates == {"default": TEMPLATE}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = {"default": TEMPLATE, "tools": "{{ 1 }}", "rag": "{{ 2 }}"}
    tokenizer.save_pretrained(folder)
    found = read_vocabulary(folder, ROWS).templates
    assert next(iter(found)) == "default"
    assert found == {"default": TEMPLATE, "tools": "{{ 1 }}", "rag": "{{ 2 }}"}


def test_a_template_without_a_first_token_is_told_that_it_is_empty(folder):
    change_settings(folder, bos_token=None)
    frame(folder, "A")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "Hi"}]
    expected = tokenizer.apply_chat_template(messages, tokenize=False)
    tokenizer.chat_template = read_vocabulary(folder, ROWS).templates["default"]
    assert 'bos_token = ""' in tokenizer.chat_template
    tokenizer.add_special_tokens({"bos_token": "<|bot|>"})  # as llama.cpp would have some
    assert tokenizer.apply_chat_template(messages, tokenize=False) == expected


def test_a_template_is_told_of_a_first_token_that_only_the_model_names(folder):
    change_settings(folder, bos_token=None)
    frame(folder, "A")
    write_config(folder, ROWS, bos_token_id=2)
    vocabulary = read_vocabulary(folder, ROWS)
    assert vocabulary.special.ids["bos"] == 2
    assert vocabulary.templates["default"].startswith('{%- set bos_token = "" %}\n')
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}{{ eos_token }}")
    assert read_vocabulary(folder, ROWS).templates["default"].startswith("{{ messages")


def test_no_template_is_none_and_told(folder):
    (folder / "chat_template.jinja").unlink()
    vocabulary = read_vocabulary(folder, ROWS)
    assert vocabulary.templates == {}
    assert "ChatML" in vocabulary.notes[-1]


def test_a_first_token_that_the_template_does_not_write_is_told(folder):
    template = folder / "chat_template.jinja"
    template.write_text("{{ messages[0].content }}")
    assert "'<|begin|>'" in read_vocabulary(folder, ROWS).notes[-1]
    template.write_text("<|begin|>{{ messages[0].content }}")
    assert read_vocabulary(folder, ROWS).notes == ()
    template.write_text("{{ messages[0].content }}")
    frame(folder, "A")
    assert read_vocabulary(folder, ROWS).notes == ()


def test_an_end_that_is_no_token_is_told(folder):
    plain = read(folder).notes
    edit_json(folder / "config.json", lambda found: found.update(eos_token_id=10**9))

    assert set(read(folder).notes) - set(plain) == {
        "config.json: eos_token_id 1000000000 is no token, and left out"
    }
