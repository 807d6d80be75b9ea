"""What would fit is never what was asked for already."""

import pytest
from transformers import LlamaConfig

from mudpuppy.config_check import load_config
from mudpuppy.estimate.advice import find_options

SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 500}


@pytest.mark.parametrize("asked", ["stream", "zero_offload"])
def test_what_was_asked_for_is_no_option(asked: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mudpuppy.estimate.advice.ENOUGH", 99)
    flag = "--" + asked.replace("_", "-")
    fixed = {"model": "m", "dataset": "d.jsonl", "output": "o", "method": "full"}
    run = load_config({**fixed, asked: True})
    options = find_options(LlamaConfig(**SIZES), run, 1 << 60)

    assert options
    lasting = [one.flags for one in options if f"(without {flag})" not in one.flags]
    assert not any(flag in flags for flags in lasting)
    assert any("--method qlora" in one.flags for one in options)
