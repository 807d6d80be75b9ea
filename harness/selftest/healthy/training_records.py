"""Adapters beside the records of ordinary runs: SFT, DPO, KTO, GRPO, schedules, fp16, resumed."""

from __future__ import annotations

import json
import math
import shutil

from harness.selftest.records import PEAK, Course, sink, warm_cosine, write_state
from harness.selftest.registry import Patient, Ward, healthy

GRADIENT: Course = sink(2.4, 0.8)
CHANCE = math.log(96)
"""ln V of the small models."""


def _adapter(ward: Ward) -> Patient:
    """Copy the trained adapter into the folder of a ward."""
    patient = ward.get("peft-lora")
    shutil.copytree(patient.path, ward.folder, dirs_exist_ok=True)
    return Patient(path=ward.folder, options=patient.options)


@healthy("record-sft")
def write_sft(ward: Ward) -> Patient:
    """Write an SFT run whose evaluation loss falls and levels off."""
    patient = _adapter(ward)
    evaluations = {100: 2.21, 200: 1.93, 300: 1.87, 400: 1.88}
    accuracy = sink(0.45, 0.71)
    courses = {"loss": sink(3.2, 1.7), "grad_norm": GRADIENT, "mean_token_accuracy": accuracy}
    write_state(ward.folder, courses, evaluations=evaluations)
    return patient


@healthy("record-sft-overfits-a-little")
def write_sft_turning(ward: Ward) -> Patient:
    """Write a run of three epochs whose last evaluation is a little above its best, as many are."""
    patient = _adapter(ward)
    evaluations = {130: 1.21, 260: 1.12, 390: 1.17}
    write_state(
        ward.folder, {"loss": sink(1.9, 0.6), "grad_norm": GRADIENT}, evaluations=evaluations
    )
    return patient


@healthy("record-best-kept")
def write_best_kept(ward: Ward) -> Patient:
    """Write a run that overfits, and of which the trainer kept the best weights."""
    patient = _adapter(ward)
    write_state(
        ward.folder,
        {"loss": sink(1.9, 0.1), "grad_norm": GRADIENT},
        evaluations={100: 1.4, 200: 1.2, 300: 1.5, 400: 1.9},
        best_metric=1.2,
        best_model_checkpoint="out/checkpoint-200",
    )
    return patient


@healthy("record-random-model")
def write_random(ward: Ward) -> Patient:
    """Write a run from random weights: it begins at ln V and hardly leaves it."""
    patient = _adapter(ward)
    write_state(
        ward.folder,
        {"loss": lambda done: CHANCE + 0.06 - 0.1 * done, "grad_norm": sink(0.6, 0.5)},
        noise=0.004,
    )
    return patient


@healthy("record-noisy")
def write_noisy(ward: Ward) -> Patient:
    """Write a run with batches of one row, whose losses differ by half."""
    patient = _adapter(ward)
    write_state(
        ward.folder, {"loss": sink(1.4, 1.2), "grad_norm": GRADIENT}, every=1, steps=300, noise=0.4
    )
    return patient


@healthy("record-fp16-scaler")
def write_fp16(ward: Ward) -> Patient:
    """Write an fp16 run: the scaler overflows in its first steps and once later."""
    patient = _adapter(ward)
    overflows = (0.05, 0.075, 0.6)

    def norm(done: float) -> float:
        return math.nan if any(abs(done - one) < 0.003 for one in overflows) else 1.3

    write_state(ward.folder, {"loss": sink(2.8, 1.5), "grad_norm": norm})
    return patient


@healthy("record-dpo")
def write_dpo(ward: Ward) -> Patient:
    """Write a DPO run: rewards of chosen answers a little below 0, as most end."""
    patient = _adapter(ward)
    write_state(
        ward.folder,
        {
            "loss": sink(math.log(2), 0.41),
            "grad_norm": GRADIENT,
            "rewards/chosen": lambda done: -0.7 * done,
            "rewards/rejected": lambda done: -2.2 * done,
            "rewards/margins": lambda done: 1.5 * done,
            "rewards/accuracies": sink(0.5, 0.76),
            "logps/chosen": lambda done: -210 - 14 * done,
            "logps/rejected": lambda done: -180 - 44 * done,
        },
        noise=0.1,
    )
    return patient


@healthy("record-dpo-hardly-moves")
def write_dpo_small(ward: Ward) -> Patient:
    """Write a DPO run at 5e-7: the loss stays at ln 2 to three digits."""
    patient = _adapter(ward)
    write_state(
        ward.folder,
        {
            "loss": lambda done: math.log(2) - 4e-4 * done,
            "grad_norm": lambda done: 0.4,
            "learning_rate": lambda done: 5e-7 * (1 - done),
            "rewards/chosen": lambda done: 5e-4 * done,
            "rewards/margins": lambda done: 8e-4 * done,
            "logps/chosen": lambda done: -55.0,
        },
        noise=1e-5,
    )
    return patient


