"""A run on generated answers lost its reward, its entropy, or all likeness to its reference.

What it does: compares the first and the last quarter of `reward`, `entropy` and `kl` of GRPO and
RLOO, beyond the noise of the series.

Why it is bad: the reward that falls is the plainest sign that the policy is ruined. An entropy of 0
means one answer for every prompt; a KL of dozens of nats means text that the reference would never
write, the usual way of cheating a reward function (FM57).

Example: reward 0.7, 0.8, 0.3, 0.0 while kl goes from 0.01 to 140.

What to do: take the checkpoint of the best reward. Lower the learning rate, raise beta, and check
that the weights reach the engine that generates.
"""

from __future__ import annotations

from harness.facts.records import TrainingLog
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe
from harness.weighing.record_series import end_of, error_of, require_points, show, start_of

LEAST = 6
LOST = 0.5
"""Share of the reward's beginning, or of the range it reached, that must be lost."""
FLAT = (0.05, 0.05)
"""Entropy in nats at the end, and as a share of its beginning, below which it collapsed."""
FAR, TIMES = 20.0, 100.0
"""KL at the end, and its growth, that no reward is worth."""


@probe("MPD915", modes=["FM57"], severity=Severity.HIGH)
def check(training_log: TrainingLog) -> Finding | str:
    """Report a reward that fell, an entropy of about 0, or a KL without bound."""
    log = training_log
    if not log.is_generating:
        raise NotApplicable("the run does not train on generated answers")
    rewards = require_points(log, "reward", LEAST)
    found = [piece for piece in (_reward(log, rewards), _entropy(log), _kl(log)) if piece]
    if not found:
        return f"the reward went from {start_of(rewards):.3g} to {end_of(rewards):.3g}"
    return Finding(
        message="; ".join(text for text, _ in found),
        evidence=tuple(piece for _, piece in found),
        cause="the learning rate is too high or beta too low, or the weights do not reach the "
        "engine that generates",
        remedy="use the checkpoint of the best reward; lower the learning rate and raise beta",
    )


def _reward(log: TrainingLog, rewards: tuple[float, ...]) -> tuple[str, Evidence] | None:
    begin, end = start_of(rewards), end_of(rewards)
    lost = begin - end
    scale = max(abs(begin), max(rewards) - min(rewards))
    if lost <= max(LOST * scale, 6 * error_of(rewards)) or lost <= 0:
        return None
    return f"the reward fell from {begin:.3g} to {end:.3g}", show(log, "reward", "no fall")


def _entropy(log: TrainingLog) -> tuple[str, Evidence] | None:
    values = log.finite("entropy")
    if len(values) < LEAST:
        return None
    begin, end = start_of(values), end_of(values)
    rewards = log.finite("reward")
    is_solved = end_of(rewards) > max(start_of(rewards), 0.95 * max(rewards))
    if begin <= 0 or end > min(FLAT[0], FLAT[1] * begin) or is_solved:
        return None
    return f"the entropy fell from {begin:.3g} to {end:.2g} nats", show(log, "entropy", "above 0")


def _kl(log: TrainingLog) -> tuple[str, Evidence] | None:
    values = log.finite("kl")
    if len(values) < LEAST:
        return None
    begin, end = start_of(values), end_of(values)
    if end < FAR or end < TIMES * abs(begin):
        return None
    return f"kl rose from {begin:.3g} to {end:.4g}", show(log, "kl", f"below {FAR:g}")
