"""With the adapter or merged, the model computes exactly what its base computes.

What it does: reads the same rows with the base, the base again, base + adapter and, where the
adapter of a merged model is known, the merged model. What the base differs from itself is the
noise; an effect within it is none.

Why it is bad: the training is lost, and everything else about the file looks fine: keys that match
no module (FM06), factors that are zero (FM08), an update too small to see (FM51), a merge that did
nothing (FM20, FM54).

Example: base and base + adapter give the same logits, to the last bit.

What to do: compare the keys in the file with the base's module names (adapter-keys-dead,
adapter-never-trained); merge again and keep what `merge_and_unload()` returns.
"""

from __future__ import annotations

from harness.facts.forward import Consistency, Gap
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, NotApplicable, probe

NONE = 1e-7
"""Share of the logits that is no effect in any type."""
KEPT = 0.1
"""Share of the adapter's effect below which a merged model counts as its base."""
CLEAR = 0.05
"""Effect of an adapter, as a share of the logits, that survives the rounding of a 16-bit merge."""


@probe("MPD616", modes=["FM06", "FM08", "FM20", "FM51", "FM54"], severity=Severity.CRITICAL)
def check(consistency: Consistency) -> Finding | str:
    """Hold the effect of an adapter, or of a merge, against the noise of the base."""
    if consistency.kind not in ("adapter", "merged"):
        raise NotApplicable("neither an adapter nor a merged model whose adapter is known")
    effect, noise = consistency.find("base"), consistency.find("repeat")
    if effect is None or noise is None:
        raise Missing(consistency.explain("base"))
    if consistency.kind == "adapter":
        return _judge(effect, max(NONE, 3 * noise.relative), "base + adapter")
    adapter = consistency.find("adapter")
    if adapter is None:
        raise Missing(consistency.explain("adapter"))
    if adapter.relative <= CLEAR:
        return f"the adapter moves the logits by {adapter.relative:.2g} of their size: too little"
    return _judge(effect, KEPT * adapter.relative, "the merged model")


def _judge(effect: Gap, limit: float, who: str) -> Finding | str:
    if effect.relative > limit:
        return f"{who} moves the logits by {effect.relative:.2g} of their size"
    return Finding(
        message=f"{who} computes what the base computes: the logits differ by "
        f"{effect.relative:.2g} of their size",
        evidence=(
            Evidence(
                what=f"difference to the base, share of the logits, in {effect.precision}",
                found=effect.relative,
                expected=f"more than {limit:.2g}",
            ),
            Evidence(what="changed tokens", found=effect.flips, expected="some"),
        ),
        cause="keys that match no module, factors that are zero, or a merge that did nothing",
        remedy="compare the keys with the base's names; train or merge again",
    )
