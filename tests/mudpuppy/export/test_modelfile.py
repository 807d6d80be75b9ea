"""A Modelfile holds what the model's folder says, quoted as Ollama reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mudpuppy.errors import UsageError
from mudpuppy.export.modelfile import Speech, quote_system, read_speech, write_modelfile
from mudpuppy.tiny import resolve_model

GOLDEN = '''\
FROM ./tiny q8.gguf

TEMPLATE """{{ if not .System }}A{{ end }}B"""

PARAMETER stop "<|end|>"
PARAMETER stop "<|im_end|>"
PARAMETER temperature 0.3
PARAMETER top_p 0.9
PARAMETER top_k 40

SYSTEM """You are a "frog".
Be brief."""
'''


def read_modelfile(text):
    """Return the commands of a Modelfile as Ollama's parser reads them."""
    commands, value, name = [], None, ""
    for line in text.splitlines(keepends=True):
        if value is None:
            if not line.strip() or line.startswith("#"):
                continue
            name, _, value = line.partition(" ")
        else:
            value += line
        said = value.strip()
        if said.startswith('"""'):
            if len(said) < 6 or not said.endswith('"""'):
                continue
            said = said[3:-3]
        elif said.startswith('"'):
            said = said[1:-1]
        if name == "PARAMETER":
            key, _, said = said.partition(" ")
            name, said = f"PARAMETER {key}", said.strip('"')
        commands.append((name, said))
        value = None
    assert value is None
    return commands


@pytest.fixture
def folder(tmp_path):
    """The embedded model without its weights."""
    source = Path(resolve_model("tiny"))
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        shutil.copy(source / name, tmp_path / name)
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        if (source / name).is_file():
            shutil.copy(source / name, tmp_path / name)
    return tmp_path


def change(folder, name, **values):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_form_is_this():
    speech = Speech(
        template="{{ if not .System }}A{{ end }}B",
        stops=("<|end|>", "<|im_end|>"),
        sampling={"temperature": 0.3, "top_p": 0.9, "top_k": 40},
    )
    text = write_modelfile("./tiny q8.gguf", speech, system='You are a "frog".\nBe brief.')
    assert text == GOLDEN
    assert read_modelfile(text) == [
        ("FROM", "./tiny q8.gguf"),
        ("TEMPLATE", "{{ if not .System }}A{{ end }}B"),
        ("PARAMETER stop", "<|end|>"),
        ("PARAMETER stop", "<|im_end|>"),
        ("PARAMETER temperature", "0.3"),
        ("PARAMETER top_p", "0.9"),
        ("PARAMETER top_k", "40"),
        ("SYSTEM", 'You are a "frog".\nBe brief.'),
    ]


def test_a_template_that_cannot_be_derived_is_left_to_ollama_and_said():
    text = write_modelfile("./x.gguf", Speech(remark="the chat template says today's date"))
    assert "# No TEMPLATE: the chat template says today's date." in text
    assert [name for name, _ in read_modelfile(text)] == ["FROM"]


PRINTABLE = st.text(st.characters(exclude_categories=["C", "Z"], include_characters=' "\n\t'))


@given(PRINTABLE.filter(lambda text: '"""' not in text))
def test_a_system_prompt_comes_back_as_it_was(text):
    speech = Speech(template="x")
    found = read_modelfile(write_modelfile("./x.gguf", speech, system=text))
    assert found[-1] == ("SYSTEM", text)


@pytest.mark.parametrize("text", ['three """ quotes', "a bell \x07", "a non-breaking\xa0space"])
def test_what_cannot_be_quoted_is_refused(text):
    with pytest.raises(UsageError, match="--system holds"):
        quote_system(text)


def test_the_embedded_model_is_spoken_to_as_it_was_trained(folder):
    speech = read_speech(folder)
    assert speech.stops == ("<|end|>",)
    assert not speech.sampling
    assert speech.template is not None
    assert "{{ range .Messages }}" in speech.template
    assert "<|user|>{{ .Content }}" in speech.template


def test_stops_are_all_that_settings_and_tokenizer_end_with(folder):
    change(folder, "generation_config.json", eos_token_id=[1, 0, 1])
    change(folder, "config.json", eos_token_id=2)
    assert len(read_speech(folder).stops) == 3
    change(folder, "generation_config.json", eos_token_id=10**9)
    assert len(read_speech(folder).stops) == 2


def test_sampling_is_the_models_own(folder):
    own = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
    change(folder, "generation_config.json", **own, repetition_penalty=1.05)
    speech = read_speech(folder)
    assert dict(speech.sampling) == {
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
        "repeat_penalty": 1.05,
    }
    change(folder, "generation_config.json", do_sample=False)
    assert not read_speech(folder).sampling


def test_what_is_missing_or_damaged_is_said(folder):
    (folder / "generation_config.json").write_text("[")
    assert "generation_config.json: no JSON" in read_speech(folder).remark
    (folder / "tokenizer.json").write_text("{}")
    speech = read_speech(folder)
    assert speech.remark.startswith("the tokenizer cannot be used: ")
    assert speech == Speech(remark=speech.remark)


def test_a_template_without_end_is_given_up(folder, monkeypatch):
    monkeypatch.setattr("mudpuppy.export.modelfile.RENDER_S", 0.3)
    change(folder, "tokenizer_config.json")
    (folder / "chat_template.jinja").write_text(
        "{% for a in range(10**5) %}{% for b in range(10**5) %}{% endfor %}{% endfor %}"
    )
    assert "does not come to an end" in read_speech(folder).remark


def test_a_date_in_the_template_is_not_written_down_for_ever(folder):
    (folder / "chat_template.jinja").write_text(
        "{{ strftime_now('%Y') }}{% for m in messages %}{{ m.content }}<e>{% endfor %}"
    )
    speech = read_speech(folder)
    assert speech.template is None
    assert "today's date" in speech.remark
