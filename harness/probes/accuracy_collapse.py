"""What the base knew is lost.

What it does: asks a quiz greedily and counts the answers that are exactly right, against the base
on the same questions.

Why it is bad: a stage of training took the knowledge away while its loss fell (FM66, FM15): stacked
adapters, a wrong template, a learning rate that was too high.

Example: accuracy 0.77 before a DPO stage, 0.02 after it.

What to do: run the other probes on the checkpoint before this stage and after it; train the stage
again with a lower learning rate and from a model that was merged first.

How it decides: collapse means that the whole 95% interval (Wilson) of this checkpoint lies below
half of the base's score. If both score below 0.2 the control has failed and nothing is said: a dead
scorer is not a score of zero.
"""

from __future__ import annotations

from harness.collapse import judge_scores
from harness.facts.behaviour import BehaviourFacts
from harness.findings import Finding
from harness.registry import Missing, probe


@probe("MPD604", modes=["FM66", "FM15"])
def check(behaviour: BehaviourFacts) -> Finding | str:
    """Compare the accuracy with that of the base."""
    if behaviour.exact is None:
        raise Missing("there is no quiz; pass --quiz FILE")
    if behaviour.control_exact is None:
        raise Missing("needs the base to compare with; pass --base PATH")
    return judge_scores(
        "accuracy",
        "questions answered exactly",
        behaviour.exact,
        behaviour.control_exact,
        behaviour.answers.texts[0],
    )
