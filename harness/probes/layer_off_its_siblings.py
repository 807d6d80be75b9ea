"""One layer whose weights are many times larger or smaller than those of the other layers.

What it does: compares the size (root mean square) of every matrix with the same weight of the
other layers of this model, where no base is known. It speaks where a few lie six times off the
middle, far outside of the spread of the others; families and initialisations do not matter.

Why it is bad: the layers of one model are of one size, within small factors. A layer that is not
has diverged (FM61), was scaled twice, was read in the wrong type, or was never filled (FM60); the
model talks nonsense from there on.

Example: `model.layers.5.mlp.down_proj.weight: 48 times the size of the nearest of 31 siblings`.

What to do: pass --base to see which tensors moved; go back to an older checkpoint, lower the
learning rate and clip gradients.
"""

from __future__ import annotations

from harness.facts.weights import OddLayer
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe


@probe("MPD312", modes=["FM61", "FM60"], severity=Severity.HIGH)
def check(odd_layers: tuple[tuple[OddLayer, ...], int], sample: str) -> Finding | str:
    """Judge the tensors that stand out from their siblings."""
    found, judged = odd_layers
    if not found:
        where = ", in the sample" if sample else ""
        return f"{judged} matrices are of the size of the same weight in other layers{where}"
    worst = max(found, key=lambda one: max(one.ratio, 1 / one.ratio))
    return Finding(
        message=f"{worst.tensor.name} is {worst.ratio:.3g} times the size of the nearest of its "
        f"{worst.siblings} siblings"
        + (f"; {len(found) - 1} more stand out from theirs" if found[1:] else ""),
        evidence=tuple(
            Evidence(
                what="root mean square",
                file=one.tensor.file,
                tensor=one.tensor.name,
                found=min(one.rms, 1e300),
                expected=f"near {one.nearest:.3g}, as in other layers",
            )
            for one in sorted(found, key=lambda one: -max(one.ratio, 1 / one.ratio))
        ),
        cause="the layer diverged in training, was scaled twice, or was written by mistake",
        remedy="pass --base PATH to see what moved; go back to an older checkpoint",
    )
