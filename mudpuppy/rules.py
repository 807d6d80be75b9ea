"""The one rule table: method x precision x feature -> accepted, or rejected by code.

The validator, `mud-puppy explain` and the expectations of the pressure matrix all read it. Standard
library only: a rejection is spoken before torch is imported.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

METHODS = ("full", "lora", "qlora", "gptq")
"""Training methods, in the order they are listed everywhere."""
ADAPTER_METHODS = frozenset({"lora", "qlora"})
"""Methods that train an adapter beside frozen base weights."""
PRECISIONS = ("fp32", "bf16", "fp16")
"""Precisions, by the names people use for them."""


@dataclass(frozen=True, kw_only=True)
class Feature:
    """Something that can be switched on beside a method and a precision."""

    name: str
    """Stable name, as used in scenario files and tables."""
    flag: str
    """What a person types to switch it on."""
    what: str
    """What it does, in a few words."""


FEATURES: dict[str, Feature] = {
    feature.name: feature
    for feature in (
        Feature(
            name="streaming",
            flag="--stream",
            what="layers wait on the host, one at a time computes",
        ),
        Feature(
            name="gradient-checkpointing",
            flag="--gradient-checkpointing",
            what="activations are recomputed in the backward pass",
        ),
        Feature(
            name="early-stopping",
            flag="--early-stopping",
            what="training ends when the evaluation loss stops falling",
        ),
        Feature(
            name="lr-scheduler",
            flag="--lr-scheduler cosine",
            what="a schedule for the learning rate other than linear",
        ),
        Feature(
            name="merge-lora",
            flag="--merge-lora",
            what="the trained adapter is folded into the base and saved as a model",
        ),
        Feature(
            name="no-evaluation",
            flag="--eval-fraction 0",
            what="no sample is held out for evaluation",
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One row of the table: with any of `methods`, `features` together do not work."""

    code: str
    """Stable code; never reused for something else."""
    name: str
    """What is combined, as a short phrase with dashes."""
    methods: frozenset[str]
    """Methods the rule is about."""
    features: frozenset[str]
    """Features that must all be on for the rule to apply."""
    reason: str
    """Why it cannot work."""
    hint: str
    """What to type instead."""

    def applies(self, method: str, features: Iterable[str]) -> bool:
        """Return whether the rule rejects this combination."""
        return method in self.methods and self.features <= set(features)


def _rule(code: str, name: str, methods: str, features: str, reason: str, hint: str) -> Rule:
    return Rule(
        code=code,
        name=name,
        methods=frozenset(methods.split()),
        features=frozenset(features.split()),
        reason=reason,
        hint=hint,
    )


RULES: tuple[Rule, ...] = (
    _rule(
        "MP-R01",
        "gptq-with-streaming",
        "gptq",
        "streaming",
        "GPTQ already walks the model one block at a time and has no backward pass to stream for",
        "leave out --stream",
    ),
    _rule(
        "MP-R02",
        "gptq-with-gradient-checkpointing",
        "gptq",
        "gradient-checkpointing",
        "GPTQ has no backward pass, so there are no activations to recompute",
        "leave out --gradient-checkpointing",
    ),
    _rule(
        "MP-R03",
        "gptq-with-early-stopping",
        "gptq",
        "early-stopping",
        "GPTQ calibrates once and takes no training steps that could stop early",
        "leave out --early-stopping",
    ),
    _rule(
        "MP-R04",
        "gptq-with-lr-scheduler",
        "gptq",
        "lr-scheduler",
        "GPTQ has no learning rate to schedule",
        "leave out --lr-scheduler",
    ),
    _rule(
        "MP-R05",
        "merge-without-adapter",
        "full gptq",
        "merge-lora",
        "there is no adapter to merge: this method changes the weights of the model itself",
        "leave out --merge-lora, or use --method lora",
    ),
    _rule(
        "MP-R06",
        "early-stopping-without-evaluation",
        "full lora qlora",
        "early-stopping no-evaluation",
        "early stopping watches the evaluation loss, and no samples are held out to compute it",
        "set --eval-fraction above 0, such as 0.1",
    ),
    _rule(
        "MP-R07",
        "lora-with-streaming",
        "lora",
        "streaming",
        "adapter modules that are added after the streaming hooks stay behind when a layer moves "
        "between host and device, so this pair is not promised to train what it seems to",
        "leave out --stream, or use --method full --stream; to save memory with an adapter, "
        "use --method qlora",
    ),
    _rule(
        "MP-R08",
        "qlora-with-streaming",
        "qlora",
        "streaming",
        "adapter modules that are added after the streaming hooks stay behind, and packed 4-bit "
        "weights are no parameters that the hooks could move",
        "leave out --stream: qlora already keeps the base at about 4.5 bits a weight",
    ),
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
    def word(self) -> str:
        """`accepted`, or `rejected` with the codes."""
        if self.accepted:
            return "accepted"
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
        rejections=tuple(rule for rule in RULES if rule.applies(method, wanted)),
    )


def every_single_feature() -> tuple[Decision, ...]:
    """Return the decision for every method x precision, alone and with each single feature."""
    return tuple(
        decide(method, precision, () if feature is None else (feature,))
        for method, precision, feature in product(METHODS, PRECISIONS, (None, *FEATURES))
    )


def describe(decision: Decision) -> str:
    """Return the decision as a person reads it: the combination, the verdict, why, what instead."""
    flags = " ".join(FEATURES[name].flag for name in decision.features)
    asked = f"--method {decision.method} --precision {decision.precision} {flags}".rstrip()
    lines = [f"{asked}: {'accepted' if decision.accepted else 'rejected'}"]
    for rule in decision.rejections:
        lines += [
            f"  {rule.code} {rule.name}",
            f"    why      {rule.reason}",
            f"    instead  {rule.hint}",
        ]
    return "\n".join(lines)
