"""The merged model does not compute what its base with the adapter computes.

What it does: reads the same rows with the base, base + adapter and the merged model, and holds the
distance of the merged model from base + adapter against the effect of the adapter.

Why it is bad: what was tested before the merge is not what is shipped: rounded to 4 bits (FM13),
applied twice (FM19), scaled wrongly (FM26), or fused by a tool with a fault (FM54).

Example: the merged model is 0.9 of the adapter's whole effect away from base + adapter.

What to do: load the 16-bit base and the adapter, merge once, and keep what `merge_and_unload()`
returns.
"""

from __future__ import annotations

from harness.facts.forward import Consistency
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, NotApplicable, probe

LOST = 0.5
"""Share of the adapter's effect by which a merge may miss; rounding and a lower precision of the
adapter cost a tenth."""
NOISE = 3
"""Times the distance of the model from itself, read again, below which a distance says nothing."""
ROUNDING = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.1}
"""Share of the logits that storing the merged weights in a type may cost."""


@probe("MPD617", modes=["FM13", "FM19", "FM26", "FM54"], severity=Severity.HIGH)
def check(consistency: Consistency) -> Finding | str:
    """Hold the error of the merge against the effect of the adapter."""
    if consistency.kind != "merged":
        raise NotApplicable("not a merged model whose base and adapter are known")
    error, effect = consistency.find("merge"), consistency.find("adapter")
    if error is None or effect is None:
        raise Missing(consistency.explain("merge"))
    repeat = consistency.find("repeat")
    noise = 0.0 if repeat is None else NOISE * repeat.relative
    most = max(ROUNDING.get(consistency.stored, 0.1), noise, LOST * effect.relative)
    text = (
        f"the merged model is {error.relative:.2g} of the logits' size away from base + adapter, "
        f"whose effect is {effect.relative:.2g}"
    )
    if error.relative <= most or _is_the_base(consistency):
        return text
    return Finding(
        message=text,
        evidence=(
            Evidence(
                what="distance from base + adapter, share of the logits",
                found=round(error.relative, 6),
                expected=f"at most {most:.2g}",
            ),
            Evidence(what="effect of the adapter", found=round(effect.relative, 6)),
            Evidence(what="KL divergence, nats per token", found=round(error.kl, 6)),
        ),
        cause="a merge that was rounded to 4 bits, applied twice, or scaled wrongly",
        remedy="merge once more from the 16-bit base: PeftModel(...).merge_and_unload()",
    )


def _is_the_base(consistency: Consistency) -> bool:
    """Whether the merge did nothing, which is the fault of another probe."""
    base, adapter = consistency.find("base"), consistency.find("adapter")
    return base is not None and adapter is not None and base.relative <= 0.1 * adapter.relative
