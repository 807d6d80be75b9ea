"""The end of an answer is not trained.

What it does: counts, on the batches that the model was really given, the rows whose last label is
an EOS id; for a reward model, those whose last token is one.

Why it is bad: a model that never sees EOS as a target never stops: answers run to the token limit
and new turns are invented (FM01, FM02). The loss looks healthy all the while.

Example: `pad_token = eos_token` and a collator that turns every pad id into -100.

What to do: mask padding by position, never by id, and check that the template ends the turn.
"""

from __future__ import annotations

from harness.findings import Evidence, Finding, Severity
from harness.observations import Observations
from harness.registry import Missing, probe

MIN_SHARE = 0.99


@probe("MPD705", modes=("FM01", "FM02"), severity=Severity.CRITICAL)
def check(observations: Observations) -> Finding | str:
    """Fail when rows end without EOS as their last label."""
    labels = observations.labels
    if labels is None:
        raise Missing("no training batch was seen")
    if not labels.teaches_end:
        raise Missing("the method neither teaches nor scores the end of an answer")
    share = labels.rows_ending_in_eos / labels.rows
    if share >= MIN_SHARE:
        return f"{labels.rows_ending_in_eos} of {labels.rows} rows train EOS as their last label"
    return Finding(
        message=f"only {labels.rows_ending_in_eos} of {labels.rows} rows train the end of the "
        "answer: the model may not learn to stop",
        evidence=(
            Evidence(
                what="rows whose last label is an EOS id",
                found=labels.rows_ending_in_eos,
                expected=labels.rows,
            ),
        ),
        cause="EOS is masked from the labels (pad_token = eos_token with a collator that masks "
        "pad ids), or the rendered text never holds it",
        remedy="keep EOS in the labels and mask padding by position, then train again",
    )
