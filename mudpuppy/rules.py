"""The one rule table: method x precision x feature -> accepted, or rejected by code.

The validator, `mud-puppy explain` and the expectations of the pressure matrix all read it. Standard
library only: a rejection is spoken before torch is imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product

from mudpuppy.features import FEATURES, METHODS, PRECISIONS
from mudpuppy.ruleform import Need, Rule
from mudpuppy.ruleform import make_rule as _rule
from mudpuppy.rules_devices import DEVICE_RULES
from mudpuppy.rules_unlearning import UNLEARNING_RULES

NEEDS: tuple[Need, ...] = (
    Need(feature="compile", what="a C++ compiler (g++) or Triton, for torch's inductor"),
    Need(feature="fsdp", what="two processes, started with torchrun or accelerate launch"),
)
"""Every need, in the order of the features."""


_WITHOUT_STEPS = "packing tokens-per-batch zero-offload compile checkpoints logging fsdp all-tokens"
"""Features of a training loop."""
_NOT_SUPERVISED = "dpo ipo kto orpo grpo rm prm"
"""Methods whose rows are more than one text to continue."""
_OF_AN_ADAPTER = "dora rslora continue-adapter"

RULES: tuple[Rule, ...] = (
    _rule(
        "MP-R01",
        "gptq-with-streaming",
        "gptq",
        "streaming",
        reason="GPTQ already walks the model one block at a time and has no backward pass to "
        "stream for",
        hint="leave out --stream",
    ),
    _rule(
        "MP-R02",
        "gptq-with-gradient-checkpointing",
        "gptq",
        "gradient-checkpointing",
        reason="GPTQ has no backward pass, so there are no activations to recompute",
        hint="leave out --gradient-checkpointing",
    ),
    _rule(
        "MP-R03",
        "gptq-with-early-stopping",
        "gptq",
        "early-stopping",
        reason="GPTQ calibrates once and takes no training steps that could stop early",
        hint="leave out --early-stopping",
    ),
    _rule(
        "MP-R04",
        "gptq-with-lr-scheduler",
        "gptq",
        "lr-scheduler",
        reason="GPTQ has no learning rate to schedule",
        hint="leave out --lr-scheduler",
    ),
    _rule(
        "MP-R05",
        "merge-without-adapter",
        "full gptq qat",
        "merge-lora",
        reason="there is no adapter to merge: this method changes the weights of the model itself",
        hint="leave out --merge-lora, or use --method lora",
    ),
    _rule(
        "MP-R06",
        "early-stopping-without-evaluation",
        " ".join(method for method in METHODS if method != "gptq"),
        "early-stopping no-evaluation",
        reason="early stopping watches the evaluation loss, and no samples are held out to "
        "compute it",
        hint="set --eval-fraction above 0, such as 0.1",
    ),
    _rule(
        "MP-R07",
        "lora-with-streaming",
        "lora",
        "streaming",
        reason="only full fine-tuning is promised with streamed layers; the old obstacle (adapter "
        "modules stayed behind when a layer moved) is gone, and --audit-rejections says so: frozen "
        "weights are streamed and the adapter lives on the device, but none of it is proven on a "
        "GPU with merging, resuming and every form of adapter",
        hint="leave out --stream, or use --method full --stream; to save memory with an adapter, "
        "use --method qlora",
    ),
    _rule(
        "MP-R08",
        "qlora-with-streaming",
        "qlora",
        "streaming",
        reason="only full fine-tuning is promised with streamed layers; packed 4-bit weights could "
        "be streamed as they are by now, but it is not proven with adapters, merging and resuming",
        hint="leave out --stream: qlora already keeps the base at about 4.5 bits a weight",
    ),
    _rule(
        "MP-R09",
        "gptq-with-training-loop",
        "gptq",
        "",
        any_of=_WITHOUT_STEPS,
        reason="GPTQ takes no training steps and computes no loss",
        hint="leave the flag out",
    ),
    _rule(
        "MP-R10",
        "adapter-setting-without-adapter",
        "full gptq qat",
        "",
        any_of=_OF_AN_ADAPTER,
        reason="this method trains the weights of the model itself and has no adapter",
        hint="leave the flag out, or use --method lora",
    ),
    _rule(
        "MP-R11",
        "adapter-method-without-adapter",
        "lora qlora",
        "full-weights",
        reason="the method is named for the adapter that it trains",
        hint="use --method full",
    ),
    _rule(
        "MP-R12",
        "merge-precision-without-merge",
        "*",
        "merge-precision",
        without="merge-lora",
        reason="nothing is merged, so there is nothing to save in another type",
        hint="add --merge-lora",
    ),
    _rule(
        "MP-R13",
        "adapter-setting-with-full-weights",
        "dpo ipo kto orpo grpo rm prm multimodal",
        "full-weights",
        any_of=_OF_AN_ADAPTER + " merge-lora",
        reason="--no-use-peft trains the weights of the model itself, so there is no adapter",
        hint="leave out --no-use-peft or the other flag",
    ),
    _rule(
        "MP-R14",
        "streaming-beyond-fine-tuning",
        "dpo ipo kto orpo grpo rm prm multimodal",
        "streaming",
        reason="the reference is a second model that would lie whole on the device, and a model "
        "cannot be copied while its layers are streamed; or it is the model without its adapter, "
        "under which streaming is not promised (MP-R07)",
        own_reasons={
            "orpo rm prm multimodal": "with all weights nothing is known to stand in its way, but "
            "no cell holds it to that yet; under an adapter streaming is not promised (MP-R07)",
            "grpo": "generation would bring every layer to the device for every token; under an "
            "adapter streaming is not promised (MP-R07)",
        },
        hint="leave out --stream; to save memory, use --gradient-checkpointing",
    ),
    _rule(
        "MP-R15",
        "new-settings-for-old-adapter",
        "lora qlora dpo ipo kto orpo grpo rm prm multimodal",
        "continue-adapter",
        any_of="dora rslora",
        reason="an adapter that is trained on keeps the form it was made with",
        hint="leave out --use-dora and --use-rslora, or leave out --adapter",
    ),
    _rule(
        "MP-R16",
        "four-bit-settings-without-four-bits",
        " ".join(method for method in METHODS if method != "qlora"),
        "",
        any_of="quant quant-block-size quant-search no-kernels",
        reason="only qlora holds its base in 4 bits: for any other method the setting would be "
        "ignored",
        hint="leave the flag out, or use --method qlora",
    ),
    _rule(
        "MP-R20",
        "packing-outside-supervised",
        _NOT_SUPERVISED,
        "packing",
        reason="rows of this method are pairs or prompts, which cannot share a row",
        hint="leave out --packing",
    ),
    _rule(
        "MP-R21",
        "tokens-per-batch-outside-supervised",
        _NOT_SUPERVISED,
        "tokens-per-batch",
        reason="rows of this method are pairs or prompts, whose tokens are not one count",
        hint="leave out --tokens-per-batch, and use --batch-size",
    ),
    _rule(
        "MP-R22",
        "packing-with-tokens-per-batch",
        "full lora qlora qat",
        "packing tokens-per-batch",
        reason="a packed batch is filled to batch_size x max_length tokens already",
        hint="leave out --tokens-per-batch, and set --max-length and --batch-size",
    ),
    _rule(
        "MP-R23",
        "packing-with-compile",
        "full lora qlora qat",
        "packing compile",
        reason="the documents of every batch have other lengths, and each would be compiled again",
        hint="leave out --compile",
    ),
    _rule(
        "MP-R30",
        "fp8-with-quantised-weights",
        "qlora gptq qat",
        "",
        precisions="fp8",
        reason="the linear layers of this method have a grid of their own (4-bit levels, GPTQ's, "
        "int8), and fp8 would round them a second time",
        hint="use --precision bf16, or --method full or lora with --precision fp8",
    ),
    _rule(
        "MP-R31",
        "multimodal-with-packing",
        "multimodal",
        "packing",
        reason="a row holds its images beside its tokens, and models place them by their order in "
        "the row: several conversations in one row would share them",
        hint="leave out --packing",
    ),
    _rule(
        "MP-R32",
        "multimodal-without-chat-template",
        "multimodal",
        "no-chat-template",
        reason="the chat template is what says where an image stands in the text",
        hint="leave out --no-chat-template",
    ),
    _rule(
        "MP-R33",
        "int8-ranges-without-qat",
        " ".join(method for method in METHODS if method != "qat"),
        "",
        any_of="static-activations learned-ranges",
        reason="only quantisation-aware training rounds to int8 while it trains, so there are no "
        "ranges to share or to learn",
        hint="leave out --qat-activations and --qat-ranges, or use --method qat",
    ),
    _rule(
        "MP-R34",
        "delayed-scaling-without-fp8",
        "*",
        "delayed-scaling",
        precisions="fp32 bf16 fp16",
        reason="nothing is computed in fp8, so there are no scales to delay",
        hint="leave out --fp8-scaling, or use --precision fp8",
    ),
    _rule(
        "MP-R35",
        "delayed-scaling-with-compile",
        "*",
        "delayed-scaling compile",
        reason="the largest values of a step are noted inside the layers, forward and backward, "
        "and torch's compiler takes no such side effect there",
        hint="leave out --compile, or use --fp8-scaling current",
    ),
    _rule(
        "MP-R40",
        "all-tokens-without-token-loss",
        "dpo ipo kto grpo rm prm",
        "all-tokens",
        reason="the loss of this method compares answers or judges steps: there is no loss on the "
        "tokens of a prompt that could be switched on",
        hint="leave out --no-response-only",
    ),
    _rule(
        "MP-R41",
        "grpo-with-early-stopping",
        "grpo",
        "early-stopping",
        reason="the loss of GRPO is near 0 whatever the answers are worth, so its evaluation loss "
        "says nothing; the reward in steps.jsonl does",
        hint="leave out --early-stopping, and set --max-steps",
    ),
    *UNLEARNING_RULES,
    *DEVICE_RULES,
)
"""Every rejection, in code order."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the table says about one combination."""

    method: str
    """The method asked for."""
    precision: str
    """The precision asked for."""
    features: tuple[str, ...]
    """The features that are on, in table order."""
    rejections: tuple[Rule, ...]
    """Every rule that applies; empty when the combination is accepted."""

    @property
    def accepted(self) -> bool:
        """Whether the combination is promised to work."""
        return not self.rejections

    @property
    def needs(self) -> tuple[str, ...]:
        """What the machine must have for it; the combination is not run where it is not there."""
        return tuple(need.what for need in NEEDS if need.feature in self.features)

    @property
    def word(self) -> str:
        """`accepted`, or `rejected` with the codes."""
        if self.accepted:
            return "; ".join(["accepted", *(f"needs {need}" for need in self.needs)])
        return "rejected " + " ".join(rule.code for rule in self.rejections)


