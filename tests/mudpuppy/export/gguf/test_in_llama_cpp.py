"""Every family of tokenizers reads text in llama.cpp as it does in transformers, id by id."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, pre_tokenizers
from transformers import AutoTokenizer

from mudpuppy.export.gguf import pretokenizer_rules as rules
from mudpuppy.export.gguf.sentencepiece_scores import DOUBLED
from mudpuppy.export.gguf.vocabulary import read_vocabulary
from mudpuppy.sentencepiece_file import NORMAL, USER_DEFINED
from mudpuppy.tiny import resolve_model
from tests.mudpuppy.export.gguf.folders import (
    count_rows,
    edit_json,
    save_byte_level,
    save_sentencepiece,
    write_config,
)
from tests.mudpuppy.export.gguf.texts import EVERYTHING

pytest.importorskip("gguf", reason="pip install gguf writes the model for llama.cpp")
pytest.importorskip("xllamacpp", reason="pip install xllamacpp brings a llama.cpp server")

from tests.mudpuppy.export.gguf.llama_cpp import LlamaCpp, Refused, write_model


@pytest.fixture(scope="module")
def llama_cpp() -> Iterator[LlamaCpp]:
    process = LlamaCpp()
    yield process
    process.close()


def stages(*parts: Any) -> Any:
    """Return a pre-tokenizer of expressions and others, in their order."""
    made = [
        pre_tokenizers.Split(Regex(part), "isolated") if isinstance(part, str) else part
        for part in parts
    ]
    return pre_tokenizers.Sequence(made)


def plain_bytes() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def gpt2_bytes() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def digits(*, single: bool) -> Any:
    return pre_tokenizers.Digits(individual_digits=single)


def cut_by(name: str) -> Any:
    """Return the pre-tokenizer of a rule, written as its published tokenizers do."""
    rule = rules.rule_of(name)
    parts: list[Any] = []
    for stage in rule.stages:
        if stage == rules.BYTES:
            parts += [] if rules.GPT2 in rule.stages else [plain_bytes()]
        elif stage == rules.GPT2:
            parts.append(gpt2_bytes())
        elif stage in (rules.DIGITS, rules.DIGIT_RUNS):
            parts.append(digits(single=stage == rules.DIGITS))
        elif stage == "punctuation:contiguous":
            parts.append(pre_tokenizers.Punctuation("contiguous"))
        else:
            parts.append(stage)
    return stages(*parts)


BYTE_LEVEL = [names[0] for rule in rules.RULES for names in map(rule.names, (True, False)) if names]
OTHERWISE = {
    "tekken": {"decomposed", "hindi", "the converter's"},
    "gpt-4o": {"decomposed", "hindi"},
}
"""Texts that llama.cpp reads otherwise, by rule: it knows no combining marks there."""


MARKED_UP = {
    "special": "<|user|>Hi<|stop|>\n <|bot|> there<|begin|>",
    "special alone": "<|stop|>",
    "nearly special": "<|stop |> <|stop <stop|> |>",
}
"""Texts with special tokens inside; a tokenizer without them reads plain text."""


def differing(folder: Path, server: Any, texts: dict[str, str]) -> dict[str, tuple[Any, Any]]:
    """Return the texts whose ids differ, with both."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = {}
    for name, text in texts.items():
        ours = tokenizer.encode(text)
        theirs = server.tokenize(text, add_special=True)
        if ours != theirs:
            found[name] = tuple(map(tokenizer.convert_ids_to_tokens, (ours, theirs)))
    return found


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_byte_level_reads_alike(name, tmp_path, llama_cpp):
    keeps = name in rules.rule_of(name).kept.split()
    folder = save_byte_level(tmp_path / "m", cut_by(name), ignore_merges=keeps, begins=True)
    vocabulary = read_vocabulary(folder, count_rows(folder))
    assert vocabulary.pre == name
    assert (rules.CASELESS in vocabulary.notes) is (name in OTHERWISE)
    server = llama_cpp.serve(write_model(tmp_path / "m.gguf", vocabulary))
    found = differing(folder, server, EVERYTHING | MARKED_UP)
    assert set(found) == OTHERWISE.get(name, set()), found


PREPEND = {"type": "Prepend", "prepend": "▁"}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
IDLE = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"}


@pytest.fixture(scope="module")
def sentencepiece_folder(tmp_path_factory) -> Path:
    pytest.importorskip("sentencepiece", reason="pip install sentencepiece trains the tokenizer")
    return save_sentencepiece(tmp_path_factory.mktemp("sentencepiece"))


def in_form(form: str, made: Path, folder: Path) -> Path:
    """Return the tokenizer as one of the families has it."""
    shutil.copytree(made, folder)
    if form == "tokenizer.model":
        return folder
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    (folder / "tokenizer.model").unlink(missing_ok=True)
    if form == "llama 2":
        return folder
    steps, cut, class_name = {
        "phi-3": ([PREPEND, REPLACE], None, "PreTrainedTokenizerFast"),
        "gemma": ([REPLACE], {**IDLE, "invert": False}, "GemmaTokenizer"),
    }[form]
    normalizer = {"type": "Sequence", "normalizers": steps}
    edit_json(
        folder / "tokenizer.json",
        lambda value: value.update(normalizer=normalizer, pre_tokenizer=cut),
    )
    edit_json(
        folder / "tokenizer_config.json", lambda value: value.update(tokenizer_class=class_name)
    )
    write_config(folder, 0, model_type={"phi-3": "phi3", "gemma": "gemma2"}[form])
    return folder


