"""Every preset passes all checks, says where its values come from, and gives way to flags."""

import pytest

from mudpuppy.cli import main
from mudpuppy.config_check import is_of_preset, load_config, unread_settings
from mudpuppy.errors import ConfigError, UsageError
from mudpuppy.presets.loader import find_preset, load_presets, load_shapes, settings_of
from mudpuppy.runtime import choose_runtime

LEAST = {"model": "tiny", "dataset": "d.jsonl", "output": "out"}
GUIDE = {
    "lora_r": 64,
    "lora_alpha": 128,
    "lora_dropout": 0.05,
    "learning_rate": 2e-4,
    "epochs": 3,
    "warmup_steps": 100,
    "weight_decay": 0.01,
    "precision": "fp16",
    "gradient_checkpointing": True,
}
"""The guide's recommended settings, but for what depends on memory."""
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize("name", load_presets())
def test_every_preset_passes_the_whole_check_and_the_rule_table(name):
    preset = find_preset(name)
    config = load_config({**LEAST, "preset": name})

    assert config.decide().accepted
    assert () == unread_settings(load_config({**LEAST, **preset.settings}))  # each one is read
    for field in preset.settings:
        assert is_of_preset(field, config), field
        assert preset.reasons[field]
    assert preset.what
    assert preset.shape in load_shapes()
    assert f"{preset.memory}gb" in name or name.startswith("temporal")


def test_the_recommended_preset_is_the_guides():
    config = load_config({**LEAST, "preset": "lora-14b-16gb"})

    assert {name: getattr(config, name) for name in GUIDE} == GUIDE
    assert config.lora_target_modules == MODULES
    assert config.batch_size * config.gradient_accumulation == 4 * 4
    assert config.trains_adapter


def test_what_is_given_wins_over_the_preset(tmp_path, capsys):
    config = load_config({**LEAST, "preset": "lora-14b-16gb", "lora_r": 8, "method": "lora"})

    assert (8, "lora", 128) == (config.lora_r, config.method, config.lora_alpha)
    assert not is_of_preset("lora_r", config)
    assert is_of_preset("lora_alpha", config)
    (tmp_path / "run.yaml").write_text("preset: temporal-dev\nlora_r: 4\nlearning_rate: 1e-3\n")
    words = [str(tmp_path / "none"), "d.jsonl", "--config", str(tmp_path / "run.yaml")]
    assert 2 == main([*words, "--lora-r", "0", "--output", str(tmp_path / "out")])
    assert "--lora-r" in capsys.readouterr().err  # flags over file over preset


def test_flags_win_over_a_file_which_wins_over_the_preset():
    from_file = {"preset": "temporal-dev", "lora_r": 4, "epochs": 2}
    config = load_config({**LEAST, **from_file, "lora_r": 6})

    assert (6, 2.0, 16) == (config.lora_r, config.epochs, config.lora_alpha)


def test_an_unknown_preset_is_refused_with_near_names(capsys):
    with pytest.raises(ConfigError, match="did you mean 'lora-14b-16gb'"):
        load_config({**LEAST, "preset": "lora-14b-16g"})
    with pytest.raises(UsageError, match="did you mean"):
        find_preset("temporal-production-8g")
    assert 2 == main(["tiny", "d.jsonl", "--preset", "nonsense", "--output", "out"])
    assert "--preset: there is no preset 'nonsense'" in capsys.readouterr().err
    assert {} == settings_of(3)


def test_settings_of_the_preset_that_a_run_does_not_read_are_not_told():
    config = load_config({**LEAST, "preset": "temporal-dev", "method": "full"})

    assert () == unread_settings(config)
    given = load_config({**LEAST, "preset": "temporal-dev", "method": "full", "lora_r": 5})
    assert ("lora_r",) == unread_settings(given)


def test_the_record_says_which_preset_and_what_was_set_otherwise():
    values = {**LEAST, "preset": "temporal-dev", "device": "cpu", "lora_r": 4}
    said = choose_runtime(load_config(values)).choices["preset"]

    assert ("temporal-dev", "asked for; set otherwise: lora_r") == (said.value, said.reason)
    assert "preset" not in choose_runtime(load_config({**LEAST, "device": "cpu"})).choices
