"""Rules MP-R42 to MP-R45: what does not go with forgetting rows, or with keeping near the base."""

from __future__ import annotations

from mudpuppy.features import METHODS, SFT_METHODS
from mudpuppy.ruleform import Rule
from mudpuppy.ruleform import make_rule as _rule

_SFT = " ".join(SFT_METHODS)

UNLEARNING_RULES: tuple[Rule, ...] = (
    _rule(
        "MP-R42",
        "unlearning-beyond-fine-tuning",
        " ".join(method for method in METHODS if method not in SFT_METHODS),
        "",
        any_of="unlearning retain-kl",
        reason="only plain fine-tuning weighs rows that are forgotten against rows that are kept; "
        "pairs already say which of two answers is to go",
        own_reasons={
            "gptq": "GPTQ takes no training steps and computes no loss",
            "qat": "the reference would be rounded to int8 as the model is, and none of it has "
            "been proven",
            "grpo rm prm": "answers are rewarded or judged here: no answer is there to forget",
            "multimodal": "rows with images carry no mark of what is to be forgotten",
        },
        hint="use --method lora, or leave out --unlearn and --retain-kl; --method dpo learns to "
        "refuse from pairs",
    ),
    _rule(
        "MP-R43",
        "forgetting-the-prompt",
        _SFT,
        "unlearning all-tokens",
        reason="the prompt of a forgotten row would be forgotten with its answer, and with it how "
        "to read questions at all",
        hint="leave out --no-response-only",
    ),
    _rule(
        "MP-R44",
        "unlearning-on-moving-weights",
        _SFT,
        "unlearning",
        any_of="streaming fsdp compile",
        reason="the loss asks for single tokens, and npo for a second pass as reference; neither "
        "is proven on layers that are streamed, sharded or compiled",
        hint="leave out --stream, --fsdp and --compile",
    ),
    _rule(
        "MP-R45",
        "retain-kl-on-moving-weights",
        _SFT,
        "retain-kl",
        any_of="streaming fsdp compile",
        reason="the reference is a second pass, or a copy of the model, and neither is proven on "
        "layers that are streamed, sharded or compiled",
        hint="leave out --stream, --fsdp and --compile",
    ),
)
"""Rejections of the objectives that have rows to forget or to keep."""