@pytest.mark.parametrize("form", ["tokenizer.model", "llama 2", "phi-3", "gemma"])
def test_sentencepiece_reads_alike(form, sentencepiece_folder, tmp_path, llama_cpp):
    folder = in_form(form, sentencepiece_folder, tmp_path / "m")
    vocabulary = read_vocabulary(folder, count_rows(folder) + 3)
    assert (vocabulary.model, vocabulary.pre) == ("llama", "default")
    assert vocabulary.add_space_prefix is (form != "gemma")
    server = llama_cpp.serve(write_model(tmp_path / "m.gguf", vocabulary))
    # a text that begins with a blank: transformers' own way for Llama, told in the notes
    doubled = {"one blank", "leading blanks"} if form in ("tokenizer.model", "llama 2") else set()
    assert (DOUBLED in vocabulary.notes) is bool(doubled)
    found = differing(folder, server, EVERYTHING)
    assert set(found) == doubled, found


def test_the_embedded_model_reads_alike(tmp_path, llama_cpp):
    folder = Path(resolve_model("tiny"))
    vocabulary = read_vocabulary(folder, 2048)
    assert vocabulary.pre == "smollm"
    server = llama_cpp.serve(write_model(tmp_path / "m.gguf", vocabulary))
    marked = {"special": "<|user|>Hi<|end|><|assistant|> there<|pad|>"}
    assert differing(folder, server, EVERYTHING | marked) == {}


def test_a_name_with_phi_3_needs_its_tokens(tmp_path, llama_cpp):
    vocabulary = read_vocabulary(Path(resolve_model("tiny")), 2048)
    name = "my-phi3"
    alone = LlamaCpp()
    try:
        with pytest.raises(Refused):
            alone.serve(write_model(tmp_path / "bad.gguf", vocabulary, name))
    finally:
        alone.close()
    path = write_model(tmp_path / "good.gguf", vocabulary, vocabulary.fitting_name(name))
    assert llama_cpp.serve(path).tokenize("a")


def test_blanks_after_phi_3s_tokens_go(sentencepiece_folder, tmp_path, llama_cpp):
    folder = in_form("phi-3", sentencepiece_folder, tmp_path / "m")

    def mark(value):
        added = value["added_tokens"]
        first = len(value["model"]["vocab"])
        more = ["<|endoftext|>", "<|user|>", "<|end|>"]
        added += [{**added[0], "content": t, "id": first + n} for n, t in enumerate(more)]
        for token in added:
            token["rstrip"] = token["content"] not in ("<unk>", "<s>", "<|endoftext|>")

    edit_json(folder / "tokenizer.json", mark)
    vocabulary = read_vocabulary(folder, count_rows(folder))
    assert vocabulary.strips_blanks
    chat = {
        "chat": "<|user|>\nHi  there<|end|>\n \t<|user|>",
        "kept": "<|endoftext|> Hi<s>  <|user|> x</s> y",
    }
    name = vocabulary.fitting_name("mine")
    server = llama_cpp.serve(write_model(tmp_path / "m.gguf", vocabulary, name))
    assert differing(folder, server, EVERYTHING | chat) == {}
    other = llama_cpp.serve(write_model(tmp_path / "other.gguf", vocabulary, "mine"))
    assert set(differing(folder, other, chat)) == {"chat", "kept"}


def test_gemmas_runs_of_blanks_are_merged(tmp_path, llama_cpp):
    pytest.importorskip("sentencepiece", reason="pip install sentencepiece trains the tokenizer")
    runs = ["▁▁", "▁▁▁", "▁▁▁▁", "\n", "\n\n", "<start_of_turn>", "<end_of_turn>", "\t"]
    made = save_sentencepiece(tmp_path / "made", user_defined_symbols=runs, size=1000)
    folder = in_form("gemma", made, tmp_path / "m")
    vocabulary = read_vocabulary(folder, count_rows(folder))
    kinds = dict(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
    assert [kinds[text] for text in ("▁▁", "\n\n", "<start_of_turn>")] == [
        NORMAL,
        USER_DEFINED,
        USER_DEFINED,
    ]
    texts = {
        "runs": "x     y\n\n  z\n   w   \n",
        "written out": "a▁▁b ▁ c",
        "turn": "<start_of_turn>user\nHi <end_of_turn>\n",
    }
    server = llama_cpp.serve(write_model(tmp_path / "m.gguf", vocabulary))
    assert differing(folder, server, EVERYTHING | texts) == {}


CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


def test_chats_of_llama_2_are_read_as_in_training(sentencepiece_folder, tmp_path, llama_cpp):
    folder = in_form("llama 2", sentencepiece_folder, tmp_path / "m")
    (folder / "chat_template.jinja").write_text(CHAT, encoding="utf-8")
    vocabulary = read_vocabulary(folder, count_rows(folder))
    assert vocabulary.add_space_prefix is False
    assert "chats are read as in training" in " ".join(vocabulary.notes)
    server = llama_cpp.serve(write_model(tmp_path / "m.gguf", vocabulary))
    said = ["What is it?", " A mud puppy. ", "And  then?"]
    messages = [
        {"role": role, "content": text}
        for role, text in zip(("user", "assistant", "user"), said, strict=True)
    ]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(messages)["input_ids"]
    assert server.tokenize(server.apply_template(messages), add_special=True) == ids
