"""The training loss is a multiple of the evaluation loss.

What it does: pairs every evaluation with the training losses logged about it, and looks for one
ratio of about 2 or more that holds through the whole run.

Why it is bad: both are means over tokens of the same kind of text, so a fixed multiple of one is a
sum over accumulated batches. Gradients are summed with it: clipping acts on every step, and without
clipping the learning rate is N times what was asked (FM39).

Example: `gradient_accumulation_steps=4` with transformers 4.46: loss 8.4, 7.6, 7.2 in training and
2.1, 1.9, 1.8 in evaluation.

What to do: compare one step of 1 x 4 rows with one of 4 x 1. Update transformers, or divide a loss
of your own by `num_items_in_batch`.
"""

from __future__ import annotations

from statistics import median

from harness.facts.records import TrainingLog
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, NotApplicable, probe
from harness.weighing.record_series import bound_of_chance, require_points, show, start_of

LEAST = 3
"""Evaluations that a ratio must hold in."""
SUSPECT = 1.8
"""The least ratio; dropout and noise on embeddings stay below."""
STEADY = 0.15
"""How far single ratios may be from the middle one: two losses with causes of their own differ."""
WHOLE = 0.12
"""How far the ratio may be from a whole number, relative to it."""


@probe("MPD905", modes=["FM39"], severity=Severity.HIGH)
def check(training_log: TrainingLog) -> Finding | str:
    """Report a steady whole multiple."""
    log = training_log
    if not log.predicts_tokens:
        raise NotApplicable("the run is not known to have a loss per token")
    evaluated = require_points(log, "eval_loss", LEAST)
    losses = require_points(log, "loss", LEAST)
    if start_of(losses) > bound_of_chance(log):
        raise Missing("the loss began above chance, which another probe judges")
    ratios = _ratios(log)
    if len(ratios) < LEAST:
        raise Missing("too few evaluations lie between logged training losses")
    middle = median(ratios)
    whole = max(1, round(middle))
    if middle < SUSPECT:
        return f"training losses are {middle:.2f} times the evaluation's, as far as they compare"
    spread = max(abs(ratio / middle - 1) for ratio in ratios)
    falls = min(evaluated) < 0.9 * max(evaluated)
    # Where the evaluation hardly moves, any constant factor is steady, whatever the cause.
    strict = STEADY if falls else STEADY / 3
    if spread > strict or abs(middle / whole - 1) > WHOLE:
        return f"training losses are {middle:.2f} times the evaluation's, and not steadily so"
    return Finding(
        message=f"the training loss is {middle:.2f} times the evaluation loss at all "
        f"{len(ratios)} evaluations",
        evidence=(
            show(log, "loss", "about eval_loss"),
            show(log, "eval_loss"),
            Evidence(what="ratio", found=[round(ratio, 2) for ratio in ratios[:8]], expected=1),
        ),
        cause=f"the losses of {whole} accumulated batches (or processes) are summed, not averaged",
        remedy=f"compare one step of 1 x {whole} rows with one of {whole} x 1; update "
        "transformers, or pass num_items_in_batch on to the loss",
    )


def _ratios(log: TrainingLog) -> list[float]:
    """Return at each evaluation the mean of the training losses before and after it, over it."""
    losses = [p for p in log.points("loss") if abs(p.value) < 1e9]
    found = []
    for point in log.points("eval_loss"):
        before = [p.value for p in losses if p.step <= point.step][-1:]
        after = [p.value for p in losses if p.step > point.step][:1]
        near = before + after
        if before and 0 < point.value < 1e9:
            found.append(sum(near) / len(near) / point.value)
    return found
