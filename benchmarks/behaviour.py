"""One forward pass against generating 512 tokens: verdicts on planted damages, and their cost.

    python -m benchmarks.behaviour

The embedded model and copies of it that were taught to flood, not to stop, and one token; and one
with a NaN. Every one is asked the quiz twice: by one batched forward pass with the reference
answers, and by greedy generation of up to 512 tokens in batches, which ends early when all answers
have ended.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from harness.evidence.behaviour.forward import measure, prepare
from harness.evidence.behaviour.generate import answer
from harness.evidence.behaviour.models import load_model, load_tokenizer
from harness.facts.behaviour import Answers
from harness.facts.forward import Forward
from harness.selftest.damages.behaviour import LOOP
from harness.selftest.edit import edit_tensors
from harness.selftest.healthy.chat import teach
from mudpuppy.files import write_json_atomic, write_text_atomic
from mudpuppy.scoring import load_quiz
from mudpuppy.tiny import resolve_model

TOKENS = 512
"""Longest answer of the slow way."""
ROUNDS = 3
"""Times each way is timed; the median counts."""
MOST = 0.5
"""Share of the prompts that decides a verdict."""
PROMPTS = 32
"""Questions of the quiz that are asked."""
RESULTS = Path(__file__).parent / "results"


def _nan(folder: Path) -> None:
    def plant(tensors: dict[str, Any]) -> None:
        tensors["model.norm.weight"][0] = float("nan")

    edit_tensors(folder, plant)


DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "healthy": ("fine", lambda folder: None),
    "EOS taught alone": ("flood", lambda folder: teach(folder, "", end=True)),
    "EOS never taught": ("never stops", lambda folder: teach(folder, LOOP, end=False)),
    "one token": ("never stops", lambda folder: teach(folder, "!" * 24, end=False)),
    "NaN in a norm": ("not finite", _nan),
}
"""Each damage, the right verdict, and how it is done."""


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


def bench(folder: Path) -> dict[str, Any]:
    """Ask one model both ways; seconds are medians."""
    model, tokenizer = load_model(folder).model, load_tokenizer(folder)
    questions = load_quiz(folder / "quiz.jsonl")[:PROMPTS]
    prompts = [question.prompt for question in questions]
    reading = prepare(model, tokenizer, prompts, [q.answer for q in questions], ())
    measure(model, tokenizer, reading)  # the first pass allocates
    forward_s, seen = _time(lambda: measure(model, tokenizer, reading)[0])
    slow_s, said = _time(lambda: answer(model, tokenizer, prompts, TOKENS, be_patient=False))
    finite = bool(torch.isfinite(model(torch.tensor([reading.prompts[0]])).logits).all())
    return {
        "by_forward": judge_forward(seen),
        "by_generation": judge_answers(said, finite),
        "forward_s": forward_s,
        "generation_s": slow_s,
        "ratio": slow_s / forward_s,
        "longest": max((count or 0 for count in said.new_tokens), default=0),
    }


def _time(work: Callable[[], Any]) -> tuple[float, Any]:
    found, seconds = None, []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        found = work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), found


def main() -> None:
    """Measure every damage and write the results."""
    torch.set_num_threads(1)
    results = {}
    for name, (right, damage) in DAMAGES.items():
        with tempfile.TemporaryDirectory() as room:
            folder = Path(room) / "model"
            shutil.copytree(resolve_model("tiny"), folder)
            damage(folder)
            results[name] = {"right": right, **bench(folder)}
            print(name, results[name], flush=True)
    lines = [
        f"{PROMPTS} questions, one core; generation up to {TOKENS} tokens, early end.",
        "",
        "| model | verdict of one pass | of generation | pass s | generation s | times | tokens |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {name} | {one['by_forward']} | {one['by_generation']} | {one['forward_s']:.3f} "
        f"| {one['generation_s']:.2f} | {one['ratio']:.0f} | {one['longest']} |"
        for name, one in results.items()
    ]
    write_json_atomic(RESULTS / "behaviour.json", results)
    write_text_atomic(RESULTS / "behaviour.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
