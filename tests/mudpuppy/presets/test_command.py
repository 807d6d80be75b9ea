"""`mud-puppy presets` lists all, shows one, and what it shows can be typed."""

import json
import shlex

import pytest

from mudpuppy.cli import main
from mudpuppy.config_check import load_config
from mudpuppy.presets.loader import load_presets

LEAST = {"model": "tiny", "dataset": "d.jsonl", "output": "out"}


def test_all_are_listed(capsys):
    assert 0 == main(["presets"])
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]]

    assert list(load_presets()) == listed


@pytest.mark.parametrize("name", load_presets())
def test_what_one_shows_sets_the_same_when_it_is_typed(name, capsys):
    from mudpuppy.flags import typed_settings
    from mudpuppy.train_command import training_parser

    assert 0 == main(["presets", name])
    shown = [
        line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("--") and line[2] != "-"
    ]
    words = [word for line in shown for word in shlex.split(line.partition("  ")[0])]
    typed = typed_settings(training_parser().parse_args(["m", "d", *words]))
    typed = {name: value for name, value in typed.items() if name not in LEAST}

    made = load_config({**LEAST, **typed})
    assert made == load_config({**LEAST, "preset": name}).model_copy(update={"preset": None})


def test_programs_get_value_and_source(capsys):
    assert 0 == main(["presets", "lora-14b-16gb", "--format", "json"])
    (one,) = json.loads(capsys.readouterr().out).values()

    assert 64 == one["settings"]["lora_r"]["value"]
    assert "Recommended Settings" in one["settings"]["lora_r"]["from"]
    assert 16 == one["memory_gib"]


def test_an_unknown_name_exits_with_2(capsys):
    assert 2 == main(["presets", "lora-14b"])
    assert "there is no preset lora-14b; did you mean" in capsys.readouterr().err
