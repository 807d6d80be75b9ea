"""Advice can really be typed: every command and flag that a probe names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import harness.probes
from mudpuppy.cli import COMMANDS, main
from mudpuppy.config import TrainingConfig
from mudpuppy.config_check import flag_of
from reports.commands.doctor import _parser

FILES = sorted(Path(harness.probes.__path__[0]).rglob("[a-z]*.py"))
DOCTOR = {option for action in _parser()._actions for option in action.option_strings}
FLAGS = DOCTOR | {flag_of(name) for name in TrainingConfig.model_fields}
OTHERS = {"--dtype", "--enable-lora", "--time-style", "--compute"}
OTHERS |= {"--pre-tokenizer", "--general-name"}
"""Flags of `vllm serve`, of `ls`, of `mud-puppy env` and of `gguf-new-metadata`."""
WORDS = {*COMMANDS, "..."}
"""What may follow `mud-puppy`; three dots stand for the words of the run."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_command_and_flag_in_a_probe_exists(path):
    text = re.sub(r'"\n\s*f?"', "", path.read_text(encoding="utf-8"))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) <= FLAGS | OTHERS
    for word in re.findall(r"mud-puppy ([a-z.]+)", text):
        assert word in WORDS
    for word in re.findall(r"mudpuppy-doctor ([a-z]+)", text):
        assert word in {"explain", "list", "selftest"}


def test_the_advice_on_the_embedded_model_exists():
    with pytest.raises(SystemExit) as stopped:
        main(["tiny", "build", "--help"])
    assert stopped.value.code == 0
