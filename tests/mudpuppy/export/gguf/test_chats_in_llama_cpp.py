"""Chats in llama.cpp: templates render as in transformers, and answers stop at the same tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from mudpuppy.export.gguf import pretokenizer_rules as rules
from mudpuppy.export.gguf.vocabulary import read_vocabulary
from mudpuppy.tiny import resolve_model
from tests.mudpuppy.export.gguf.folders import (
    edit_json,
    save_byte_level,
    split_by,
    write_config,
    write_json,
)

pytest.importorskip("gguf", reason="pip install gguf writes the model for llama.cpp")
pytest.importorskip("xllamacpp", reason="pip install xllamacpp brings a llama.cpp server")

from tests.mudpuppy.export.gguf.llama_cpp import LlamaCpp, write_model

ROWS = 500
USER = {"role": "user", "content": "  What is   the capital of France?\n"}
CONVERSATIONS = {
    "one turn": [USER],
    "three turns": [
        USER,
        {"role": "assistant", "content": "Paris, <b>of</b> course.  "},
        {"role": "user", "content": 'Und von Österreich? 👍🏽 {"a": [1, 2.50]}'},
    ],
    "a system": [{"role": "system", "content": "Be short. "}, USER],
}
TEMPLATES = {
    "blocks that take their blanks away": """
{%- for message in messages -%}
    {%- generation -%}{{ '<|' ~ message.role ~ '|>' ~ message.content | trim }}{%- endgeneration -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|bot|>' }}{% endif -%}
""",
    "blocks that leave lines": """{% if messages[0]['role'] == 'system' %}
    {% set first = messages[0]['content'] | trim + '\\n\\n' %}
    {% set messages = messages[1:] %}
{% else %}
    {% set first = '' %}
{% endif %}
{{ first }}
{% for message in messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('roles must alternate') }}
    {% endif %}
    {{ '### ' + message['role'].upper() + ':\\n' + message['content'] + '\\n' }}
{% endfor %}
{% if add_generation_prompt %}
    {{ '### ASSISTANT:\\n' }}
{% endif %}""",
    "namespaces and macros": """{%- macro turn(who, what) -%}
{{ '<|' + who + '|>\\n' + what + '<|stop|>\\n' }}
{%- endmacro -%}
{%- set seen = namespace(users=0, last=none) -%}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{%- set seen.users = seen.users + 1 -%}{%- endif -%}
{%- set seen.last = m -%}
{{ turn(m.role, m.content.strip()) }}
{%- endfor -%}
{{ seen.users }} {{ seen.last is defined and seen.last.role != 'system' }}
{{- ' last' if messages[-1]['content'] | length > 20 else ' short' }}
""",
    "filters": """{% for m in messages -%}
{{ {'who': m.role, 'what': m.content} | tojson }} {{ m.content.split(' ')[0] }}|
{{- m.content | upper | replace('A', 'ä') }}{{ loop.first }} {{ loop.last }}
{% endfor %}{{ bos_token is defined }} {{ 'tools' if tools else 'none' }}""",
}


@pytest.fixture(scope="module")
def llama_cpp() -> Iterator[LlamaCpp]:
    process = LlamaCpp()
    yield process
    process.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "m"
    return save_byte_level(folder, split_by(rules.QWEN2), size=ROWS)


@pytest.fixture
def folder(made, tmp_path) -> Path:
    for path in made.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render_alike(name, folder, llama_cpp):
    (folder / "chat_template.jinja").write_text(TEMPLATES[name], encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    server = llama_cpp.serve(write_model(folder / "m.gguf", read_vocabulary(folder, ROWS)))
    for messages in CONVERSATIONS.values():
        expected = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        assert server.apply_template(messages) == expected


def test_a_template_with_no_first_token_renders_alike(folder, llama_cpp):
    edit_json(folder / "tokenizer_config.json", lambda value: value.pop("bos_token"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.bos_token is None
    assert "bos_token" in tokenizer.chat_template
    server = llama_cpp.serve(write_model(folder / "m.gguf", read_vocabulary(folder, ROWS)))
    expected = tokenizer.apply_chat_template([USER], tokenize=False)
    assert server.apply_template([USER], add_generation_prompt=False) == expected


def test_the_embedded_models_template_renders_alike(tmp_path, llama_cpp):
    source = Path(resolve_model("tiny"))
    server = llama_cpp.serve(write_model(tmp_path / "m.gguf", read_vocabulary(source, 2048)))
    tokenizer = AutoTokenizer.from_pretrained(source)
    for messages in CONVERSATIONS.values():
        expected = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        assert server.apply_template(messages) == expected
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert server.tokenize(server.apply_template(messages), add_special=True) == ids


def test_answers_stop_where_generation_stops(folder, llama_cpp):
    write_config(folder, ROWS)
    write_json(folder / "generation_config.json", {"eos_token_id": [1, 2, 3]})
    vocabulary = read_vocabulary(folder, ROWS)
    server = llama_cpp.serve(write_model(folder / "m.gguf", vocabulary))
    stops = [number for number in range(6) if server.stops_at(number)]
    assert stops == [1, 2, 3]


def test_only_the_end_stops_where_nothing_else_is_said(folder, llama_cpp):
    server = llama_cpp.serve(write_model(folder / "m.gguf", read_vocabulary(folder, ROWS)))
    assert [number for number in range(6) if server.stops_at(number)] == [1]
