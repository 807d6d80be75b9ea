"""Adapter tensors that are still as they were made: the adapter adds exactly nothing.

What it does: every method starts at the base model. LoRA does so with a factor of zeros (lora_B;
for embeddings lora_embedding_A), AdaLoRA with lora_E, VeRA with lambda_b, LoHa, LoKr and others
with one of their factors, OFT and BOFT with a rotation of zero, IA3 with a vector of ones. Here
they still hold exactly that.

Why it is bad: base + adapter is the base, bit for bit, and nothing says so (FM08). Either training
never reached the adapter, or a fresh one was saved instead of the trained one.

Example: `lora_B is zero in 64 of 64 modules`: a learning rate of 0, labels that are all -100, a
loss that does not reach the layers, or `get_peft_model(model, config)` used to *load* a checkpoint.

What to do: load with `PeftModel.from_pretrained(base, PATH)`, never with `get_peft_model`. If the
file in the run's own folder is untrained, look at the log: was the loss 0 or nan, grad_norm 0? Then
train again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from harness.facts.adapters import MUTED_BY_ZERO, NEUTRAL, neutral_module
from harness.facts.checkpoint import Adapter, Numbers, Pair, Tensor
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe


@probe("MPD203", modes=["FM08"], severity=Severity.CRITICAL)
def check(adapter: Adapter, numbers: Mapping[str, Numbers]) -> Finding | str:
    """Look for modules whose tensors are still those of the start."""
    # Experts that no token was sent to keep their zeros; that says nothing about training.
    pairs = [p for p in adapter.pairs if p.a and p.b and "experts" not in p.module]
    dead = {p.module: factor for p in pairs if (factor := _zero_factor(p, numbers))}
    judged = {p.module for p in pairs}
    others, muted = _other_methods(adapter, numbers)
    if adapter.kind == "ADALORA" and len(muted) < len(others):
        muted = {}  # its budget takes whole modules away
    dead, judged = {**muted, **dead}, judged | others
    if not judged:
        raise NotApplicable("the adapter holds no tensors of which the start is known")
    if not dead:
        return f"the tensors of {len(judged)} modules are no longer those of the start"
    whole = len(dead) == len(judged)
    first = next(iter(dead.values()))
    value = numbers[first.name].abs_max
    return Finding(
        message=f"{_kind(first)} is exactly {'zero' if not value else f'{value:g}'} in {len(dead)} "
        f"of {len(judged)} modules: {'the adapter adds' if whole else 'they add'} nothing to the "
        "base",
        evidence=tuple(
            Evidence(
                what="the one value it holds",
                file=one.file,
                tensor=one.name,
                found=numbers[one.name].abs_max,
                expected="other values than at the start",
            )
            for one in dead.values()
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


def _other_methods(
    adapter: Adapter, numbers: Mapping[str, Numbers]
) -> tuple[set[str], dict[str, Tensor]]:
    """Return the modules of other methods than LoRA, and a tensor of each that does nothing."""
    known: set[str] = set()
    dead: dict[str, Tensor] = {}
    neutral: dict[str, list[tuple[Tensor, bool]]] = defaultdict(list)
    for key, tensor in adapter.tensors.items():
        seen = numbers.get(key)
        if seen is None:
            continue
        if match := MUTED_BY_ZERO.match(key):
            module = match["module"].removeprefix("base_model.model.")
            known.add(module)
            if seen.is_zero:
                dead[module] = tensor
        elif found := neutral_module(key):
            module, kind = found
            known.add(module)
            still = seen.is_zero if not NEUTRAL[kind] else seen.constant == NEUTRAL[kind]
            neutral[module].append((tensor, still))
    for module, tensors in neutral.items():
        if all(still for _, still in tensors):
            dead[module] = tensors[0][0]
    return known, dead


def _kind(tensor: Tensor) -> str:
    """Return the method's word for a tensor, such as `lora_B`."""
    return tensor.name.removesuffix(".weight").rpartition(".")[2]
