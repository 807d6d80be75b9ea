"""The model computes NaN or infinity.

What it does: looks at the first logits of every prompt.

Why it is bad: the most probable token of NaN logits is token 0, printed as `!!!!` (FM12). Weights
can all be finite and the sums still overflow, in fp16 most of all.

Example: 40 of 40 prompts give logits that are not finite; the weights are, and their type is fp16.

What to do: load in bf16 or fp32. If that helps, the activations overflow fp16: serve in bf16.
"""

from __future__ import annotations

from harness.facts.behaviour import BehaviourFacts
from harness.findings import Evidence, Finding
from harness.registry import probe


@probe("MPD606", modes=["FM12"])
def check(behaviour: BehaviourFacts) -> Finding | str:
    """Count prompts whose logits are not finite."""
    bad, total = behaviour.answers.nonfinite_logits, len(behaviour.prompts)
    if not bad:
        return f"the logits of {total} prompts are finite"
    return Finding(
        message=f"{bad} of {total} prompts give logits that are NaN or infinite",
        evidence=(Evidence(what="prompts with such logits", found=bad, expected=0),),
        cause="weights that are not finite, or activations that overflow fp16",
        remedy="look at weights-nonfinite (MPD301); if it passed, load the model in bf16",
    )
