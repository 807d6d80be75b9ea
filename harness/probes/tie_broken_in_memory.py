"""A live model whose embedding and head should be one tensor and are two.

What it does: where `config.tie_word_embeddings` is true, looks whether embedding and output head
share their memory.

Why it is bad: training moves one and not the other. When the model is saved, one of the two is left
out, and the next load takes the wrong one for both: garbage, or one token for ever (FM27).

Example: the embedding was resized or exchanged by hand, and `tie_weights()` was not called.

What to do: `model.tie_weights()`; or, if both were trained, set `config.tie_word_embeddings =
False` before saving.
"""

from __future__ import annotations

from harness.facts.live import LiveState
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe


@probe("MPD509", modes=["FM27"], severity=Severity.CRITICAL)
def check(live_state: LiveState) -> Finding | str:
    """Report a tie that is declared and not there."""
    if not live_state.parameters:
        raise NotApplicable("the object has no parameters")
    if live_state.untied is None:
        return "embedding and head are as the configuration says"
    first, second = live_state.untied
    return Finding(
        message=f"config.tie_word_embeddings is true, and {first} and {second} are two tensors",
        evidence=(Evidence(what="memory of embedding and head", found="apart", expected="shared"),),
        cause="one of the two was exchanged or resized without tying it again",
        remedy="model.tie_weights(), or config.tie_word_embeddings = False if both were trained",
    )
