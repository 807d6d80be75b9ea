"""Rules MP-R50 to MP-R59: where layers, gradients and optimizer states may be at the same time."""

from __future__ import annotations

from mudpuppy.ruleform import Rule
from mudpuppy.ruleform import make_rule as _rule

DEVICE_RULES: tuple[Rule, ...] = (
    _rule(
        "MP-R50",
        "two-ways-to-place-layers",
        "*",
        "device-map",
        any_of="streaming fsdp",
        reason="the layers cannot be spread over devices and be streamed or sharded as well",
        hint="keep one of --device-map, --stream and --fsdp",
    ),
    _rule(
        "MP-R51",
        "gptq-with-device-map",
        "gptq",
        "device-map",
        reason="GPTQ brings one block at a time to one device",
        hint="leave out --device-map",
    ),
    _rule(
        "MP-R52",
        "zero-offload-with-streaming",
        "*",
        "zero-offload streaming",
        reason="with --stream all optimizer states are on the host already",
        hint="leave out --zero-offload",
    ),
    _rule(
        "MP-R53",
        "fsdp-with-host-memory",
        "*",
        "fsdp",
        any_of="streaming zero-offload",
        reason="FSDP owns weights and optimizer states, and moves them itself",
        hint="keep one of --fsdp, --stream and --zero-offload",
    ),
    _rule(
        "MP-R54",
        "fsdp-beyond-fine-tuning",
        "qlora qat dpo ipo kto orpo grpo rm prm multimodal",
        "fsdp",
        reason="packed 4-bit weights are no parameters that could be sharded, and the other "
        "methods read weights, references or generations whole; none of it has been proven",
        hint="use --method full or lora, or several processes without --fsdp",
    ),
    _rule(
        "MP-R55",
        "fsdp-in-half-precision",
        "full lora",
        "fsdp",
        precisions="fp16 fp8",
        reason="the loss scale of fp16 and the patched linears of fp8 have not been proven on "
        "sharded weights",
        hint="use --precision bf16 or fp32",
    ),
    _rule(
        "MP-R56",
        "compile-with-streaming",
        "*",
        "compile streaming",
        reason="streaming lends each layer other weights at every call, and the compiler would "
        "compile for each",
        hint="leave out --compile or --stream",
    ),
    _rule(
        "MP-R57",
        "compile-with-reinforcement",
        "grpo",
        "compile",
        reason="generation calls the model with a new shape for every token",
        hint="leave out --compile",
    ),
    _rule(
        "MP-R58",
        "fsdp-with-checkpoints",
        "*",
        "fsdp",
        any_of="checkpoints early-stopping",
        reason="the checkpoints of sharded weights have not been proven to resume exactly",
        hint="leave out --fsdp, or --save-steps and --early-stopping",
    ),
    _rule(
        "MP-R59",
        "preprocess-workers-beyond-fine-tuning",
        "dpo ipo kto orpo grpo rm prm multimodal",
        "preprocess-workers",
        reason="the samples of this method are looked at beside the model, or hold images, and are "
        "prepared in the process that has both",
        hint="leave out --preprocess-workers",
    ),
)
"""Rejections of one way to place a model beside another."""
