"""The voice that the base had is lost.

What it does: asks prompts greedily and scores the answers with a voice profile (marker families),
against the base on the same prompts.

Why it is bad: a stage of training took the voice away while its loss fell (FM66). The numbers of
the training loop do not show it.

Example: voice score 0.47 before a DPO stage, 0.00 for all 28 topics after it.

What to do: run the other probes on the checkpoint before this stage and after it, stacking
(adapter-stacked) and EOS (eos-flood) first; train the stage again from a model that was merged.

How it decides: collapse means that the whole 95% interval of this checkpoint's mean lies below half
of the base's. If both score below 0.2 the control has failed and nothing is said: a dead scorer is
not a score of zero. Examples of the voice, where the profile has some, count with `--embeddings`
alone; without it the answer says so. Without a base, a score of half or more is no collapse
whatever the base's is; of less nothing is said.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

from harness.facts.behaviour import BehaviourFacts
from harness.findings import Finding, Severity
from harness.registry import Missing, probe
from harness.weighing.collapse import judge_alone, judge_scores


@probe("MPD605", modes=["FM66"], severity=Severity.CRITICAL)
def check(behaviour: BehaviourFacts) -> Finding | str:
    """Compare the voice with that of the base."""
    if behaviour.voice is None:
        raise Missing("there is no voice profile; pass --voice FILE")
    outcome = _judge(behaviour)
    if not (why := behaviour.why_markers_alone):
        return outcome
    said = f"by the markers of the voice alone: {why}"
    if isinstance(outcome, str):
        return f"{outcome}; {said}"
    return replace(outcome, message=f"{outcome.message}; {said}")


def _judge(behaviour: BehaviourFacts) -> Finding | str:
    assert behaviour.voice is not None
    if behaviour.control_voice is None:
        return judge_alone(
            "voice",
            f"a voice of {fmean(behaviour.voice):.2f}",
            behaviour.voice,
            least=behaviour.thresholds.get("voice final"),
            name_control=behaviour.name_control,
        )
    return judge_scores(
        "voice",
        "mean voice score",
        behaviour.voice,
        behaviour.control_voice,
        behaviour.answers.texts[0],
    )
