"""Something else than the answers is trained.

What it does:
    Decodes the labelled tokens of every batch that the model was given, span by span, and compares
    the text with the assistant messages of the dataset.

Why it is bad:
    Training on prompts although asked not to makes the model parrot the user (FM10); a span that
    is shifted or cut teaches broken answers (FM09).

Example:
    `response_only` is declared in the settings and read nowhere.

What to do:
    Look at the text that was trained, and at the chat template's generation tags.
"""

from __future__ import annotations

from harness.findings import Evidence, Finding
from harness.observations import Observations
from harness.registry import Missing, probe


@probe("MPD706", modes=("FM09", "FM10"))
def check(observations: Observations) -> Finding | str:
    """Fail when the labelled text is not exactly the assistant's."""
    labels = observations.labels
    if labels is None:
        raise Missing("no training batch was seen")
    if not labels.rows_off_answer:
        share = labels.trained_tokens / max(labels.tokens, 1)
        return f"{labels.rows} rows train exactly the answers ({share:.0%} of the tokens)"
    return Finding(
        message=f"{labels.rows_off_answer} of {labels.rows} rows train text that is not an "
        "answer of the dataset",
        evidence=(
            Evidence(
                what="text trained in one row",
                found=labels.example_off_answer,
                expected="an assistant message, whole",
            ),
        ),
        cause="the label mask covers the prompt, misses part of the answer, or is shifted",
        remedy="check the mask of one rendered sample against its text, then train again",
    )
