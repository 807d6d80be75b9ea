"""One forward pass against generating 512 tokens: verdicts on planted damages, and their cost.

The embedded model and copies of it that were taught to flood, not to stop, and one token; and one
with a NaN. Every one is asked the quiz twice: by one batched forward pass with the reference
answers, and by greedy generation of up to 512 tokens in batches, which ends early when all answers
have ended.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.frame import Figures, Plan, Row, Sides, Subject, at_least, at_most, interleave

if TYPE_CHECKING:
    from harness.facts.behaviour import Answers
    from harness.facts.forward import Forward

TOKENS = 512
"""Longest answer of the slow way."""
MOST = 0.5
"""Share of the prompts that decides a verdict."""
PROMPTS = 32
"""Questions of the quiz that are asked."""
ENDLESS = ("EOS never taught", "one token", "NaN in a norm")
"""Damages that generation does not get past quickly."""


def damages() -> dict[str, tuple[str, Callable[[Path], None]]]:
    """Return each damage, the right verdict, and how it is done."""
    from harness.selftest.damages.behaviour import LOOP
    from harness.selftest.edit import edit_tensors
    from harness.selftest.healthy.chat import teach

    def nan(folder: Path) -> None:
        def plant(tensors: dict[str, Any]) -> None:
            tensors["model.norm.weight"][0] = float("nan")

        edit_tensors(folder, plant)

    return {
        "healthy": ("fine", lambda folder: None),
        "EOS taught alone": ("flood", lambda folder: teach(folder, "", end=True)),
        "EOS never taught": ("never stops", lambda folder: teach(folder, LOOP, end=False)),
        "one token": ("never stops", lambda folder: teach(folder, "!" * 24, end=False)),
        "NaN in a norm": ("not finite", nan),
    }


def judge_forward(seen: Forward) -> str:
    """Return the verdict of one forward pass."""
    if seen.nonfinite >= MOST * seen.prompts:
        return "not finite"
    if seen.empty >= MOST * seen.prompts:
        return "flood"
    return "never stops" if seen.typical_last_end < 0.1 else "fine"


def judge_answers(seen: Answers, logits_are_finite: bool) -> str:
    """Return the verdict of whole answers."""
    total = len(seen.texts)
    if not logits_are_finite:
        return "not finite"
    if seen.empty >= MOST * total:
        return "flood"
    return "never stops" if seen.endless >= MOST * total else "fine"


def ask_both_ways(plan: Plan, folder: Path, right: str) -> Sides:
    """Ask one model both ways; `wrong` counts the verdicts that were."""
    import torch

    from harness.evidence.behaviour import forward
    from harness.evidence.behaviour.generate import answer
    from harness.evidence.behaviour.models import load_model, load_tokenizer
    from mudpuppy.scoring import load_quiz

    model, tokenizer = load_model(folder).model, load_tokenizer(folder)
    questions = load_quiz(folder / "quiz.jsonl")[:PROMPTS]
    prompts = [question.prompt for question in questions]
    reading = forward.prepare(model, tokenizer, prompts, [q.answer for q in questions], ())

    def one_pass() -> Figures:
        seen = forward.measure(model, tokenizer, reading)[0]
        return {"wrong": judge_forward(seen) != right}

    def generate() -> Figures:
        said = answer(model, tokenizer, prompts, TOKENS, be_patient=False)
        finite = bool(torch.isfinite(model(torch.tensor([reading.prompts[0]])).logits).all())
        return {"wrong": judge_answers(said, finite) != right}

    return interleave(plan, {"one pass": one_pass, "generation": generate})


def measure(plan: Plan) -> Sides:
    """Ask every damaged model both ways."""
    from mudpuppy.tiny import resolve_model

    plan.facts["asked"] = f"{PROMPTS} questions, answers of up to {TOKENS} tokens"
    plan.rounds = min(plan.rounds, 3)
    sides: Sides = {}
    wrong = 0.0
    for name, (right, damage) in damages().items():
        folder = plan.folder / name.replace(" ", "-")
        shutil.copytree(resolve_model("tiny"), folder)
        damage(folder)
        for side, samples in ask_both_ways(plan, folder, right).items():
            sides[f"{side}: {name}"] = samples
            if side == "one pass" and isinstance(samples, list):
                wrong += samples[0]["wrong"]
    return {**sides, "verdicts": [{"wrong": wrong}]}


SUBJECT = Subject(
    name="behaviour",
    title="Doctor: one forward pass in place of generating",
    measure=measure,
    in_quick=False,
    rows=(
        Row(
            name="verdicts",
            what="wrong verdicts of one pass on five models",
            ours="verdicts",
            against=None,
            figure="wrong",
            goal=at_most(0),
        ),
        *(
            Row(
                name=damage.lower().replace(" ", "-"),
                what=f"one pass: {damage}",
                ours=f"one pass: {damage}",
                against=f"generation: {damage}",
                goal=at_least(40.0),
            )
            for damage in ENDLESS
        ),
    ),
)
