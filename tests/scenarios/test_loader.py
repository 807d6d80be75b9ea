"""Scenario files: what is accepted, and that every problem is named with its line."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mudpuppy.errors import ConfigError
from mudpuppy.yamlfile import read_document
from scenarios.loader import find_scenarios, load_scenarios

HEAD = "schema_version: 1\nname: small\n"
ROW = "scenarios:\n  - name: one\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "small.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems_of(folder: Path, text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_scenarios(write(folder, text))
    return tuple(problem.replace(f"{folder}/", "") for problem in caught.value.problems)


def test_the_seed_matrix_is_the_eleven_of_the_session_notes() -> None:
    seed = load_scenarios("seed")

    titles = [one.title for one in seed.form.scenarios]

    assert titles == [
        "LoRA + fp16",
        "LoRA + bf16",
        "LoRA + gradient_checkpointing",
        "Full fine-tuning + fp16",
        "QLoRA (4-bit)",
        "LoRA + higher rank (r=32)",
        "LoRA + streaming validation",
        "Full fine-tuning + streaming",
        "LoRA + cosine scheduler",
        "LoRA + early stopping",
        "GPTQ quantization",
    ]
    rejected = [one for one in seed.form.scenarios if one.expect and one.expect.code]
    assert [(one.title, one.expect.code) for one in rejected if one.expect] == [
        ("LoRA + streaming validation", "MP-R07")
    ]


def test_all_problems_come_at_once_each_with_its_line(tmp_path: Path) -> None:
    text = (
        "schema_version: 1\n"
        "name: Small Matrix\n"
        "defalts: {}\n"
        "defaults:\n"
        "  model: tiny\n"
        "  lora_rank: 8\n"
        "scenarios:\n"
        "  - name: one\n"
        "    config: {metod: lora}\n"
        "    expext: {}\n"
        "  - name: two\n"
        "    timeout_s: -1\n"
        "    expect: {outcome: rejected}\n"
    )

    found = sorted(problems_of(tmp_path, text))

    assert found == [
        "small.yaml:10: unknown key 'scenarios.0.expext'; did you mean 'expect'?",
        "small.yaml:12: scenarios.1.timeout_s: Input should be greater than 0, got -1",
        "small.yaml:13: scenarios.1.expect: a rejection needs the code it must come with, "
        "such as code: MP-R07",
        "small.yaml:2: name: String should match pattern '^[a-z0-9][a-z0-9._-]*$', "
        "got 'Small Matrix'",
        "small.yaml:3: unknown key 'defalts'; did you mean 'defaults'?",
        "small.yaml:6: unknown setting 'lora_rank'; did you mean 'lora_r' or 'lora_alpha'?",
        "small.yaml:9: unknown setting 'metod'; did you mean 'method' or 'model'?",
    ]


def test_the_output_folder_is_not_for_a_scenario_to_choose(tmp_path: Path) -> None:
    text = HEAD + "defaults: {output: here}\n" + ROW

    assert problems_of(tmp_path, text) == (
        "small.yaml:3: 'output' may not be set here: every cell has its own folder",
    )


def test_a_newer_form_is_refused(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, "schema_version: 2\nname: small\n" + ROW)

    assert problem == "small.yaml:1: schema_version: Input should be 1, got 2"


def test_a_key_that_stands_twice_is_an_error(tmp_path: Path) -> None:
    text = HEAD + "defaults:\n  model: tiny\n  model: other\n" + ROW

    assert problems_of(tmp_path, text) == ("small.yaml:5: 'model' stands twice (also on line 4)",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected a mapping with 'scenarios', found an empty file"),
        ("- a\n", "expected a mapping with 'scenarios', found list"),
        ("name: [\n", "is not YAML: line 2"),
        ("a: &x [*x]\n", "an alias contains itself"),
        (HEAD, "there is nothing to run"),
        (HEAD + ROW + "exclude: [{method: lora}]\n", "'exclude' has no effect without 'axes'"),
        (HEAD + "axes: {method: []}\n", "should have at least 1 item"),
        (HEAD + ROW + "    expect: {code: MP-R07}\n", "a code belongs to outcome: rejected"),
        (HEAD + ROW + "    expect: {findings: [FM17]}\n", "should match pattern"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, words: str) -> None:
    assert words in problems_of(tmp_path, text)[0] + str(tmp_path)


def test_a_file_that_is_not_there_names_the_near_ones() -> None:
    with pytest.raises(ConfigError, match=r"'scenarios/sead\.yaml'; did you mean 'seed'\?"):
        find_scenarios("scenarios/sead.yaml")


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_bytes(b"\xff\xfe\x00")

    with pytest.raises(ConfigError, match="cannot be read"):
        load_scenarios(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("5E3", 5e3),
        ("-1.5e+2", -150.0),
        (".5", 0.5),
        ("10", 10),
        ("1.2.3", "1.2.3"),
    ],
)
def test_numbers_are_those_everybody_expects(text: str, value: object) -> None:
    read = read_document(f"a: {text}\n", "x").value["a"]

    assert value == read
    assert type(value) is type(read)


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_with_a_reason(text: str) -> None:
    with suppress(ConfigError):
        read_document(text, "x.yaml")
