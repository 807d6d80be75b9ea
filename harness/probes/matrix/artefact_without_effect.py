"""The artefact answers exactly like the untouched base.

What it does: compares the logits of every reloaded artefact with those of the base it was made
from.

Why it is bad: the training is lost, and everything else about the file looks fine (FM06, FM08,
FM20).

Example: the adapter's keys match no module: PEFT warns once and answers like the base.

What to do: compare the keys in the file with the base's module names.
"""

from __future__ import annotations

from harness.findings import Evidence, Finding, Severity
from harness.observations import Observations
from harness.registry import Missing, probe

MIN_RELATIVE_EFFECT = 1e-6
"""Share of the largest logit; both are computed alike, so without an effect it is 0."""


@probe("MPD708", modes=("FM06", "FM08", "FM20"), severity=Severity.CRITICAL)
def check(observations: Observations) -> Finding | str:
    """Fail when an artefact's logits equal the base's."""
    if not observations.comparisons:
        raise Missing("no artefact was reloaded")
    dead = [x for x in observations.comparisons if x.effect <= MIN_RELATIVE_EFFECT * x.scale]
    if not dead:
        least = min(item.effect for item in observations.comparisons)
        return f"every artefact differs from the base, by {least:.3g} in one logit or more"
    return Finding(
        message=f"the {dead[0].artefact} gives the logits of the untouched base",
        evidence=tuple(
            Evidence(
                what="largest logit difference to the base",
                file=item.artefact,
                found=item.effect,
                expected="more than 0",
            )
            for item in dead
        ),
        cause="the trained weights are not in the file, or nothing applies them",
        remedy="compare the keys with the base's: mudpuppy-doctor CHECKPOINT --base BASE",
    )
