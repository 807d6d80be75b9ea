"""The model says one token for ever, whatever it is asked.

What it does: looks for answers that are one character or word over and over, the same for most
prompts.

Why it is bad: the output is useless (FM12): `!!!!` is token 0, the first of NaN or constant logits;
a zero point that is off by one in GPTQ (FM47) and a head that came loose from its embedding (FM27)
look the same.

Example: 8 of 8 answers are `!!!!!!!!`.

What to do: load in bf16 or fp32; look at weights-nonfinite (MPD301) and tied-embedding-diverged;
for GPTQ at the declared `checkpoint_format`.
"""

from __future__ import annotations

from harness.facts.behaviour import BehaviourFacts, find_flood
from harness.findings import Evidence, Finding, Severity
from harness.registry import ControlFailed, Missing, probe


@probe("MPD608", modes=["FM12", "FM27", "FM47"], severity=Severity.CRITICAL)
def check(behaviour: BehaviourFacts) -> Finding | str:
    """Look for one token in most answers."""
    token, count = find_flood(behaviour.answers)
    total = len(behaviour.prompts)
    if not token:
        return f"{count} of {total} answers are one token over and over, and not the same one"
    if behaviour.control is None and token != "!":
        raise Missing("most answers are one token; needs the base to compare with: --base PATH")
    if behaviour.control is not None and find_flood(behaviour.control)[0]:
        raise ControlFailed("the base says one token for ever, too")
    return Finding(
        message=f"{count} of {total} answers are '{token[:20]}' over and over",
        evidence=(
            Evidence(what="answers of that one token", found=count, expected=0),
            Evidence(what="first of them", found=(token * 12)[:40]),
        ),
        cause="logits that are NaN or do not depend on the text: overflow, a damaged head or scale",
        remedy="load the model in bf16 or fp32; look at MPD301 and at head and embedding",
    )
