"""Ordinary runs of any length, noise and schedule: the probes of training records stay silent."""

from __future__ import annotations

import math
import random
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.facts.records import Point, TrainingLog
from harness.findings import Severity, Status
from harness.registry import NotApplicable, load_probes, run_probe

PROBES = [
    one for one in load_probes() if one.code.startswith("MPD9") and one.needs == ("training_log",)
]
SCHEDULES = {
    "linear": lambda done: 1 - done,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "constant": lambda done: 1.0,
    "wsd": lambda done: 1.0 if done < 0.8 else (1 - done) / 0.2,
    "polynomial": lambda done: (1 - done) ** 2,
    "inverse_sqrt": lambda done: 1 / math.sqrt(1 + 10 * done),
    "plateau": lambda done: 0.1 ** int(3 * done),
}


class Source:
    """Evidence that is nothing but a training log."""

    def __init__(self, log: TrainingLog) -> None:
        self.log = log

    def get(self, name):
        if name != "training_log":
            raise NotApplicable(name)
        return self.log


def make_log(chance, points, noise, method, schedule, warm, vocabulary):
    """Return a record of a run whose numbers go as they should."""
    begin = chance.uniform(0.8, 0.9 * math.log(vocabulary))
    end, rate = begin * chance.uniform(0.3, 1.0), 10 ** chance.uniform(-6, -2.5)
    series = defaultdict(list)
    for step in range(1, points + 1):
        done = step / points

        def add(name, value, step=step):
            series[name].append(Point(step=step, value=value))

        spread = math.exp(noise * chance.gauss(0, 1))
        course = end + (begin - end) * math.exp(-3 * done)
        loss = {"sft": course, "dpo": 0.69 - 0.4 * done, "grpo": 0.0}[method]
        ramp = done / warm if done < warm else SCHEDULES[schedule]((done - warm) / (1 - warm))
        add("loss", loss * spread + (chance.gauss(0, 0.01) if method == "grpo" else 0))
        add("grad_norm", math.exp(chance.gauss(0, 0.7)))
        add("learning_rate", rate * ramp)
        add("epoch", 3 * done)
        if method == "dpo":
            add("rewards/margins", 1.5 * done + chance.gauss(0, 0.3))
            add("rewards/chosen", -0.5 * done + chance.gauss(0, 0.2))
            add("logps/chosen", -(200 + 10 * done) * math.exp(chance.gauss(0, 0.3)))
        if method == "grpo":
            add("reward", 0.3 + 0.4 * done + chance.gauss(0, 0.1))
            add("reward_std", abs(chance.gauss(0.3, 0.1)))
            add("entropy", 1 - 0.5 * done)
            add("kl", abs(chance.gauss(0.5 * done, 0.2)))
        if method == "sft" and step % 5 == 0:
            add("eval_loss", 1.1 * course * math.exp(chance.gauss(0, 0.02)))
    return TrainingLog(
        file="trainer_state.json",
        series={name: tuple(found) for name, found in series.items()},
        is_state=True,
        finished_steps=points,
        planned_steps=points,
        epochs=3.0,
        planned_epochs=3.0,
        samples=2000.0,
        is_text=True,
        vocabulary=vocabulary,
        asked={"learning_rate": rate},
        asked_in="README.md",
    )


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**9),
    points=st.integers(1, 120),
    noise=st.floats(0, 0.1),
    method=st.sampled_from(["sft", "dpo", "grpo"]),
    schedule=st.sampled_from(sorted(SCHEDULES)),
    warm=st.floats(0.01, 0.4),
    vocabulary=st.sampled_from([96, 1024, 32_000, 151_936]),
)
def test_an_ordinary_run_raises_no_alarm(seed, **drawn):
    # A seed, since hypothesis' own randoms are sought for extremes, and noise has none.
    source = Source(make_log(random.Random(seed), **drawn))

    results = [run_probe(one, source) for one in PROBES]

    assert not [one.reason for one in results if one.status is Status.CRASHED]
    alarms = [one for one in results if one.status is Status.FAILED]
    assert not [one.message for one in alarms if one.severity is not Severity.NOTE]


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_a_rate_without_its_schedule_is_no_alarm(schedule):
    log = make_log(random.Random(0), 40, 0.05, "sft", schedule, 0.1, 32_000)

    names = {
        one.name for one in (run_probe(p, Source(log)) for p in PROBES) if one.status == "failed"
    }

    assert not names
