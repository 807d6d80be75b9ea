"""The probe that somebody means: by code, name, mode, or what a library printed."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.doctor.explain import find_probes
from mudpuppy.errors import UsageError


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (
            "UserWarning: Found missing adapter keys while loading the checkpoint: "
            "['base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight']",
            "adapter-keys-dead",
        ),
        (
            "Some weights of LlamaForCausalLM were not initialized from the model checkpoint at "
            "./out and are newly initialized: ['lm_head.weight']",
            "missing-tensors",
        ),
        (
            "/site-packages/peft/tuners/tuners_utils.py:331: UserWarning: Already found a "
            "`peft_config` attribute in the model. This will lead to having multiple adapters",
            "leftover-peft-config",
        ),
    ],
)
def test_a_pasted_warning_finds_the_probe_that_knows_it(text, name):
    assert name in [one.name for one in find_probes(text)][:3]


def test_codes_names_and_modes_are_found():
    assert [one.code for one in find_probes(" mpd203 ")] == ["MPD203"]
    assert [one.code for one in find_probes("adapter-never-trained")] == ["MPD203"]
    assert {"MPD201", "MPD502"} <= {one.code for one in find_probes("fm17")}
    assert {one.code[:4] for one in find_probes("MPD2")} == {"MPD2"}


def test_what_nobody_knows_is_told_its_neighbours():
    with pytest.raises(UsageError, match="did you mean 'adapter-stacked'"):
        find_probes("adapter-staked")
    with pytest.raises(UsageError, match="no probe"):
        find_probes("zyx wvu tsr qpo")


@settings(max_examples=30)
@given(st.text(max_size=60))
def test_any_text_has_an_answer_or_is_refused(text):
    with suppress(UsageError):
        assert find_probes(text)
