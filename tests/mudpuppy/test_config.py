"""Settings: defaults, all problems at once, near names, and flags that equal the fields."""

import argparse
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mudpuppy.config import TrainingConfig
from mudpuppy.config_check import POSITIONAL, flag_of, load_config, unread_settings
from mudpuppy.errors import ConfigError, MudpuppyError, UnsupportedCombination
from mudpuppy.flags import add_training_flags, typed_settings
from mudpuppy.yamlfile import find_lines, read_settings

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
    assert "'fp32', 'bf16', 'fp16' or 'fp8'" in text
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
        read_settings(path)


def test_keys_of_a_settings_file_may_be_written_like_flags(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text("max-steps: 3\nlora_r: 4\n")

    assert {"max_steps": 3, "lora_r": 4} == read_settings(path)


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


HOSTILE_YAML = {
    "deep": ("a: " + "[" * 5000, "nested too deeply"),
    "int that is none": ("max_steps: !!int abc", "is not YAML: invalid literal"),
    "bool that is none": ("stream: !!bool perhaps", "does not fit its tag"),
    "time that is none": ("model: !!timestamp x", "does not fit its tag"),
    "huge number": ("max_steps: " + "9" * 5000, "is not YAML"),
    "twice": ("lora_r: 4\nlora_r: 8", "run.yaml:2: 'lora_r' stands twice (also on line 1)"),
    "twice in two spellings": ("max-steps: 1\nmax_steps: 2", "'max_steps' stands twice"),
    "alias bomb": (
        "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(9)),
        "more than 100,000 keys and values",
    ),
    "merge bomb": (
        "a0: &a0 {k: 1}\n"
        + "".join(f"a{i + 1}: &a{i + 1} {{<<: [{', '.join([f'*a{i}'] * 9)}]}}\n" for i in range(9)),
        "more than 100,000 keys and values",
    ),
    "list as key": ("? [a, b]\n: 1", "a key is no plain text"),
    "too large": ("# " + "x" * 1_000_000, "larger than 1,000,000 bytes"),
    "control": ("a: \x07", "is not YAML"),
    "binary": ("\udcff", "cannot be read"),
}


@pytest.mark.parametrize("name", HOSTILE_YAML)
def test_hostile_yaml_is_refused_by_name_and_shortly(tmp_path: Path, name: str):
    text, expected = HOSTILE_YAML[name]
    path = tmp_path / "run.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))

    with pytest.raises(ConfigError) as caught:
        read_settings(path)
    assert expected in str(caught.value)
    assert "run.yaml" in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_pipe_or_a_folder_is_no_settings_file(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")

    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ConfigError, match="is no regular file"):
            read_settings(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_settings(tmp_path / "a\0b")
    with pytest.raises(ConfigError, match="cannot be read: File name too long"):
        read_settings(tmp_path / ("x" * 300))


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"early_stopping": True}, "such as early_stopping: 3"),
        ({"max_steps": False}, "not true or false"),
        ({"learning_rate": True}, "not true or false"),
        ({"lora_r": 1_000_000_000}, "less than or equal to 65536"),
        ({"batch_size": "99999999999999999999"}, "'batch_size'"),
        ({"batch_size": int("9" * 4000)}, "a number of 13288 bits"),
        ({"seed": 16**5000}, "a number of"),
        ({"epochs": 1e300}, "less than or equal to 1000000"),
        ({"model": ""}, "'model': is empty"),
        ({"output": ""}, "'output': is empty"),
        ({"output": "a\0b"}, "NUL"),
        ({"dataset": "half \ud800"}, "is not UTF-8"),
        ({"output": "x" * 300}, "longer than 255 bytes"),
        ({"output": "x/" * 3000}, "longer than 4095 bytes"),
        ({"output": "~nosuchuser/x"}, "no such home folder"),
        ({"warmup_steps": 9, "max_steps": 9}, "9 warm-up steps are not fewer than the 9 steps"),
        ({"k" * 10_000_000: 1}, "is no known setting"),
        ({"precision": "x" * 10_000_000}, "'precision'"),
        ({"precision": 2026}, "'precision'"),
        ({"model": "2020-13-45", "max_steps": "2020-13-45"}, "'max_steps'"),
    ],
    ids=[str(number) for number in range(20)],
)
def test_a_value_beyond_sense_is_refused_shortly(wrong, expected):
    with pytest.raises(ConfigError) as caught:
        load_config({**LEAST, **wrong})
    assert expected in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_settings_that_a_run_does_not_read_are_named():
    idle = {"method": "full", "lora_r": 64, "beta": 0.5, "gptq_bits": 4, "eval_steps": 3}
    read = {"method": "dpo", "lora_r": 64, "beta": 0.5, "early_stopping": 2, "eval_steps": 3}

    assert unread_settings(load_config({**LEAST, **idle})) == (
        "eval_steps",
        "lora_r",
        "beta",
        "gptq_bits",
    )
    assert () == unread_settings(load_config({**LEAST, **read}))
    by_tokens = load_config({**LEAST, "tokens_per_batch": 512, "batch_size": 4})
    assert ("batch_size",) == unread_settings(by_tokens)


def test_numbers_of_a_file_are_those_of_yaml_1_2(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("lora_r: 010\nseed: 0x10\nmax-steps: 0o17\nepochs: 1:30\n")

    expected = {"lora_r": 10, "seed": 16, "max_steps": 15, "epochs": "1:30"}
    assert expected == read_settings(path)
    assert {"lora_r": 1, "seed": 2, "max_steps": 3, "epochs": 4} == find_lines(path)


@pytest.mark.parametrize(
    ("settings", "name", "block"),
    [
        ({}, "nf4", 64),
        ({"quant_block_size": 32}, "nf4", 32),
        ({"quant": "int4"}, "int4", 64),
        ({"quant": "mxfp4"}, "mxfp4", 32),
        ({"quant": "mxfp4", "quant_block_size": 32}, "mxfp4", 32),
    ],
)
def test_a_4_bit_format_brings_its_block_size(settings, name, block):
    config = load_config({**LEAST, "method": "qlora", **settings})

    assert (config.resolved_quant, config.resolved_quant_block_size) == (name, block)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"quant_block_size": 64}, "mxfp4 has blocks of 32 by definition, got 64"),
        ({"quant_search": 8}, "mxfp4 has nothing to search"),
    ],
)
def test_what_a_standard_fixes_is_no_setting(settings, problem):
    with pytest.raises(ConfigError, match=problem):
        load_config({**LEAST, "method": "qlora", "quant": "mxfp4", **settings})


@pytest.mark.parametrize(
    "setting", [{"quant": "nf4"}, {"quant_block_size": 32}, {"quant_search": 4}]
)
@pytest.mark.parametrize("method", ["lora", "full", "gptq", "dpo"])
def test_4_bit_settings_without_4_bits_are_refused_by_code(setting, method):
    with pytest.raises(UnsupportedCombination) as caught:
        load_config({**LEAST, "method": method, **setting})
    assert caught.value.codes == ("MP-R16",)
