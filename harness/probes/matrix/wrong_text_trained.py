"""Something else is trained than the dataset says.

What it does: takes every batch that the model was given apart and looks each sequence up in an
independent rendering of the dataset: the ids of prompt and answer, which of them are targets, which
answer is the better one, which step is right. Everything must be exactly there.

Why it is bad: training on prompts although asked not to makes the model parrot the user (FM10); a
span that is shifted or cut teaches broken answers (FM09); a doubled BOS shifts everything (FM05).

Example: `response_only` is declared in the settings and read nowhere.

What to do: look at the text that was trained, and at the chat template's generation tags.
"""

from __future__ import annotations

from harness.findings import Evidence, Finding, Severity
from harness.observations import Observations
from harness.registry import Missing, probe


@probe("MPD706", modes=("FM05", "FM09", "FM10"), severity=Severity.CRITICAL)
def check(observations: Observations) -> Finding | str:
    """Fail when a row is not exactly what the dataset and the settings say."""
    labels = observations.labels
    if labels is None:
        raise Missing("no training batch was seen")
    if not labels.checked:
        raise Missing("the dataset is of a form that is not rendered independently: use JSONL")
    if not labels.rows_off_answer:
        share = labels.trained_tokens / max(labels.tokens, 1)
        return f"{labels.rows} rows are exactly the dataset's ({share:.0%} of the tokens trained)"
    return Finding(
        message=f"{labels.rows_off_answer} of {labels.rows} rows are not what the dataset "
        "says, or train another part of it",
        evidence=(
            Evidence(
                what="one row, what is trained in brackets",
                found=labels.example_off_answer,
                expected="a row of the dataset with its own targets",
            ),
        ),
        cause="the label mask covers the prompt, misses part of the answer, or is shifted",
        remedy="check the mask of one rendered sample against its text, then train again",
    )
