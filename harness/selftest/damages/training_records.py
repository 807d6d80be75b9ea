"""Damages of the record of a run: what trainers log when something goes wrong."""

from __future__ import annotations

import json
import math
from typing import Any

from harness.selftest.edit import edit_json, edit_tensors
from harness.selftest.records import (
    PEAK,
    edit_history,
    edit_state,
    set_course,
    sink,
    warm_cosine,
)
from harness.selftest.registry import Patient, damage

CHANCE = math.log(96)
Rows = list[dict[str, Any]]


@damage("record-nan", patient="record-sft", mode="FM41", probe="loss-not-finite")
def log_nan(patient: Patient) -> None:
    """Let loss and gradient become NaN at two thirds of the run."""

    def change(rows: Rows) -> None:
        for row in rows[len(rows) * 2 // 3 :]:
            row["loss"] = row["grad_norm"] = math.nan

    edit_history(patient.path, change)


@damage("record-nan-filtered", patient="record-sft", mode="FM41", probe="loss-not-finite")
def log_filtered_nan(patient: Patient) -> None:
    """Let every loss be 0.0 and every gradient NaN, as transformers writes a NaN it filters."""

    def change(rows: Rows) -> None:
        for row in rows:
            row["loss"], row["grad_norm"] = 0.0, math.nan

    edit_history(patient.path, change)


@damage("record-nan-as-text", patient="record-sft", mode="FM41", probe="loss-not-finite")
def log_nan_as_text(patient: Patient) -> None:
    """Write NaN as null and as a text, as readers of strict JSON want it."""

    def change(rows: Rows) -> None:
        for row in rows[-8:]:
            row["loss"], row["grad_norm"] = None, "nan"

    edit_history(patient.path, change)


@damage("record-masked", patient="record-sft", mode="FM09", probe="loss-zero")
def log_zero(patient: Patient) -> None:
    """Let loss and gradient be 0 throughout: every label is -100."""

    def change(rows: Rows) -> None:
        for row in rows:
            row["loss"] = row["grad_norm"] = 0.0

    edit_history(patient.path, change)


@damage("record-no-gradient", patient="record-sft", mode="FM08", probe="loss-zero")
def log_no_gradient(patient: Patient) -> None:
    """Let the gradient be 0 throughout, with a loss that comes and goes with its batches."""
    set_course(patient.path, "loss", lambda done: 2.1)
    set_course(patient.path, "grad_norm", lambda done: 0.0)


@damage("record-constant", patient="record-sft", mode="FM09", probe="loss-never-moves")
def log_constant(patient: Patient) -> None:
    """Log one loss for all steps."""
    set_course(patient.path, "loss", lambda done: 2.3841, noise=0)


@damage(
    "record-above-chance", patient="record-random-model", mode="FM39", probe="loss-above-chance"
)
def log_sum(patient: Patient) -> None:
    """Log the sum over four accumulated batches."""
    set_course(patient.path, "loss", lambda done: 4 * sink(CHANCE, 2.0)(done))


@damage("record-multiple", patient="record-sft", mode="FM39", probe="loss-counted-several-times")
def log_multiple(patient: Patient) -> None:
    """Log twice the loss in training and the mean in evaluation."""
    edit_history(
        patient.path, lambda rows: [row.update(loss=2 * row["loss"] * 0.97) for row in rows]
    )


@damage("record-diverged", patient="record-sft", mode="FM41", probe="loss-diverged")
def log_divergence(patient: Patient) -> None:
    """Let the loss end above ln V, with a gradient of millions."""
    set_course(patient.path, "loss", lambda done: 1.9 if done < 0.6 else CHANCE + 0.7)
    set_course(patient.path, "grad_norm", lambda done: 1.1 if done < 0.6 else 3.3e6)


@damage("record-lost-again", patient="record-noisy", mode="FM41", probe="loss-diverged")
def lose_again(patient: Patient) -> None:
    """Let the loss fall and climb back nearly to where it was."""
    set_course(patient.path, "loss", lambda done: 3.0 - 4.4 * min(done, 1.3 - 1.15 * done))


@damage("record-gradient", patient="record-sft", mode="FM61", probe="gradient-exploded")
def log_explosion(patient: Patient) -> None:
    """Let the gradient norm climb to 40,000 while the loss stays where it is."""
    set_course(patient.path, "grad_norm", lambda done: 1.5 * math.exp(10.2 * done))


@damage("record-overfits", patient="record-sft", mode="FM15", probe="evaluation-rises")
def overfit(patient: Patient) -> None:
    """Let the evaluation turn after the first quarter while training goes on falling."""
    evaluations = iter((1.31, 1.42, 1.66, 1.97))
    path = patient.path / "trainer_state.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    for row in value["log_history"]:
        if "eval_loss" in row:
            row["eval_loss"] = next(evaluations)
        else:
            row["loss"] = sink(1.5, 0.2)(row["step"] / 400)
    path.write_text(json.dumps(value), encoding="utf-8")


@damage("record-dpo-degenerates", patient="record-dpo", mode="FM37", probe="preference-degenerates")
def degenerate(patient: Patient) -> None:
    """Let both answers lose their likelihood while the margin grows."""
    set_course(patient.path, "logps/chosen", lambda done: -96 - 214 * done)
    set_course(patient.path, "rewards/chosen", lambda done: -21 * done)
    set_course(patient.path, "rewards/margins", lambda done: 9 * done)
    set_course(patient.path, "loss", sink(math.log(2), 0.02))


@damage("record-dpo-other-reference", patient="record-dpo", mode="FM36", probe="reference-is-wrong")
def mistake_reference(patient: Patient) -> None:
    """Begin with a loss of 0 and a margin of 21."""
    set_course(patient.path, "loss", lambda done: 0.0)
    set_course(patient.path, "rewards/margins", lambda done: 21.4 + 2 * done)


@damage("record-dpo-no-reference", patient="record-dpo", mode="FM36", probe="reference-is-wrong")
def move_reference(patient: Patient) -> None:
    """Let the reference be the policy."""
    set_course(patient.path, "loss", lambda done: math.log(2), noise=0)
    for name in ("rewards/margins", "rewards/chosen", "rewards/rejected", "rewards/accuracies"):
        set_course(patient.path, name, lambda done: 0.0)


@damage("record-grpo-equal", patient="record-grpo", mode="FM57", probe="rewards-all-equal")
def equal_rewards(patient: Patient) -> None:
    """Let every answer get no reward."""
    for name in ("reward", "reward_std", "grad_norm"):
        set_course(patient.path, name, lambda done: 0.0)
    set_course(patient.path, "frac_reward_zero_std", lambda done: 1.0, noise=0)


@damage("record-grpo-clipped", patient="record-grpo", mode="FM57", probe="answers-hit-the-limit")
def clip_answers(patient: Patient) -> None:
    """Let the share of cut answers climb to all."""
    set_course(patient.path, "completions/clipped_ratio", lambda done: min(1, 2 * done), noise=0)


@damage("record-grpo-collapse", patient="record-grpo", mode="FM57", probe="policy-collapsed")
def collapse(patient: Patient) -> None:
    """Let the reward fall to nothing while the KL grows without bound."""
    set_course(patient.path, "reward", lambda done: 0.8 - 0.8 * done)
    set_course(patient.path, "reward_std", lambda done: 0.2)
    set_course(patient.path, "kl", lambda done: 140 * done**3)


@damage("record-rate-zero", patient="record-sft", mode="FM08", probe="learning-rate-zero")
def stop_rate(patient: Patient) -> None:
    """Log a learning rate of 0 throughout."""
    set_course(patient.path, "learning_rate", lambda done: 0.0)


@damage("record-rate-resumed", patient="record-sft", mode="FM58", probe="resume-jumps")
def restart_rate(patient: Patient) -> None:
    """Resume with a plan of three times the length: the rate climbs again."""

    def rate(done: float) -> float:
        return warm_cosine(1.4 * done) if done < 0.7 else PEAK * 0.9 * (1.0 - done) / 0.3

    set_course(patient.path, "learning_rate", rate)


@damage("record-steps-back", patient="record-sft", mode="FM58", probe="resume-jumps")
def step_back(patient: Patient) -> None:
    """Repeat the steps from 200 on behind step 300."""

    def change(rows: Rows) -> None:
        for row in rows[30:]:
            row["step"] -= 100

    edit_history(patient.path, change)


@damage("record-past-plan", patient="record-sft", mode="FM58", probe="state-past-the-plan")
def shorten_plan(patient: Patient) -> None:
    """Lower max_steps below what is done."""
    edit_state(patient.path, max_steps=240)


@damage("record-other-schedule", patient="record-sft", mode="FM58", probe="schedule-not-asked")
def ask_otherwise(patient: Patient) -> None:
    """Let the card ask for ten times the rate."""
    card = (
        "# lora\n\n### Training hyperparameters\n\nThe following hyperparameters were used during "
        "training:\n- learning_rate: 0.002\n- train_batch_size: 2\n- lr_scheduler_type: cosine\n"
        "\n### Training results\n"
    )
    (patient.path / "README.md").write_text(card, encoding="utf-8")


@damage("adapter-of-old-peft", patient="peft-lora", mode="FM21", probe="made-with-defect")
def date_back(patient: Patient) -> None:
    """Let the adapter be made by a PEFT that leaves its attribute on the base."""
    edit_json(patient.path / "adapter_config.json", peft_version="0.17.1")


@damage("record-of-summing-release", patient="record-sft", mode="FM39", probe="made-with-defect")
def sum_losses(patient: Patient) -> None:
    """Let the card name a transformers that summed losses, and gradient accumulation."""
    card = (
        "# lora\n\n### Training hyperparameters\n\n- learning_rate: 0.0002\n"
        "- gradient_accumulation_steps: 8\n- lr_scheduler_type: cosine\n\n"
        "### Framework versions\n\n- PEFT 0.21.2\n- Transformers 4.48.0\n- Pytorch 2.6.0\n"
    )
    (patient.path / "README.md").write_text(card, encoding="utf-8")


@damage("record-stopped", patient="record-sft", mode="FM58", probe="run-ended-early")
def stop_early(patient: Patient) -> None:
    """Let the plan be twice as long as the run."""
    edit_state(patient.path, max_steps=900)


@damage("record-spike", patient="record-sft", mode="FM41", probe="loss-spikes")
def spike(patient: Patient) -> None:
    """Let one loss be nine times its neighbours."""

    def change(rows: Rows) -> None:
        rows[25]["loss"] *= 9

    edit_history(patient.path, change)


@damage("record-rank-high", patient="record-sft", mode="FM15", probe="rank-beyond-data")
def raise_rank(patient: Patient) -> None:
    """Let the record tell of 300 rows, and the adapter have rank 64."""

    def widen(tensors: dict[str, Any]) -> dict[str, Any]:
        import torch

        axis = {True: 0, False: 1}
        return {k: torch.cat([v] * 16, axis["lora_A" in k]) for k, v in tensors.items()}

    edit_tensors(patient.path, widen)
    edit_json(patient.path / "adapter_config.json", r=64, lora_alpha=8)
    _tell_rows(patient, 300)


@damage("record-epochs-many", patient="record-sft", mode="FM15", probe="epochs-beyond-data")
def repeat_rows(patient: Patient) -> None:
    """Let the record tell of 40 epochs over 300 rows."""
    edit_state(patient.path, epoch=40.0, num_train_epochs=40)
    _tell_rows(patient, 300, epochs=40)


@damage("record-rate-high", patient="record-sft", mode="FM61", probe="rate-unusual")
def raise_rate(patient: Patient) -> None:
    """Log a rate with a zero too few."""
    set_course(patient.path, "learning_rate", lambda done: 100 * warm_cosine(done))


def _tell_rows(patient: Patient, rows: int, epochs: float = 3.0) -> None:
    """Add the summary that transformers logs at the end of a run."""
    path = patient.path / "trainer_state.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    summary = {"train_runtime": 100.0, "train_samples_per_second": rows * epochs / 100}
    value["log_history"].append({"epoch": epochs, "step": 400, "train_loss": 1.9, **summary})
    path.write_text(json.dumps(value), encoding="utf-8")


@damage("labels-none", patient="record-counted-labels", mode="FM09", probe="labels-teach-little")
def mask_labels(patient: Patient) -> None:
    """Count no label that trains, though every answer has its end."""
    _count_labels(patient, trained_tokens=0, eos_tokens=0)


@damage("labels-ends", patient="record-counted-labels", mode="FM40", probe="labels-teach-little")
def train_padding(patient: Patient) -> None:
    """Count four ends of a turn to five labels: padding with EOS is not masked."""
    _count_labels(patient, trained_tokens=38_400, eos_tokens=31_340)


def _count_labels(patient: Patient, **counts: int) -> None:
    path = patient.path / "mudpuppy.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    value["labels"].update(counts)
    path.write_text(json.dumps(value), encoding="utf-8")
