"""An adapter whose change is too small to be seen.

What it does: compares the size of scale * B A with that of the weight it is added to, module by
module (without the base, with the size that such weights usually have).

Why it is bad: the factors are not zero, so nothing looks wrong, but the answers are those of the
base (FM51). What is smaller than the steps of bf16 is partly rounded away when it is merged.

Example: B of 5e-5 after ten steps: the change is 0.01 % of the weight; ordinary trained adapters
have 0.5 to 10 %.

What to do: train longer or with a larger learning rate (1e-4 to 2e-4 is usual for LoRA), and look
whether lora_alpha is what was meant.
"""

from __future__ import annotations

from harness.facts.adapters import Strength
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe

INVISIBLE = 2e-4
"""Median share of the weight below which answers stay what they were: a single step of Adam at
1e-4 leaves more than that on a 7B model."""
HARDLY = 5e-4
"""Below this a note is made."""


@probe("MPD210", modes=["FM51"], severity=Severity.MEDIUM)
def check(adapter_strength: Strength) -> Finding | str:
    """Judge the module in the middle."""
    living = [one for one in adapter_strength.modules if one.ratio > 0]
    if not living:
        raise NotApplicable("it adds exactly nothing: see adapter-never-trained")
    middle = sorted(living, key=lambda one: one.ratio)[len(living) // 2]
    against = "the base" if adapter_strength.is_measured else "weights of the usual size"
    if middle.ratio >= HARDLY:
        return f"its change is {middle.ratio:.2%} of {against} in the module in the middle"
    limit = INVISIBLE if adapter_strength.is_measured else INVISIBLE / 4
    return Finding(
        message=f"the change of the adapter is {middle.ratio:.1e} of {against} in the module in "
        f"the middle of {len(living)}: the answers will be those of the base",
        evidence=tuple(
            Evidence(
                what="|scale * B A| / |W|",
                tensor=one.module,
                found=float(f"{one.ratio:.3g}"),
                expected=f"at least {HARDLY:g}",
            )
            for one in sorted(living, key=lambda one: one.ratio)
        ),
        cause="few steps, a small learning rate, or a lora_alpha that is too small for the rank",
        remedy="train longer or with a larger learning rate; look at lora_alpha and at what the "
        "run's log says of the learning rate",
        severity=Severity.NOTE if middle.ratio >= limit else None,
    )
