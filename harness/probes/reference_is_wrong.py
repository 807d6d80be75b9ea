"""Preference training with a reference that is not the model it began with.

What it does: looks at the first logged margin and loss. Against the model itself the margin begins
at 0 and the loss at ln 2. A margin of many nats at the first step, or a loss of 0, is another
reference; a margin of exactly 0 at every step is a reference that moves along.

Why it is bad: with another reference (the base without the SFT adapter), the run sets out to undo
the difference of two models, and the adapter that is saved lacks a stage (FM36). With one that
moves along, there is nothing to hold on to.

Example: a new adapter is made on the original base while the reference is the merged SFT model:
`{'loss': 0.0, 'rewards/margins': 21.4}` at step 1.

What to do: give the trainer the SFT model and let it make the reference itself (`ref_model=None`);
with an adapter, load the SFT adapter as the one to train *and* as the reference.
"""

from __future__ import annotations

import math

from harness.facts.records import TrainingLog
from harness.findings import Finding, Severity
from harness.registry import Missing, NotApplicable, probe
from harness.weighing.record_series import show

REFERENCE_FREE = ("nll_loss", "log_odds_ratio", "log_odds_chosen")
"""Series of objectives that have no reference (ORPO, CPO, SimPO)."""
FIRST_STEPS = 25
"""Steps within which a first logged margin still says how the run began."""
FAR = 5.0
"""Margin that no warmup reaches within its first steps."""
SMALL = 0.02
"""Loss that a margin of zero cannot have: ln 2 is 0.69."""
LEAST = 5


@probe("MPD912", modes=["FM36"], severity=Severity.HIGH)
def check(training_log: TrainingLog) -> Finding | str:
    """Report a first margin that is far from 0, and margins that are 0 throughout."""
    log = training_log
    margins, losses = log.finite("rewards/margins"), log.finite("loss")
    if not log.is_preference:
        raise NotApplicable("the run does not train preferences")
    if any(name in log.series for name in REFERENCE_FREE):
        raise NotApplicable("the objective has no reference")
    if losses and all(abs(loss) < 1e-6 for loss in losses):
        return _report(
            log,
            "the preference loss is 0 from the first step on",
            "the reference is another model, or chosen and rejected answers carry no label",
        )
    if not margins:
        raise Missing(f"{log.file} logs no rewards/margins")
    first = log.points("rewards/margins")[0]
    if len(margins) >= LEAST and all(margin == 0.0 for margin in margins):
        if losses and not all(math.isclose(one, math.log(2), abs_tol=1e-3) for one in losses):
            raise Missing("the margins are 0 and the loss is none of DPO's")
        return _report(
            log,
            f"the margin is exactly 0 at all {len(margins)} logged steps: policy "
            "and reference are the same weights",
            "the reference is the adapter that trains, or nothing trains",
        )
    if first.step > FIRST_STEPS:
        raise Missing(f"the first margin was logged at step {first.step}, too late to tell")
    # The end decides between a wrong reference and a run that learnt within its first log.
    if abs(margins[0]) > FAR or (losses and abs(losses[0]) < SMALL and abs(margins[0]) > 1):
        return _report(
            log,
            f"the margin was {margins[0]:.4g} at step {first.step} already: the "
            "reference is another model than the one that training began with",
            "the reference has, or lacks, a stage that the policy does not: an SFT "
            "adapter that was merged into only one of them",
        )
    return f"the margin began at {margins[0]:.3g}, as against the model itself"


def _report(log: TrainingLog, message: str, cause: str) -> Finding:
    return Finding(
        message=message,
        evidence=tuple(
            show(log, name, expected)
            for name, expected in (
                ("rewards/margins", "about 0 at the beginning"),
                ("loss", "about ln 2 = 0.693 at the beginning"),
            )
            if log.series.get(name)
        ),
        cause=cause,
        remedy="let the trainer make the reference from the SFT model (ref_model=None), with the "
        "SFT adapter loaded in both",
    )
