"""The watcher measures a live model: what moved, what got gradients, what the batches taught."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from harness.watcher import REFERENCE_FILE, TrainingWatcher, find_eos_ids
from harness.watching.logits import read_reference
from harness.watching.motion import unread_names
from harness.watching.tensors import foreign_names, hash_tensors
from mudpuppy.config import TrainingConfig
from mudpuppy.data.render import RenderedSample
from mudpuppy.tiny import resolve_model

QUESTION, ANSWER = "Who?", "A mud puppy."
BASE = resolve_model("tiny:llama")
MESSAGES = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]


@pytest.fixture
def parts():
    return AutoModelForCausalLM.from_pretrained(BASE), AutoTokenizer.from_pretrained(BASE)


def make_sample(tokenizer, answer: str = ANSWER, shift: int = 0) -> RenderedSample:
    """Render without a template, line by line."""
    question = tokenizer(f"{QUESTION}\n", add_special_tokens=False)["input_ids"]
    taught = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    labels = [-100] * len(question) + taught
    return RenderedSample(
        input_ids=question + taught,
        labels=labels[shift:] + [-100] * shift,
        truncated=False,
    )


def watch(tmp_path: Path, parts, sample: RenderedSample, *, rate=0.1, meddle=None, **settings):
    model, tokenizer = parts
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"messages": MESSAGES}) + "\n")
    config = TrainingConfig(
        model=BASE,
        dataset=data,
        output=tmp_path / "out",
        **{"method": "full", "chat_template": False, **settings},
    )
    watcher = TrainingWatcher(tmp_path, config, BASE)
    watcher.on_prepared(model, tokenizer, [sample], frozenset())
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate)
    batch = {
        "input_ids": torch.tensor([sample.input_ids]),
        "labels": torch.tensor([sample.labels]),
    }
    model(**batch).loss.backward()
    optimizer.step()
    if meddle is not None:
        meddle(model)
    watcher.on_fitted(model)
    return watcher


def test_a_clean_step_moves_everything_and_teaches_the_answer(tmp_path, parts):
    watcher = watch(tmp_path, parts, make_sample(parts[1]))

    motion, labels = watcher.motion, watcher.labels
    assert () == motion.still == motion.frozen_moved == motion.without_gradient
    assert (1, 1, 0) == (labels.rows, labels.rows_ending_in_eos, labels.rows_off_answer)
    assert labels.checked
    assert "SGD" == motion.optimizer
    assert watcher.loss_before - watcher.loss_after > watcher.loss_noise


def test_a_step_with_learning_rate_zero_lowers_nothing_beyond_the_noise(tmp_path, parts):
    watcher = watch(tmp_path, parts, make_sample(parts[1]), rate=0.0)

    assert watcher.loss_before - watcher.loss_after <= watcher.loss_noise
    assert watcher.motion.trainable == len(watcher.motion.still)


def test_frozen_tensors_that_move_and_trainable_ones_that_do_not_are_named(tmp_path, parts):
    model, tokenizer = parts
    frozen = "model.layers.0.mlp.up_proj.weight"
    model.get_parameter(frozen).requires_grad_(False)

    @torch.no_grad()
    def meddle(model) -> None:
        model.get_parameter(frozen)[0, 0] += 1.0

    watcher = watch(tmp_path, parts, make_sample(tokenizer), rate=0.0, meddle=meddle, method="lora")

    assert (frozen,) == watcher.motion.frozen_moved
    assert "lm_head.weight" in watcher.motion.still
    assert "lm_head.weight" in watcher.motion.foreign_trainable


def test_a_parameter_that_never_gets_a_gradient_is_named(tmp_path, parts):
    model, _ = parts
    model.register_parameter("idle", torch.nn.Parameter(torch.ones(2)))

    watcher = watch(tmp_path, parts, make_sample(parts[1]))

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
    watcher = watch(tmp_path, parts, spoil(parts[1]))

    assert 1 == watcher.labels.rows_off_answer
    assert "Who?" in watcher.labels.example_off_answer


def test_a_prompt_that_is_taught_is_right_only_where_it_was_asked_for(tmp_path, parts):
    sample = make_sample(parts[1])
    whole = RenderedSample(
        input_ids=sample.input_ids, labels=list(sample.input_ids), truncated=False
    )

    assert 1 == watch(tmp_path, parts, whole).labels.rows_off_answer
    assert 0 == watch(tmp_path, parts, whole, response_only=False).labels.rows_off_answer


def test_an_answer_without_its_end_is_counted(tmp_path, parts):
    sample = make_sample(parts[1])
    masked = RenderedSample(
        input_ids=sample.input_ids, labels=[*sample.labels[:-1], -100], truncated=False
    )

    watcher = watch(tmp_path, parts, masked)

    assert 0 == watcher.labels.rows_ending_in_eos
    assert 1 == watcher.labels.rows_off_answer


def test_the_reference_is_what_the_model_says(tmp_path, parts):
    sample = make_sample(parts[1])
    watch(tmp_path, parts, sample)

    rows, logits = read_reference(tmp_path / REFERENCE_FILE)
    with torch.no_grad():
        again = parts[0].eval()(input_ids=torch.tensor(rows[0]["input_ids"])).logits[0].numpy()
    assert [sample.input_ids] == rows[0]["input_ids"].tolist()
    np.testing.assert_array_equal(logits[0], again)


def test_a_copy_of_the_model_to_compare_with_is_not_taken_for_training(tmp_path, parts):
    sample = make_sample(parts[1])
    batch = {"input_ids": torch.tensor([sample.input_ids]), "labels": torch.tensor([sample.labels])}

    def ask_copy(model) -> None:
        copy.deepcopy(model)(**batch)

    assert 1 == watch(tmp_path, parts, sample, meddle=ask_copy).labels.rows


def test_one_changed_bit_changes_one_hash(parts):
    model, _ = parts
    before = hash_tensors(model)
    with torch.no_grad():
        weight = model.lm_head.weight
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    after = hash_tensors(model)

    assert ["lm_head.weight"] == [name for name in before if before[name] != after[name]]


def test_a_head_is_trainable_by_right_only_where_the_method_makes_one():
    head = "base_model.model.score.modules_to_save.default.weight"
    names = [head, "base_model.model.q_proj.lora_A.default.weight", "model.norm.weight"]

    assert ("model.norm.weight",) == foreign_names(names, has_head=True)
    assert (head, "model.norm.weight") == foreign_names(names, has_head=False)


def test_the_ends_are_found_where_a_model_has_no_generation_config(parts):
    class Bare:
        pass

    assert {parts[1].eos_token_id} == find_eos_ids(Bare(), parts[1])


def test_what_lies_behind_the_layer_that_is_read_is_not_to_be_trained():
    model = AutoModelForImageTextToText.from_pretrained(resolve_model("tiny:llava"))
    names = {name.partition("vision_tower.")[2] for name in unread_names(model)}

    assert {"post_layernorm.weight", "encoder.layers.1.mlp.fc1.weight"} <= names
    assert not any(name.startswith("encoder.layers.0.") for name in names)
