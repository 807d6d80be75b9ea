"""Replays a recorded run in a fresh process: plain torch from the run's own weights, step by step.

Each step starts from the weights that the run had, so that differences do not add up, and nothing
depends on how chaotic the run is: loss and gradient are computed anew from the rows, the update by
AdamW from the run's gradients with the rate and the decay that the settings ask for.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.observations_twin import Deviation, TwinFacts, TwinStep
from harness.twin import compare
from harness.twin.asked import Asked
from harness.twin.dataset import Made, NotRendered, make_rows
from harness.twin.earned import compare_advantages
from harness.twin.folding import compare_merge
from harness.twin.kept import compare_best, compare_tensors
from harness.twin.models import open_twin, put, trained_tensors
from harness.twin.objectives import Objective, Share, count_items
from harness.twin.ranges import Moments, attach_ranges, has_ranges
from harness.twin.result import RECORDING_FILE, write_twin
from harness.twin.rows import Row, read_rows
from harness.twin.turns import Turns

LOSS_BOUND = {"fp32": 1e-5, "bf16": 5e-3, "fp16": 2e-3, "fp8": 2e-2}
"""Relative difference of a loss that each precision explains.

Measured over all methods on random models: 1.0e-6, 5e-4, 3.2e-4, 2.2e-3."""
GRADIENT_BOUND = {"fp32": 1e-4, "bf16": 0.05, "fp16": 0.02, "fp8": 0.25}
"""The same of a gradient. Measured: 1.5e-6, 9e-3, 1.5e-3, 7.8e-2."""
ROUNDED_LOSS_BOUND, ROUNDED_GRADIENT_BOUND = 1e-3, 0.02
"""The least of both where activations are rounded to int8 (qat): a sum in another order may land on
the next level. Measured: 4.4e-5 and 3.3e-3 beside bf16's own."""


PARTS = ("loss", "gradient", "rate", "rows", "weights", "evaluations", "merge")
"""What is compared in a replay."""


