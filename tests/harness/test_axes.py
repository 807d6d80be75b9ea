"""The settings of a combination are those that the rule table would read back as it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.axes import MERGE_PRECISIONS, read_features, settings_for
from mudpuppy.config import TrainingConfig
from mudpuppy.features import FEATURES, METHODS, PRECISIONS

combinations = st.tuples(
    st.sampled_from(METHODS), st.sampled_from(PRECISIONS), st.sets(st.sampled_from([*FEATURES]))
)


def config_of(method: str, precision: str, features) -> TrainingConfig:
    settings = settings_for(method, precision, features)
    return TrainingConfig.model_validate(
        {"model": "tiny", "dataset": "data.jsonl", "output": "out", **settings}
    )


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_each_feature_switches_on_itself_and_nothing_else(feature: str, precision: str):
    assert {feature} == config_of("lora", precision, [feature]).features


@given(combinations)
def test_a_combination_is_read_back_as_it_was_asked_for(asked):
    method, precision, features = asked

    config = config_of(method, precision, features)

    assert (config.method, config.precision, config.features) == asked


def test_the_order_in_which_features_are_named_changes_nothing():
    names = [*FEATURES]

    assert settings_for("full", "fp32", names) == settings_for("full", "fp32", names[::-1])


def test_a_merge_is_asked_for_in_another_type_than_the_computation():
    assert not [one for one in PRECISIONS if MERGE_PRECISIONS[one] == one]


@pytest.mark.parametrize(
    ("word", "expected"),
    [("none", ()), ("dora", ("dora",)), ("packing+dora", ("dora", "packing"))],
)
def test_a_word_of_the_axis_names_features_in_the_order_of_the_table(word: str, expected):
    assert expected == read_features(word)


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("pack", "did you mean"),
        ("dora+dora", "twice"),
        ("", "no feature ''"),
        ("none+dora", "none"),
    ],
)
def test_a_word_that_names_no_feature_is_refused(word: str, why: str):
    with pytest.raises(ValueError, match=why):
        read_features(word)


@pytest.mark.parametrize(
    "asked", [("sft", "bf16", ()), ("lora", "int8", ()), ("lora", "bf16", ("streams",))]
)
def test_names_that_the_table_does_not_know_are_refused(asked):
    with pytest.raises(ValueError):
        settings_for(*asked)