def decide(method: str, precision: str, features: Iterable[str] = ()) -> Decision:
    """Look one combination up in the table.

    Raises:
        ValueError: a method, precision or feature that the table does not know.
    """
    wanted = set(features)
    for kind, name, known in (
        ("method", method, METHODS),
        ("precision", precision, PRECISIONS),
        *(("feature", one, tuple(FEATURES)) for one in wanted),
    ):
        if name not in known:
            raise ValueError(f"unknown {kind} '{name}'; known: {', '.join(known)}")
    return Decision(
        method=method,
        precision=precision,
        features=tuple(name for name in FEATURES if name in wanted),
        rejections=tuple(rule for rule in RULES if rule.applies(method, precision, wanted)),
    )


def every_single_feature() -> tuple[Decision, ...]:
    """Return the decision for every method x precision, alone and with each single feature."""
    return tuple(
        decide(method, precision, () if feature is None else (feature,))
        for method, precision, feature in product(METHODS, PRECISIONS, (None, *FEATURES))
    )


def describe(decision: Decision, typed: Mapping[str, str] | None = None) -> str:
    """Return the decision as a person reads it: the combination, the verdict, why, what instead.

    Args:
        decision: what the table says.
        typed: the values that were typed, by their flags; examples stand for the others.
    """
    flags = " ".join(_as_typed(FEATURES[name].flag, typed or {}) for name in decision.features)
    asked = f"--method {decision.method} --precision {decision.precision} {flags}".rstrip()
    lines = [f"{asked}: {'accepted' if decision.accepted else 'rejected'}"]
    lines += [f"  needs {need}" for need in decision.needs]
    for rule in decision.rejections:
        lines += [
            f"  {rule.code} {rule.name}",
            f"    why      {rule.reason_for(decision.method)}",
            f"    instead  {rule.hint}",
        ]
    return "\n".join(lines)


def _as_typed(example: str, typed: Mapping[str, str]) -> str:
    flag, _, value = example.partition(" ")
    return f"{flag} {typed.get(flag, value)}" if value else flag
