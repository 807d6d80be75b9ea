"""The watcher measures a live model: what moved, what got gradients, what the labels taught."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.watcher import (
    REFERENCE_FILE,
    TrainingWatcher,
    hash_tensors,
    measure_loss,
    read_reference,
)
from mudpuppy.data.render import RenderedSample
from mudpuppy.tiny import resolve_model

ANSWER = "A mud puppy."


@pytest.fixture
def parts():
    base = resolve_model("tiny:llama")
    return AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)


def make_sample(tokenizer, answer: str = ANSWER, shift: int = 0) -> RenderedSample:
    question = tokenizer("Who?", add_special_tokens=False)["input_ids"]
    taught = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    labels = [-100] * len(question) + taught
    return RenderedSample(
        input_ids=question + taught,
        labels=labels[shift:] + [-100] * shift,
        truncated=False,
    )


def watch(tmp_path: Path, parts, sample: RenderedSample, *, train, adapter: bool = False):
    model, tokenizer = parts
    watcher = TrainingWatcher(tmp_path, [ANSWER], trains_adapter=adapter)
    watcher.on_prepared(model, tokenizer, [sample], frozenset())
    model.train()
    batch = {
        "input_ids": torch.tensor([sample.input_ids]),
        "labels": torch.tensor([sample.labels]),
    }
    model(**batch).loss.backward()
    train(model)
    watcher.on_fitted(model)
    return watcher


@torch.no_grad()
def descend(model) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.grad is not None:
            parameter -= 0.1 * parameter.grad


def test_a_clean_step_moves_everything_and_teaches_the_answer(tmp_path, parts):
    watcher = watch(tmp_path, parts, make_sample(parts[1]), train=descend)

    motion, labels = watcher.motion, watcher.labels
    assert () == motion.still == motion.frozen_moved == motion.without_gradient
    assert (1, 1, 0) == (labels.rows, labels.rows_ending_in_eos, labels.rows_off_answer)
    assert watcher.loss_after < watcher.loss_before


def test_frozen_tensors_that_move_and_trainable_ones_that_do_not_are_named(tmp_path, parts):
    model, tokenizer = parts
    frozen = "model.layers.0.mlp.up_proj.weight"
    model.get_parameter(frozen).requires_grad_(False)

    @torch.no_grad()
    def meddle(model) -> None:
        model.get_parameter(frozen)[0, 0] += 1.0

    watcher = watch(tmp_path, parts, make_sample(tokenizer), train=meddle, adapter=True)

    assert (frozen,) == watcher.motion.frozen_moved
    assert "lm_head.weight" in watcher.motion.still
    assert "lm_head.weight" in watcher.motion.foreign_trainable


def test_a_parameter_that_never_gets_a_gradient_is_named(tmp_path, parts):
    model, _ = parts
    model.register_parameter("idle", torch.nn.Parameter(torch.ones(2)))

    watcher = watch(tmp_path, parts, make_sample(parts[1]), train=descend)

    assert ("idle",) == watcher.motion.without_gradient == watcher.motion.still


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tokenizer: make_sample(tokenizer, "Something else."),
        lambda tokenizer: make_sample(tokenizer, shift=1),
        lambda tokenizer: make_sample(tokenizer, "A mud"),
    ],
    ids=["other text", "shifted labels", "cut answer"],
)
def test_teaching_anything_but_the_answer_is_counted(tmp_path, parts, spoil):
    watcher = watch(tmp_path, parts, spoil(parts[1]), train=descend)

    assert 1 == watcher.labels.rows_off_answer


def test_an_answer_without_its_end_is_counted(tmp_path, parts):
    sample = make_sample(parts[1])
    masked = RenderedSample(
        input_ids=sample.input_ids, labels=[*sample.labels[:-1], -100], truncated=False
    )

    watcher = watch(tmp_path, parts, masked, train=descend)

    assert 0 == watcher.labels.rows_ending_in_eos


def test_the_reference_is_what_the_model_says(tmp_path, parts):
    sample = make_sample(parts[1])
    watch(tmp_path, parts, sample, train=descend)

    rows, logits = read_reference(tmp_path / REFERENCE_FILE)
    with torch.no_grad():
        again = parts[0].eval()(input_ids=torch.tensor(rows)).logits[0].numpy()
    assert [sample.input_ids] == rows
    np.testing.assert_array_equal(logits[0], again)


def test_the_measured_loss_is_that_of_transformers(parts):
    model, tokenizer = parts
    sample = make_sample(tokenizer)
    with torch.no_grad():
        expected = model.eval()(
            input_ids=torch.tensor([sample.input_ids]), labels=torch.tensor([sample.labels])
        ).loss

    assert measure_loss(model, [(sample.input_ids, sample.labels)]) == pytest.approx(
        float(expected)
    )


def test_one_changed_bit_changes_one_hash(parts):
    model, _ = parts
    before = hash_tensors(model)
    with torch.no_grad():
        weight = model.lm_head.weight
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    after = hash_tensors(model)

    assert ["lm_head.weight"] == [name for name in before if before[name] != after[name]]
