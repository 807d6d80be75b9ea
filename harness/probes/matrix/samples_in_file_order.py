"""The samples were not shuffled.

What it does: compares the order in which sequences came with the order of the dataset.

Why it is bad: files are often sorted, by topic or by label: in that order a model learns one thing
after the other and forgets the first. The loss jumps with every topic, or falls for the wrong
reason.

Example: a sampler that is switched to sequential for a test and stays so.

What to do: shuffle with the run's seed, anew in every epoch.
"""

from __future__ import annotations

from harness.findings import Evidence, Finding, Severity
from harness.observations import Observations
from harness.registry import Missing, probe


@probe("MPD753", modes=("FM15",), severity=Severity.CRITICAL)
def check(observations: Observations) -> Finding | str:
    """Fail when the first samples came just as the file has them."""
    labels = observations.labels
    if labels is None or not labels.checked:
        raise Missing("no training batch was seen, or the dataset could not be rendered")
    if not labels.in_file_order:
        return "the samples came in another order than the file's"
    return Finding(
        message="the samples came in the order of the file",
        evidence=(Evidence(what="order of the samples", found="the file's", expected="shuffled"),),
        cause="the sampler is sequential, or the set is not shuffled",
        remedy="shuffle with the run's seed, anew in every epoch",
    )
