"""Every method's objective: what it is on an untouched model, and that it follows the answers."""

import math
from functools import cache

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from harness.watching.objective import Objective
from mudpuppy.data.render import RenderedSample
from mudpuppy.data.render_pairs import LabelledRow, PairRow
from mudpuppy.methods.process_reward import StepsRow
from mudpuppy.tiny import resolve_model

SAMPLES = [
    RenderedSample(input_ids=[5, 6, 7, 8], labels=[-100, -100, 7, 8], truncated=False),
    RenderedSample(input_ids=[9, 10], labels=[-100, 10], truncated=False),
]
PAIRS = [
    PairRow(prompt_ids=[5, 6], chosen_ids=[7, 8], rejected_ids=[9], truncated=False),
    PairRow(prompt_ids=[5], chosen_ids=[11], rejected_ids=[12, 13], truncated=False),
]
LABELLED = [
    LabelledRow(prompt_ids=[5, 6], completion_ids=[7, 8], label=True, truncated=False),
    LabelledRow(prompt_ids=[5], completion_ids=[9, 10], label=False, truncated=False),
]
STEPS = [StepsRow(input_ids=[5, 6, 7, 8], judged=[-100, 1, -100, 0], truncated=False, line=1)]
ROWS = {"lora": SAMPLES, "prm": STEPS, "kto": LABELLED}
CLASSES = {
    "rm": (AutoModelForSequenceClassification, {"num_labels": 1, "pad_token_id": 0}),
    "prm": (AutoModelForTokenClassification, {"num_labels": 2}),
}


@cache
def load(method: str):
    kind, settings = CLASSES.get(method, (AutoModelForCausalLM, {}))
    torch.manual_seed(0)
    return kind.from_pretrained(resolve_model("tiny:llama"), **settings).eval()


def rows_of(method: str):
    return ROWS.get(method, PAIRS)


@pytest.mark.parametrize("method", ["lora", "dpo", "ipo", "kto", "orpo", "rm", "prm"])
def test_a_step_is_measured_beyond_the_noise_of_the_control(method):
    model = load(method)
    objective = Objective(method, rows_of(method))
    before, noise = objective.measure_control(model)

    # One step down the objective's own slope: found by moving the head a little each way.
    head = model.get_output_embeddings() or model.score
    kept = head.weight.detach().clone()
    found = []
    for seed in range(6):
        push = torch.randn(kept.shape, generator=torch.Generator().manual_seed(seed)) * 0.05
        for sign in (1, -1):
            with torch.no_grad():
                head.weight.copy_(kept + sign * push)
            found.append(objective.measure(model))
    with torch.no_grad():
        head.weight.copy_(kept)

    assert noise < 1e-5
    assert before == pytest.approx(objective.measure(model), abs=1e-6)
    assert min(found) < before - noise < max(found)


def test_the_likelihood_is_that_of_transformers():
    model = load("lora")
    total = tokens = 0
    for row in SAMPLES:
        batch = {"input_ids": torch.tensor([row.input_ids]), "labels": torch.tensor([row.labels])}
        count = sum(x != -100 for x in row.labels[1:])
        with torch.no_grad():
            total += float(model(**batch).loss) * count
        tokens += count

    before, _ = Objective("lora", SAMPLES).measure_control(model)
    assert before == pytest.approx(total / tokens, rel=1e-5)


@pytest.mark.parametrize(
    ("method", "expected"), [("dpo", math.log(2)), ("ipo", 25.0), ("kto", 0.5)]
)
def test_against_itself_a_model_has_gained_nothing(method, expected):
    before, _ = Objective(method, rows_of(method)).measure_control(load(method))

    assert before == pytest.approx(expected, abs=1e-6)


def test_swapped_answers_raise_what_the_right_ones_lower():
    model = load("rm")
    swapped = [
        PairRow(
            prompt_ids=row.prompt_ids,
            chosen_ids=row.rejected_ids,
            rejected_ids=row.chosen_ids,
            truncated=False,
        )
        for row in PAIRS
    ]
    right, _ = Objective("rm", PAIRS).measure_control(model)
    wrong, _ = Objective("rm", swapped).measure_control(model)

    assert (right - math.log(2)) * (wrong - math.log(2)) < 0


@pytest.mark.parametrize("method", ["grpo", "gptq"])
def test_a_method_without_an_objective_has_none(method):
    objective = Objective(method, SAMPLES)

    assert (None, 0.0) == objective.measure_control(None)
    assert objective.measure(None) is None
