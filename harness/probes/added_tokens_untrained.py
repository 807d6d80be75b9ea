"""Tokens were added to the vocabulary, and their rows were never trained.

What it does: looks at the embedding rows of tokens that the base does not know (without a base: of
those that the chat template writes), and recognises rows as they are made: zero, the mean of all
others, the same in several tokens, as the base has them, or left alone by the adapter.

Why it is bad: the model has no idea what the new token means, and never writes it: markers of turns
are ignored, answers do not end (FM29). LoRA on attention alone does not train embeddings.

Example: `<|im_start|>` (id 32000) of 2 added tokens: its row of `model.embed_tokens.weight` is the
mean of the other rows.

What to do: train again with `modules_to_save=["embed_tokens", "lm_head"]`, or the few rows alone
with `trainable_token_indices=[...]`; or use markers that the base knows already.
"""

from __future__ import annotations

from harness.facts.weights import NewTokens
from harness.findings import Evidence, Finding, Severity, agree
from harness.registry import probe


@probe("MPD311", modes=["FM29"], severity=Severity.HIGH)
def check(new_tokens: NewTokens) -> Finding | str:
    """Judge the rows of the added tokens."""
    bad = sorted(new_tokens.untrained, key=lambda one: (not one.used, one.number))
    if not bad:
        tokens = agree(new_tokens.judged, "token", "tokens")
        return f"the rows of {tokens} that were added, by {new_tokens.known_by}, are trained"
    first = bad[0]
    said = first.reason if first.reason.startswith("the adapter") else f"its row is {first.reason}"
    return Finding(
        message=f"{len(bad)} of {new_tokens.judged} added tokens were never trained: {first.token} "
        f"(id {first.number}) in {first.tensor}: {said}",
        evidence=tuple(
            Evidence(
                what=f"row of {one.token} (id {one.number})",
                tensor=one.tensor,
                found=one.reason,
                expected="a row of its own",
            )
            for one in bad
        ),
        cause="the embedding was frozen while tokens were added (LoRA trains it only when told to)",
        remedy='train again with modules_to_save=["embed_tokens", "lm_head"], or '
        "trainable_token_indices for the new rows alone",
    )
