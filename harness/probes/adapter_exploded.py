"""An adapter whose change is larger than the weights that it is added to.

What it does: compares the size of scale * B A with that of the weight (without the base, with the
size that such weights usually have), and every module with the one in the middle.

Why it is bad: a trained adapter changes a weight by 0.5 to 10 percent. One that changes it several
times over replaces what the model knows by noise (FM61): training diverged, or alpha and scale were
multiplied twice. The file is finite and loads without a word.

Example: `model.layers.3.self_attn.v_proj: the change is 47 times the weight`, after 200 steps at a
learning rate of 1e-2.

What to do: go back to an older checkpoint; train with a lower learning rate, warm-up and clipping,
and look whether lora_alpha is what was meant.
"""

from __future__ import annotations

from collections.abc import Iterator

from harness.facts.adapters import ModuleStrength, Strength
from harness.findings import Evidence, Finding, Severity, agree
from harness.registry import probe

MEASURED, ASSUMED = 5.0, 20.0
"""Share of the weight that no training explains, where the base was read and where it was not."""
VOCABULARY = 6.0
"""How many times larger it may be of embeddings, whose factor starts at a deviation of 1."""
STANDS_OUT, LEAST = 30.0, 0.5
"""How far a module may be above the one in the middle, if it changes this share of its weight."""


@probe("MPD313", modes=["FM61"], severity=Severity.CRITICAL)
def check(adapter_strength: Strength) -> Finding | str:
    """Judge every module."""
    bad = sorted(_find(adapter_strength), key=lambda one: -one.ratio)
    against = "its weight" if adapter_strength.is_measured else "a weight of the usual size"
    if not bad:
        modules = agree(len(adapter_strength.modules), "module is", "modules are")
        return f"the changes of {modules} below the size of {against}"
    return Finding(
        message=f"in {bad[0].module} the change of the adapter is {bad[0].ratio:.3g} times "
        f"{against}" + (f"; {len(bad) - 1} more modules are like it" if bad[1:] else ""),
        evidence=tuple(
            Evidence(
                what="|scale * B A| / |W|",
                tensor=one.module,
                found=float(f"{min(one.ratio, 1e300):.3g}"),
                expected="0.005 to 0.1, as trained adapters have",
            )
            for one in bad
        ),
        cause="training diverged, or alpha and scale were multiplied twice",
        remedy="go back to an older checkpoint; train with a lower learning rate and clipping, and "
        "look at lora_alpha",
    )


def _find(strength: Strength) -> Iterator[ModuleStrength]:
    limit = MEASURED if strength.is_measured else ASSUMED
    for one in strength.modules:
        most = limit * (VOCABULARY if "embed" in one.module or "head" in one.module else 1.0)
        stands_out = one.ratio > LEAST and one.ratio > STANDS_OUT * strength.median > 0
        if one.ratio > most or stands_out:
            yield one
