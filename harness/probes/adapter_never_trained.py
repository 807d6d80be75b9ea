"""LoRA factors that are still as they were made: the adapter adds exactly nothing.

What it does: one factor of every LoRA pair starts at zero (lora_B; for embeddings
lora_embedding_A), so that training starts at the base model. It is still exactly zero.

Why it is bad: base + adapter is the base, bit for bit, and nothing says so (FM08). Either training
never reached the adapter, or a fresh one was saved instead of the trained one.

Example: `lora_B is zero in 64 of 64 modules`: a learning rate of 0, labels that are all -100, a
loss that does not reach the layers, or `get_peft_model(model, config)` used to *load* a checkpoint.

What to do: load with `PeftModel.from_pretrained(base, PATH)`, never with `get_peft_model`. If the
file in the run's own folder is zero, look at the log: was the loss 0 or nan, grad_norm 0? Then
train again.
"""

from __future__ import annotations

from collections.abc import Mapping

from harness.facts.checkpoint import Adapter, Numbers, Pair, Tensor
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe


@probe("MPD203", modes=["FM08"])
def check(adapter: Adapter, numbers: Mapping[str, Numbers]) -> Finding | str:
    """Look for pairs of which a factor is exactly zero."""
    # Experts that no token was sent to keep their zeros; that says nothing about training.
    pairs = [p for p in adapter.pairs if p.a and p.b and "experts" not in p.module]
    if not pairs:
        raise NotApplicable("the adapter holds no LoRA pairs")
    dead = [(pair, factor) for pair in pairs if (factor := _zero_factor(pair, numbers))]
    if not dead:
        return f"both factors of {len(pairs)} modules hold values"
    whole = len(dead) == len(pairs)
    pair, factor = dead[0]
    kind = "lora_embedding_A" if pair.is_embedding else "lora_B" if factor == pair.b else "lora_A"
    return Finding(
        message=f"{kind} is exactly zero in {len(dead)} of {len(pairs)} modules: "
        f"{'the adapter adds' if whole else 'they add'} nothing to the base",
        evidence=tuple(
            Evidence(
                what="largest value", file=one.file, tensor=one.name, found=0.0, expected="not 0"
            )
            for _, one in dead
        ),
        cause="no gradient reached the adapter (labels all -100, learning rate 0, frozen), or a "
        "fresh adapter was saved in place of the trained one",
        remedy="look at loss and grad_norm of the run and train again; load checkpoints with "
        "PeftModel.from_pretrained(base, PATH), not with get_peft_model",
        severity=Severity.CRITICAL if whole else Severity.HIGH,
    )


def _zero_factor(pair: Pair, numbers: Mapping[str, Numbers]) -> Tensor | None:
    for factor in (pair.b, pair.a):
        if factor and factor.name in numbers and numbers[factor.name].is_zero:
            return factor
    return None
