"""Special tokens, tokenizer.json and chat templates: what is broken is found, the rest is left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.doctor import diagnose
from harness.evidence.source import CheckpointEvidence
from harness.findings import Severity, Status
from mudpuppy.tiny.families import build_family
from tests.harness.checkpoints import assert_clean, copy, edit_json, save_base


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model with a real tokenizer of 1,024 tokens, which are all rows that there are."""
    return build_family("llama", tmp_path_factory.mktemp("tokenizer") / "model")


def finding(folder: Path, code: str):
    """Return the result of one probe on a folder."""
    (result,) = diagnose(folder, select=[code]).probes
    return result


def test_a_real_tokenizer_is_left_in_peace(model):
    found = {r.code: r.status for r in assert_clean(model).probes}
    assert [found[code] for code in ("MPD804", "MPD805", "MPD806")] == [Status.PASSED] * 3


@pytest.mark.parametrize("form", ["text", "object", "list"])
def test_an_end_token_beyond_the_embedding_is_an_error(model, tmp_path, form):
    folder = copy(model, tmp_path / "m")
    token = "<|strange|>"
    if form == "list":
        edit_json(folder / "tokenizer_config.json", additional_special_tokens=[token])
    else:
        value = token if form == "text" else {"content": token, "lstrip": False}
        edit_json(folder / "tokenizer_config.json", eos_token=value)
    found = finding(folder, "MPD804")
    assert (found.status, found.severity) == (Status.FAILED, Severity.CRITICAL)
    assert "<|strange|>" in found.message
    assert "beyond the 1,024 rows" in found.message
    assert found.evidence[0].what.endswith("gets the new id 1,024")


def test_an_end_token_on_a_padding_row_is_a_warning_and_an_unknown_mask_a_note(tmp_path):
    folder = save_base(tmp_path / "m")
    vocab = {f"t{number}": number for number in range(50)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}}))
    settings = {"eos_token": "t1", "mask_token": "<mask>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert finding(folder, "MPD804").severity is Severity.NOTE
    edit_json(folder / "tokenizer_config.json", eos_token="<end>")
    found = finding(folder, "MPD804")
    assert found.severity is Severity.HIGH
    assert "never trained" in found.message
    # The same token, listed with an id of its own, is one of the vocabulary.
    decoder = {"50": {"content": "<end>"}, "51": {"content": "<mask>"}}
    edit_json(folder / "tokenizer_config.json", added_tokens_decoder=decoder)
    assert finding(folder, "MPD804").status is Status.PASSED


def test_an_end_id_that_no_token_has_is_found_unless_another_end_is_known(tmp_path):
    folder = save_base(tmp_path / "m")
    vocab = {f"t{number}": number for number in range(50)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}}))
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "generation_config.json").write_text("{}")
    edit_json(folder / "config.json", eos_token_id=70)
    found = finding(folder, "MPD804")
    assert (found.severity, found.evidence[0].found) == (Severity.HIGH, 70)
    edit_json(folder / "generation_config.json", eos_token_id=[1, 70])
    assert finding(folder, "MPD804").severity is Severity.NOTE
    edit_json(folder / "config.json", eos_token_id=1)
    edit_json(folder / "generation_config.json", eos_token_id=[1, 2])
    assert finding(folder, "MPD804").status is Status.PASSED


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model": None}, "holds no model"),
        ({"model": {"type": "BPE", "vocab": {}}}, "no vocabulary"),
        ({"model": {"type": "Magic", "vocab": {"a": 0}}}, "unknown type 'Magic'"),
        ({"model": {"type": "Unigram", "vocab": {"a": 0}}}, "must be a list"),
        ({"model": {"type": "BPE", "vocab": {"a": "x"}}}, "not a whole number"),
        ({"model": {"vocab": {"a": 0, "b": 1}, "merges": ["a b"]}}, "need the token 'ab'"),
        ({"model": {"vocab": {"a": 0, "ab": 1}, "merges": [["a", "b"]]}}, "need the token 'b'"),
        ({"model": {"vocab": {"a": 0}, "merges": ["a"]}}, "not a pair"),
    ],
)
def test_a_tokenizer_that_cannot_be_made_is_found(model, tmp_path, change, word):
    folder = copy(model, tmp_path / "m")
    edit_json(folder / "tokenizer.json", **change)
    found = finding(folder, "MPD805")
    assert found.status is Status.FAILED
    assert word in found.message


