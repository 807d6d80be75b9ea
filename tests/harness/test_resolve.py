"""Settings that are put together are the ones that are checked whole."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.resolve import Layered, Resolver
from mudpuppy.config import TrainingConfig
from mudpuppy.config_check import check_values
from mudpuppy.errors import ConfigError
from mudpuppy.features import METHODS, PRECISIONS

VALUES = {
    "method": [*METHODS, "preference", "rl", "sft"],
    "preference": ["dpo", "ipo", None, "ppo"],
    "precision": [*PRECISIONS, "int8"],
    "use_peft": [True, False, None],
    "max_steps": [3, "4", None, 0],
    "warmup_steps": [0, 2, 3],
    "batch_size": [1, 2, 4, True],
    "gradient_accumulation": [1, 3],
    "num_generations": [2, 4],
    "reward_funcs": [[], ["length"], "length"],
    "learning_rate": [1e-3, "5e-4", float("nan"), -1],
    "eval_fraction": [0, 0.0, -0.0, 0.25],
    "early_stopping": [None, 1, True],
    "device_map": [None, "cpu", "auto", "moon"],
    "report_to": [[], ["tensorboard"], ["paper"]],
    "stream": [True, False, 1],
    "adapter": [None, "@adapter", "~/a", ""],
    "dataset": ["data.jsonl", "sub/data.jsonl", 7],
    "model": ["tiny", "tiny:llama", "./tiny"],
    "lora_target_modules": [["q_proj"], ["all-linear"]],
    "no_such_setting": [1],
    "output": ["elsewhere"],
}
rows = st.lists(st.sampled_from(list(VALUES)), unique=True, max_size=6).flatmap(
    lambda names: st.fixed_dictionaries({name: st.sampled_from(VALUES[name]) for name in names})
)
FOLDER = Path("/data")
BASE = {"model": "tiny", "dataset": "data.jsonl"}


def outcome_of(work):
    """Return what came out, or the problems."""
    try:
        return "fine", work()
    except ConfigError as error:
        return "wrong", error.problems


def whole(values):
    config = check_values({**values, "output": "checkpoint"})
    plain = config.model_dump(mode="json", exclude={"output"})
    return json.dumps(plain, sort_keys=True), config.features


@settings(deadline=None, max_examples=300)
@given(rows, st.lists(rows, min_size=1, max_size=4))
def test_the_rows_of_a_product_are_those_that_are_checked_whole(shared, many):
    resolver = Resolver(FOLDER, FOLDER)
    shared = {**BASE, **shared}
    shared.pop("output", None)

    for own in many:
        own.pop("output", None)
        word, expected = outcome_of(lambda: whole({**shared, **own}))  # noqa: B023
        found_word, found = outcome_of(lambda: resolver.resolve(shared, own))  # noqa: B023

        assert word == found_word
        if word == "wrong":
            assert expected == found
        else:
            assert expected == (found.as_written, found.features)
            assert {*TrainingConfig.field_names()} - {"output"} == {*found.config}


def test_what_stands_by_itself_is_checked_once(monkeypatch):
    resolver = Resolver(FOLDER, FOLDER)
    resolver.resolve(BASE, {"method": "full", "seed": 1})
    resolver.resolve(BASE, {"method": "lora", "seed": 2})
    monkeypatch.setattr(
        "harness.resolve.check_values", lambda values: pytest.fail(f"checked again: {values}")
    )
    monkeypatch.setattr(
        "harness.resolve.load_config", lambda values: pytest.fail(f"checked again: {values}")
    )

    found = resolver.resolve(BASE, {"method": "full", "seed": 2})

    assert ("full", 2, "tiny") == tuple(found.config[n] for n in ("method", "seed", "model"))


def test_paths_are_absolute_in_the_settings_and_as_written_in_the_identity():
    found = Resolver(FOLDER, FOLDER).resolve(BASE, {"dataset": "more.jsonl"})

    assert "/data/more.jsonl" == found.config["dataset"]
    assert "more.jsonl" == json.loads(found.as_written)["dataset"]


def test_layers_look_like_the_dict_that_they_are():
    layered = Layered({"a": 1, "b": None}, {"b": 2})

    assert {"a": 1, "b": 2} == dict(layered) == layered
    assert (2, True, False) == (len(layered), "b" in layered, "c" in layered)
    assert "{'a': 1, 'b': 2}" == repr(layered)