class Replay:
    """One recorded run, and the twin beside it."""

    def __init__(self, asked: Asked, base: str, folder: Path) -> None:
        self.asked = asked
        self._base = base
        self._folder = folder
        self._run: dict[str, Any] = torch.load(folder / RECORDING_FILE, weights_only=True)
        self._logged = _read_log(folder / "steps.jsonl")
        self.unchecked: dict[str, str] = {}
        self._settings: list[Deviation] = []
        self.batches = [
            [read_rows(asked.method, one["inputs"]) for one in step["batches"]]
            for step in self._run["steps"]
        ]
        self.evaluations = [
            [read_rows(asked.method, one["inputs"]) for one in seen["batches"]]
            for seen in self._run["evaluations"]
        ]

    def facts(self) -> TwinFacts:
        """Compare everything that can be."""
        started = time.process_time()
        if self._run["too_large"]:
            return TwinFacts(unchecked=dict.fromkeys(PARTS, self._run["too_large"]))
        asked, is_rounded = self.asked, self.asked.method == "qat"
        turns = self._turns()
        total = int(asked.max_steps or (turns.planned_steps() if turns else 0))
        model = open_twin(asked, self._base)
        ranges = attach_ranges(model, asked) if has_ranges(asked) else []
        twin = trained_tensors(model)
        tensors = compare_tensors(asked, self._run, twin, self._base, self._folder / "checkpoint")
        steps: list[TwinStep] = []
        evaluated: list[tuple[int, float, float]] = []
        if asked.lora_dropout:
            self.unchecked |= dict.fromkeys(("loss", "gradient"), "the adapter's dropout is random")
        if not any(one.what == "trainable tensors" for one in tensors):
            objective = Objective(asked, model)
            every = [rows for batches in (*self.batches, *self.evaluations) for rows in batches]
            objective.refer(self._run["initial"], every)
            moments = Moments(ranges, total)
            steps = self._replay(objective, twin, total, moments)
            evaluated = self._evaluate(objective, twin, moments)
        return TwinFacts(
            steps=tuple(steps),
            loss_bound=max(LOSS_BOUND[asked.precision], ROUNDED_LOSS_BOUND * is_rounded),
            gradient_bound=max(
                GRADIENT_BOUND[asked.precision], ROUNDED_GRADIENT_BOUND * is_rounded
            ),
            rows=tuple(turns.deviations()) if turns else (),
            rows_seen=sum(len(rows) for step in self.batches for rows in step),
            settings=tuple(self._settings),
            tensors=tuple(tensors),
            evaluations=tuple(evaluated),
            best=tuple(compare_best(asked, self._run, self._states(), evaluated)),
            rewards=tuple(
                compare_advantages(asked, turns.made, self.batches)
                if turns and asked.method == "grpo"
                else ()
            ),
            merge=self._merge(),
            unchecked=self.unchecked,
            seconds=round(time.process_time() - started, 3),
        )

    def _turns(self) -> Turns | None:
        try:
            made: Made = make_rows(self.asked, self._base)
        except NotRendered as error:
            self.unchecked["rows"] = f"the dataset is not rendered here: {error}"
            return None
        planned = int(self.asked.max_steps or 0)
        return Turns(
            asked=self.asked,
            made=made,
            steps=self.batches,
            evaluated=self.evaluations[0] if self.evaluations else (),
            stopped_early=bool(self.asked.early_stopping) and len(self.batches) < (planned or 1e9),
        )

    def _states(self) -> list[Mapping[str, Tensor]]:
        """Return the weights before the first step and after every one that was kept."""
        states: list[Mapping[str, Tensor]] = [self._run["initial"]]
        for step in self._run["steps"]:
            if "weights" not in step and not step["skipped"]:
                break
            states.append({**states[-1], **step.get("weights", {})})
        return states

    def _replay(
        self,
        objective: Objective,
        twin: Mapping[str, torch.nn.Parameter],
        total: int,
        moments: Moments,
    ) -> list[TwinStep]:
        """Compute every step anew from the weights that the run had before it."""
        states = self._states()
        adam = compare.Optimizer(self.asked, total)
        found = []
        for index, (step, batches) in enumerate(zip(self._run["steps"], self.batches, strict=True)):
            if index + 1 >= len(states):
                self.unchecked["steps"] = f"the tensors of step {index + 1} and after were too many"
                break
            put(twin, states[index])
            moments.begin(index)
            objective.size = 0.0
            loss = None if self.asked.lora_dropout else self._differentiate(objective, batches)
            moments.end()
            made = self._compare(index, step, loss, twin, adam, states)
            found.append(replace(made, loss_size=objective.size))
        return found

    def _differentiate(self, objective: Objective, batches: Sequence[Sequence[Row]]) -> float:
        """Put the gradient of a step into the twin, and return its loss."""
        rows = [row for one in batches for row in one]
        share = Share(items=max(1, count_items(rows)), batches=len(batches))
        total = 0.0
        for one in batches:
            loss = objective.loss(one, share)
            loss.backward()  # type: ignore[no-untyped-call]  # torch's
            total += float(loss.detach())
        return total

    def _compare(
        self,
        index: int,
        step: Mapping[str, Any],
        twin_loss: float | None,
        twin: Mapping[str, torch.nn.Parameter],
        adam: compare.Optimizer,
        states: Sequence[Mapping[str, Tensor]],
    ) -> TwinStep:
        number = index + 1
        logged = self._logged[index] if index < len(self._logged) else {}
        losses = [one.get("loss", math.nan) for one in step["batches"]]
        facts: dict[str, Any] = {
            "step": number,
            "loss": sum(losses),
            "twin_loss": twin_loss,
            "logged_loss": logged.get("loss"),
            "skipped": bool(step["skipped"]),
        }
        if step["skipped"]:
            if "groups" in step:
                # A fused optimizer is asked even where gradients overflowed, and leaves the step
                # out by itself: accelerate does not see it, and the schedule goes on.
                adam.skip()
            return TwinStep(**facts)
        self._settings += compare.compare_settings(self.asked, step["groups"], number)
        facts |= {
            "norm": compare.norm(step["gradients"]),
            "logged_norm": logged.get("grad_norm"),
            "rates": tuple(sorted({group["lr"] for group in step["groups"] if group["names"]})),
            "asked_rate": adam.rate,
        }
        if twin_loss is not None:
            facts |= self._compare_gradients(step["gradients"], twin)
        wanted = adam.update(states[index], step["gradients"])
        weights, bound, tensor = compare.compare_update(states[index], states[number], wanted)
        return TwinStep(**facts, weights_off=weights, weights_bound=bound, weights_tensor=tensor)

    def _compare_gradients(
        self, gradients: Mapping[str, Tensor], twin: Mapping[str, torch.nn.Parameter]
    ) -> dict[str, Any]:
        """Return the fields of a step that tell its gradients from the twin's."""
        raw = {name: p.grad for name, p in twin.items() if p.grad is not None}
        clipped = compare.clip(raw, self.asked.max_grad_norm)
        off, worst = compare.distance(gradients, clipped)
        return {
            "twin_norm": compare.norm(clipped),
            "twin_full_norm": compare.norm(raw),
            "gradient_off": off,
            "gradient_tensor": worst,
        }

    @torch.no_grad()
    def _evaluate(
        self, objective: Objective, twin: Mapping[str, torch.nn.Parameter], moments: Moments
    ) -> list[tuple[int, float, float]]:
        """Return steps done, logged loss and the twin's for every evaluation."""
        if self.asked.method == "grpo" and self.evaluations:
            self.unchecked["evaluations"] = "an evaluation of grpo generates its answers anew"
            return []
        states, found = self._states(), []
        for seen, batches in zip(self._run["evaluations"], self.evaluations, strict=True):
            if seen["loss"] is None or seen["steps"] >= len(states):
                continue
            put(twin, states[seen["steps"]])
            moments.go_to(seen["steps"])
            weights = self._eval_weights(batches)
            losses = [
                float(objective.loss(rows, Share(items=max(1, count_items(rows)), batches=1)))
                for rows in batches
            ]
            mean = sum(w * x for w, x in zip(weights, losses, strict=True)) / sum(weights)
            found.append((int(seen["steps"]), float(seen["loss"]), mean))
        return found

    def _eval_weights(self, batches: Sequence[Sequence[Row]]) -> list[float]:
        """Return the rows of each batch: the trainer's evaluation loss is a mean over rows."""
        return [float(len(rows)) for rows in batches]

    def _merge(self) -> tuple[Deviation, ...] | None:
        artefact = self._folder / "checkpoint"
        if not (self.asked.merge_lora and (artefact / "merged").is_dir()):
            return None
        return tuple(compare_merge(self.asked, Path(self._base), artefact))


def replay(asked: Asked, base: str, folder: Path) -> TwinFacts:
    """Replay the run that was recorded in `folder`, and write what was found there.

    Args:
        asked: the settings.
        base: folder of the base model.
        folder: the cell's folder.
    """
    try:
        facts = Replay(asked, base, folder).facts()
    finally:
        (folder / RECORDING_FILE).unlink(missing_ok=True)
    write_twin(folder, facts)
    return facts


def _read_log(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [line for line in lines if line["loss"] is not None]