def test_every_kind_of_tokenizer_that_the_library_saves_is_usable(tmp_path):
    from tokenizers import Tokenizer, models

    words = {"a": 0, "b": 1, "ab": 2, "##b": 3, "a##b": 4}
    kinds = {
        "bpe": models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]),
        "words": models.WordLevel(words, unk_token="a"),
        "pieces": models.WordPiece(words, unk_token="a"),
        "unigram": models.Unigram([("a", 0.0), ("b", -1.0)], unk_id=0),
        "prefixed": models.BPE(
            {"a": 0, "##b": 1, "ab": 2}, [("a", "##b")], continuing_subword_prefix="##"
        ),
    }
    for name, model in kinds.items():
        folder = tmp_path / name
        folder.mkdir()
        Tokenizer(model).save(str(folder / "tokenizer.json"))
        assert finding(folder, "MPD805").status is Status.PASSED, name


BROKEN = {
    "unclosed": ("a\n{% if x %}b", "end", 2),
    "tag": ("{% nonsense %}", "nonsense", 1),
    "expression": ("\n\n{{ x + }}", "unexpected", 3),
    "filter": ("{{ x | shout }}", "'shout'", 1),
    "test": ("{% if x is tasty %}{% endif %}", "'tasty'", 1),
    "deep": ("{{ " + "(" * 4000 + ")" * 4000 + " }}", "deeply", None),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("where", ["file", "settings", "list"])
def test_a_template_that_does_not_parse_is_found_with_its_line(model, tmp_path, name, where):
    text, word, line = BROKEN[name]
    folder = copy(model, tmp_path / "m")
    if where == "file":
        (folder / "chat_template.jinja").write_text(text)
    else:
        listed = [{"name": "default", "template": "x"}, {"name": "tools", "template": text}]
        value = text if where == "settings" else listed
        edit_json(folder / "tokenizer_config.json", chat_template=value)
    found = finding(folder, "MPD806")
    assert found.status is Status.FAILED
    assert word in found.message
    assert (f", line {line}" in found.message) is (line is not None)


@pytest.mark.parametrize(
    "text",
    [
        "{% generation %}{{ x | tojson }}{% endgeneration %}",
        "{% for m in messages %}{% if m %}{% continue %}{% endif %}{% break %}{% endfor %}",
        "{{ raise_exception('no') }}{{ strftime_now('%d') }}",
        "{{ 'a' * 10 ** 12 }}{{ 'x' | center(10 ** 12) }}",
        "{% for a in range(10 ** 9) %}{% for b in range(10 ** 9) %}{% endfor %}{% endfor %}",
        "{%- macro f(x) -%}{{ x }}{%- endmacro -%}{% set ns = namespace(a=1) %}",
    ],
)
def test_a_template_is_parsed_and_never_run(model, tmp_path, text):
    folder = copy(model, tmp_path / "m")
    (folder / "chat_template.jinja").write_text(text)
    assert finding(folder, "MPD806").status is Status.PASSED


def test_a_template_too_long_is_said_not_to_have_been_checked(model, tmp_path):
    folder = copy(model, tmp_path / "m")
    (folder / "chat_template.jinja").write_text("x" * 500_000)
    found = finding(folder, "MPD806")
    assert (found.status, found.applies) == (Status.SKIPPED, True)
    assert "longer than" in found.reason


def test_the_evidence_counts_what_is_named(model):
    facts = CheckpointEvidence(model).get("special_tokens")
    assert facts.named > 0
    assert facts.rows == facts.next_id == 1024
