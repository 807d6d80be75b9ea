"""Embedding and output head differ, though the configuration ties them.

What it does: with `tie_word_embeddings: true` loaders use the embedding as the head. The file holds
a head of its own with other values.

Why it is bad: the trained head is thrown away when the model is loaded; answers turn into garbage
or one token for ever (FM27).

Example: an adapter on `lm_head` was merged, and config.json kept `tie_word_embeddings: true`.

What to do: set `"tie_word_embeddings": false` in config.json if the separate head is the trained
one (it is after a merge into lm_head), or delete lm_head.weight if it is not.
"""

from __future__ import annotations

from harness.facts.checkpoint import TiedPair
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe


@probe("MPD306", modes=["FM27"], severity=Severity.CRITICAL)
def check(tied_pair: TiedPair) -> Finding | str:
    """Compare the head with the embedding that it is tied to."""
    head, embedding = tied_pair.head, tied_pair.embedding
    if tied_pair.base_head:
        return _head_lost(tied_pair)
    if tied_pair.different == 0:
        return "the tied head and embedding hold the same values"
    return Finding(
        message=f"config.json ties {head.name} to {embedding.name}, but "
        f"{tied_pair.different:,} of {head.elements:,} values differ; the head is not loaded",
        evidence=(
            Evidence(
                what="values that differ",
                file=head.file,
                tensor=head.name,
                found=tied_pair.different,
                expected=0,
            ),
        ),
        cause="only one of the two was trained or merged into, and the tie was not removed",
        remedy='set "tie_word_embeddings": false in config.json to keep the separate head',
    )


def _head_lost(pair: TiedPair) -> Finding:
    """Report a head that the base has of its own, and that is gone here."""
    return Finding(
        message=f"config.json ties the head to {pair.embedding.name} and the file holds no head; "
        f"the base has one of its own, {pair.base_head}",
        evidence=(
            Evidence(what="head", tensor=pair.base_head, found="absent", expected="as in the base"),
        ),
        cause="a save dropped the head as if it were shared, or config.json is another model's",
        remedy=f'take {pair.base_head} from a complete copy and set "tie_word_embeddings": false',
    )
