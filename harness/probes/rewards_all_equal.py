"""All answers of a group get the same reward: a run on generated answers learns nothing.

What it does: looks at `reward_std` and `frac_reward_zero_std` of GRPO and RLOO over the second half
of the run. A reward that reached its best and stays there is a task that is solved, not a fault.

Why it is bad: the advantage is the difference to the group's mean. With equal rewards it is 0, and
so is the gradient; what remains is the pull of the KL term, or noise (FM57).

Example: the reward function looks for a tag that the template never asks for: every reward is 0,
reward_std is 0 in all 300 steps, and the loss looks as it always does.

What to do: call the reward function on ten answers of the model and look at the values. Make it
graded, sample with a higher temperature, or use easier prompts first.
"""

from __future__ import annotations

from harness.facts.records import TrainingLog
from harness.findings import Finding, Severity
from harness.registry import NotApplicable, probe
from harness.weighing.record_series import require_points, show

LEAST = 5
NEARLY_ALL = 0.9


@probe("MPD913", modes=["FM57"], severity=Severity.HIGH)
def check(training_log: TrainingLog) -> Finding | str:
    """Report rewards without differences in the second half of a run."""
    log = training_log
    if not log.is_generating:
        raise NotApplicable("the run does not train on generated answers")
    name = "reward_std" if "reward_std" in log.series else "frac_reward_zero_std"
    spreads = require_points(log, name, LEAST)
    silent = [value == 0.0 if name == "reward_std" else value == 1.0 for value in spreads]
    late = silent[len(silent) // 2 :]
    if sum(late) < NEARLY_ALL * len(late):
        return f"rewards differed within groups in {late.count(False)} of {len(late)} late steps"
    if not all(silent) and _is_solved(log.finite("reward")):
        return "rewards no longer differ, at the best value that the run reached"
    when = "the whole run" if all(silent) else "the second half of the run"
    return Finding(
        message=f"all answers of a group got the same reward in {when}: nothing was learnt there",
        evidence=tuple(
            show(log, one) for one in (name, "reward", "grad_norm") if log.series.get(one)
        ),
        cause="the reward function gives one value to all answers, or the policy collapsed to one "
        "answer",
        remedy="call the reward function on ten answers; make it graded, or raise the temperature",
    )


def _is_solved(rewards: tuple[float, ...]) -> bool:
    """Whether the reward stands at its best, above where it began."""
    if not rewards:
        return False
    late = rewards[len(rewards) // 2 :]
    best = max(rewards)
    return min(late) >= best - 0.05 * abs(best) and best > rewards[0]