@healthy("record-kto")
def write_kto(ward: Ward) -> Patient:
    """Write a KTO run."""
    patient = _adapter(ward)
    write_state(
        ward.folder,
        {
            "loss": sink(0.5, 0.38),
            "grad_norm": GRADIENT,
            "kl": lambda done: 2.5 * done,
            "rewards/chosen": lambda done: 0.6 * done,
            "rewards/rejected": lambda done: -1.1 * done,
            "rewards/margins": lambda done: 1.7 * done,
            "logps/chosen": lambda done: -88 + 6 * done,
        },
        noise=0.15,
    )
    return patient


@healthy("record-orpo")
def write_orpo(ward: Ward) -> Patient:
    """Write an ORPO run, whose margin has no reference to begin at 0 from."""
    patient = _adapter(ward)
    write_state(
        ward.folder,
        {
            "loss": sink(2.2, 1.4),
            "grad_norm": GRADIENT,
            "nll_loss": sink(2.1, 1.35),
            "log_odds_ratio": sink(-0.7, -0.5),
            "rewards/chosen": sink(-0.21, -0.14),
            "rewards/margins": lambda done: 0.03 * done,
            "logps/chosen": sink(-2.1, -1.4),
        },
        noise=0.05,
    )
    return patient


@healthy("record-grpo")
def write_grpo(ward: Ward) -> Patient:
    """Write a GRPO run: a loss about 0, rewards that rise to their best, groups that then agree."""
    patient = _adapter(ward)
    write_state(
        ward.folder,
        {
            "loss": lambda done: 0.0 if done < 0.3 else 2e-4,
            "grad_norm": lambda done: 0.0 if done > 0.8 else 0.2,
            "reward": lambda done: min(1.0, 0.2 + done),
            "reward_std": lambda done: 0.0 if done >= 0.8 else 0.3,
            "frac_reward_zero_std": lambda done: 1.0 if done >= 0.8 else 0.2,
            "completions/clipped_ratio": sink(0.4, 0.05),
            "completions/mean_length": sink(200, 140),
            "entropy": sink(0.8, 0.35),
            "kl": lambda done: 0.02 * done,
        },
        noise=0.0,
    )
    return patient


@healthy("record-restarts")
def write_restarts(ward: Ward) -> Patient:
    """Write a run with a cosine that restarts three times."""
    patient = _adapter(ward)
    write_state(
        ward.folder,
        {
            "loss": sink(2.4, 1.3),
            "grad_norm": GRADIENT,
            "learning_rate": lambda done: PEAK * 0.5 * (1 + math.cos(math.pi * ((4 * done) % 1.0))),
        },
        every=7,
        steps=420,
    )
    return patient


@healthy("record-short")
def write_short(ward: Ward) -> Patient:
    """Write a trial of four steps, in which the loss happens to rise."""
    patient = _adapter(ward)
    write_state(
        ward.folder,
        {"loss": lambda done: 4.4 + 0.3 * done, "grad_norm": GRADIENT},
        steps=4,
        every=1,
        evaluations={2: 4.5, 4: 4.52},
    )
    return patient


@healthy("record-steps-jsonl")
def write_steps(ward: Ward) -> Patient:
    """Write LLaMA-Factory's log of a run that was resumed: steps overlap, the loss goes on."""
    patient = _adapter(ward)
    steps = [*range(5, 155, 5), *range(105, 305, 5)]
    rows = [
        {
            "current_steps": step,
            "total_steps": 300,
            "loss": round(sink(2.6, 1.2)(step / 300) + 0.03 * (step % 3), 4),
            "lr": warm_cosine(step / 300),
            "epoch": round(3 * step / 300, 4),
            "percentage": round(step / 3, 2),
            "elapsed_time": "0:01:00",
        }
        for step in steps
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (ward.folder / "trainer_log.jsonl").write_text(text, encoding="utf-8")
    return patient


@healthy("record-counted-labels")
def write_labels(ward: Ward) -> Patient:
    """Write the counts of labels that this project's engine writes into mudpuppy.json."""
    patient = _adapter(ward)
    labels = {
        "samples": 320,
        "tokens": 12070,
        "trained_tokens": 7380,
        "eos_tokens": 320,
        "samples_ending_in_eos": 320,
        "truncated": 0,
        "dropped": 0,
    }
    value = {"schema_version": 1, "kind": "adapter", "method": "lora", "labels": labels}
    (ward.folder / "mudpuppy.json").write_text(json.dumps(value), encoding="utf-8")
    return patient
