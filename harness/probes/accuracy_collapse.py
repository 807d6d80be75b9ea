"""What the base knew is lost.

What it does: asks a quiz greedily and scores the answers against the base on the same questions: by
equal words, by the F1 of the words, by the words that carry the answer, and with `--embeddings` by
their meaning.

Why it is bad: a stage of training took the knowledge away while its loss fell (FM66, FM15): stacked
adapters, a wrong template, a learning rate that was too high.

Example: accuracy 0.77 before a DPO stage, 0.02 after it.

What to do: run the other probes on the checkpoint before this stage and after it (`--against`
names the earlier one); train the stage again with a lower learning rate and from a model that was
merged first.

How it decides: collapse means that the whole 95% interval (Wilson) of this checkpoint lies below
half of the base's score, and so does the paired difference (bootstrap), by every measure: a model
that says `Paris.` in place of a whole sentence has forgotten nothing. A measure by which both score
below 0.2 has failed its control and says nothing; if all have, nothing is said: a dead scorer is
not a score of zero. Without a base, half of the questions right is no collapse whatever the base
knows; of less nothing is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import fmean

from harness.facts.behaviour import BehaviourFacts, Scores
from harness.findings import Finding, Severity
from harness.registry import ControlFailed, Missing, probe
from harness.weighing.collapse import can_collapse, judge_alone, judge_scores


@probe("MPD604", modes=["FM66", "FM15"], severity=Severity.CRITICAL)
def check(behaviour: BehaviourFacts) -> Finding | str:
    """Compare the accuracy with that of the base, by every measure."""
    if behaviour.exact is None:
        raise Missing("there is no quiz; pass --quiz FILE")
    judge = _judge_alone if behaviour.control_exact is None else _judge_beside_base
    outcome = judge(behaviour)
    why = "" if behaviour.scores is None else behaviour.scores.why_no_similarity
    if why and isinstance(outcome, str):
        raise Missing(f"the answers could not be compared by meaning: {why}")
    return outcome


def _judge_beside_base(behaviour: BehaviourFacts) -> Finding | str:
    """Judge by every measure; one by which the base's knowledge is still there acquits."""
    found: list[Finding] = []
    unable: list[str] = []
    failed: list[ControlFailed] = []
    for what, mine, theirs in _measures(behaviour):
        try:
            outcome = judge_scores("accuracy", what, mine, theirs, behaviour.answers.texts[0])
        except ControlFailed as failure:
            failed.append(failure)
            continue
        if isinstance(outcome, Finding):
            found.append(outcome)
        elif can_collapse(theirs):
            return f"{outcome} ({what})"
        else:
            unable.append(f"{outcome} ({what})")
    if not found and unable:
        return unable[0]
    if not found:
        raise failed[0]
    evidence = [one for finding in found for one in finding.evidence[:1]]
    return replace(found[0], evidence=(*evidence, found[0].evidence[-1]))


def _judge_alone(behaviour: BehaviourFacts) -> str:
    """Judge without a base, by the measure that forgives most."""
    assert behaviour.exact is not None
    scores = behaviour.scores or Scores(exact=behaviour.exact)
    measures = [one for one in (behaviour.exact, scores.f1, scores.keys) if one]
    right, total = sum(behaviour.exact), len(behaviour.exact)
    return judge_alone(
        "accuracy",
        f"{right} of {total} right",
        max(measures, key=fmean),
        least=behaviour.thresholds.get("accuracy final"),
        name_control=behaviour.name_control,
    )


def _measures(behaviour: BehaviourFacts) -> Iterator[tuple[str, Sequence[float], Sequence[float]]]:
    assert behaviour.exact is not None
    assert behaviour.control_exact is not None
    yield "questions answered exactly", behaviour.exact, behaviour.control_exact
    mine, theirs = behaviour.scores, behaviour.control_scores
    if mine is None or theirs is None:
        return
    if mine.f1 is not None and theirs.f1 is not None:
        yield "F1 of the words", mine.f1, theirs.f1
    if mine.keys is not None and theirs.keys is not None:
        yield "words that carry the answer", mine.keys, theirs.keys
    if mine.similarity is not None and theirs.similarity is not None:
        yield "nearness in meaning", mine.similarity, theirs.similarity
