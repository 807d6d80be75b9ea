"""Settings: defaults, all problems at once, near names, and flags that equal the fields."""

import argparse
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mudpuppy.config import POSITIONAL, TrainingConfig, flag_of, load_config, read_yaml_settings
from mudpuppy.errors import ConfigError, MudpuppyError, UnsupportedCombination
from mudpuppy.flags import add_training_flags, typed_settings

LEAST = {"model": "tiny", "dataset": "d.jsonl", "output": "out"}


def test_the_learning_rate_and_alpha_follow_the_method():
    assert load_config(LEAST).resolved_learning_rate == 2e-4
    assert load_config({**LEAST, "method": "full"}).resolved_learning_rate == 2e-5
    assert load_config({**LEAST, "lora_r": 8}).resolved_lora_alpha == 16
    assert load_config({**LEAST, "lora_alpha": 5}).resolved_lora_alpha == 5


def test_a_number_that_yaml_reads_as_text_is_a_number():
    # YAML 1.1 reads 1e-4 as a text.
    assert load_config({**LEAST, "learning_rate": "1e-4"}).learning_rate == 1e-4


def test_all_problems_are_reported_at_once_with_near_names():
    wrong = {**LEAST, "lora_rr": 4, "max_steps": 0, "precision": "fp61"}
    with pytest.raises(ConfigError) as caught:
        load_config(wrong, name=lambda field: f"run.yaml: '{field}'")

    text = str(caught.value)
    assert 3 == len(caught.value.problems)
    assert text.startswith("3 problems")
    assert "run.yaml: 'lora_rr' is no known setting; did you mean 'lora_r'" in text
    assert "run.yaml: 'max_steps'" in text
    assert "'fp32', 'bf16' or 'fp16'" in text
    assert caught.value.exit_code == 2


def test_a_home_path_is_expanded_wherever_it_stands():
    config = load_config({**LEAST, "model": "~/m", "dataset": "~/d.jsonl"})

    assert str(Path.home() / "m") == config.model
    assert Path.home() / "d.jsonl" == config.dataset


def test_a_rejected_combination_carries_its_codes():
    with pytest.raises(UnsupportedCombination) as caught:
        load_config({**LEAST, "method": "qlora", "stream": True})

    assert ("MP-R08",) == caught.value.codes
    assert "MP-R08" in str(caught.value)
    assert caught.value.exit_code == 2


def test_every_setting_is_documented_and_has_a_flag():
    parser = argparse.ArgumentParser()
    add_training_flags(parser)
    flags = {flag for action in parser._actions for flag in action.option_strings}

    for name, field in TrainingConfig.model_fields.items():
        assert field.description, name
        assert name in POSITIONAL or flag_of(name) in flags


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["--no-chat-template"], {"chat_template": False}),
        (["--early-stopping"], {"early_stopping": 3}),
        (["--early-stopping", "5"], {"early_stopping": "5"}),
        (
            ["--lora-target-modules", "q_proj", "v_proj"],
            {"lora_target_modules": ["q_proj", "v_proj"]},
        ),
        (["--stream", "--max-steps", "7"], {"stream": True, "max_steps": "7"}),
        ([], {}),
    ],
)
def test_flags_become_settings_only_when_typed(typed, expected):
    parser = argparse.ArgumentParser()
    add_training_flags(parser)

    assert expected == typed_settings(parser.parse_args(typed))


@pytest.mark.parametrize("text", ["[1, 2]", "just words", "a: [", "\tx: 1"])
def test_a_settings_file_that_is_no_mapping_is_refused_by_name(tmp_path: Path, text: str):
    path = tmp_path / "run.yaml"
    path.write_text(text)

    with pytest.raises(ConfigError, match=r"run\.yaml"):
        read_yaml_settings(path)


def test_keys_of_a_settings_file_may_be_written_like_flags(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text("max-steps: 3\nlora_r: 4\n")

    assert {"max_steps": 3, "lora_r": 4} == read_yaml_settings(path)


@given(
    st.dictionaries(
        st.sampled_from([*TrainingConfig.field_names(), "nonsense"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text()),
    )
)
def test_any_settings_are_accepted_or_refused_with_a_reason(values):
    outcome: object = None
    try:
        outcome = load_config({**LEAST, **values})
    except MudpuppyError as error:
        outcome = error

    if isinstance(outcome, MudpuppyError):
        assert str(outcome)
        assert outcome.exit_code == 2
    else:
        assert outcome.decide().accepted
