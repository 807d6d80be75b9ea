"""The model computes NaN or infinity.

What it does: reads prompts with the model's default attention and, a few of them, with the eager
one, and counts those with a logit that is not finite.

Why it is bad: the most probable token of NaN logits is token 0, printed as `!!!!` (FM12). Weights
can all be finite and the sums still overflow, in fp16 most of all. A fused kernel may hide a NaN of
one projection that the eager kernel spreads (seen with `lora_B` of `q_proj`), until another server
runs the model.

Example: 40 of 40 prompts give logits that are not finite; the weights are, and their type is fp16.

What to do: load in bf16 or fp32. If that helps, the activations overflow fp16: serve in bf16.
"""

from __future__ import annotations

from harness.facts.forward import Logits
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe


@probe("MPD606", modes=["FM12", "FM41"], severity=Severity.CRITICAL)
def check(logits: Logits) -> Finding | str:
    """Count prompts whose logits are not finite."""
    hidden = max(logits.by_kernel.values(), default=0)
    if not logits.bad and not hidden:
        kernels = " and ".join(sorted(logits.by_kernel))
        return f"the logits of {max(logits.rows, logits.compared)} prompts are finite" + (
            f", under {kernels} attention" if kernels else ""
        )
    bad, total = (logits.bad, logits.rows) if logits.bad else (hidden, logits.compared)
    is_hidden = not logits.bad and not logits.by_kernel.get("default")
    where = " under eager attention, which the default one hides" if is_hidden else ""
    return Finding(
        message=f"{bad} of {total} prompts give logits that are NaN or infinite{where}",
        evidence=(
            Evidence(what="prompts with such logits", found=bad, expected=0),
            *(
                Evidence(what=f"of {logits.compared} rows, under {name} attention", found=count)
                for name, count in sorted(logits.by_kernel.items())
            ),
        ),
        cause="weights that are not finite, or activations that overflow fp16",
        remedy="look at weights-nonfinite (MPD301); if it passed, load the model in bf16",
    )
