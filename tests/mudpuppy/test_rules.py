"""The rule table: what it rejects, by which code, and that it is complete and consistent."""

import re
import subprocess
import sys

import pytest

from mudpuppy.features import FEATURES, METHODS, PRECISIONS
from mudpuppy.rules import (
    RULES,
    decide,
    describe,
    every_single_feature,
)


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_adapter_with_streaming_is_rejected_in_every_precision(method: str, precision: str):
    decision = decide(method, precision, {"streaming"})

    assert not decision.accepted
    code = {"lora": "MP-R07", "qlora": "MP-R08"}[method]
    assert code in [rule.code for rule in decision.rejections]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_full_fine_tuning_with_streaming_is_accepted(precision: str):
    assert decide("full", precision, {"streaming", "gradient-checkpointing"}).accepted


def test_every_rejection_is_reported_not_only_the_first():
    decision = decide("gptq", "fp32", {"streaming", "early-stopping", "merge-lora"})

    assert ["MP-R01", "MP-R03", "MP-R05"] == [rule.code for rule in decision.rejections]


def test_codes_are_unique_well_formed_and_in_order():
    codes = [rule.code for rule in RULES]

    assert sorted(set(codes)) == codes
    assert all(re.fullmatch(r"MP-R\d\d", code) for code in codes)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_every_rule_can_be_met_and_explains_itself(rule):
    assert rule.methods <= set(METHODS)
    assert rule.features | rule.any_of | rule.without <= set(FEATURES)
    assert rule.precisions <= set(PRECISIONS)
    features = rule.features | set(sorted(rule.any_of)[:1])
    decision = decide(sorted(rule.methods)[0], sorted(rule.precisions)[0], features)
    assert rule in decision.rejections
    text = describe(decision)
    assert rule.code in text
    assert rule.reason_for(decision.method) in text
    assert set(rule.own_reasons) <= rule.methods
    assert rule.hint in text


def test_a_method_alone_is_always_accepted_in_the_common_precisions():
    alone = [d for d in every_single_feature() if not d.features]

    assert len(METHODS) * len(PRECISIONS) == len(alone)
    assert all(decision.accepted for decision in alone if decision.precision != "fp8")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_a_rule_is_silent_where_one_of_its_conditions_is_missing(rule):
    everything = rule.features | set(sorted(rule.any_of)[:1])
    for left_out in rule.features:
        assert not rule.applies(sorted(rule.methods)[0], "fp32", everything - {left_out})
    if rule.any_of:
        assert not rule.applies(sorted(rule.methods)[0], "fp32", rule.features - rule.any_of)
    for other in set(METHODS) - rule.methods:
        assert not rule.applies(other, "fp32", everything)
    for feature in rule.without:
        assert not rule.applies(sorted(rule.methods)[0], "fp32", everything | {feature})


@pytest.mark.parametrize(
    ("method", "precision", "features"),
    [("lroa", "fp32", ()), ("lora", "fp64", ()), ("lora", "fp32", ("warp",))],
)
def test_an_unknown_word_is_an_error(method, precision, features):
    with pytest.raises(ValueError, match="unknown"):
        decide(method, precision, features)


def test_streaming_is_refused_for_the_reason_that_is_true_of_the_method():
    texts = {m: describe(decide(m, "bf16", {"streaming"})) for m in ("dpo", "rm", "grpo")}

    assert "reference" in texts["dpo"]
    assert "reference" not in texts["rm"] + texts["grpo"]
    assert "generation" in texts["grpo"]
    (rule,) = (rule for rule in RULES if rule.code == "MP-R14")
    assert all(text in rule.every_reason for text in (rule.reason, "orpo, rm, prm, multimodal: "))


def test_explain_prints_the_verdict_without_importing_torch():
    code = (
        "import sys; from mudpuppy.cli import main; "
        "code = main(['explain', '--method', 'lora', '--stream']); "
        "sys.exit(code if 'torch' not in sys.modules else 99)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "rejected" in done.stdout
    assert "MP-R07 lora-with-streaming" in done.stdout
