"""Packing, batches by tokens and the chunked loss, through the engine: the same training."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mudpuppy.config_check import load_config
from mudpuppy.data.batches import TokenBudgetSampler
from mudpuppy.errors import DatasetError, ModelError, UnsupportedCombination
from mudpuppy.methods import batching, fitting, sft
from mudpuppy.tiny import resolve_model
from tests.mudpuppy.methods.runs import run

ANSWERS = ("No.", "It eats worms and snails.", "It is awake at night, when the water is cold. " * 4)
NUM_SAMPLES = 12


@pytest.fixture(scope="module")
def base() -> str:
    return resolve_model("tiny:llama")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "varied.jsonl"
    rows = [
        [("user", f"What is number {i}?"), ("assistant", ANSWERS[i % len(ANSWERS)] * (1 + i % 2))]
        for i in range(NUM_SAMPLES)
    ]
    lines = [{"messages": [{"role": r, "content": c} for r, c in row]} for row in rows]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture
def train(base, dataset, tmp_path):
    def go(name, model=base, **settings):
        given = {"dataset": dataset, "max_steps": 3, "batch_size": NUM_SAMPLES, **settings}
        return run(model, tmp_path / name, **given)

    return go


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*model.safetensors")))


def assert_same_training(left: Path, right: Path) -> None:
    ours, theirs = weights(left), weights(right)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=2e-6)


class Batches:
    """Keeps what the model is given."""

    def __init__(self):
        self.seen = []

    def on_prepared(self, model, tokenizer, samples, eos_ids):
        model.register_forward_pre_hook(
            lambda _, args, kwargs: self.seen.append(kwargs), with_kwargs=True
        )

    def on_fitted(self, model):
        pass


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("full", {}),
        ("lora", {}),
        ("qlora", {}),
        ("full", {"gradient_checkpointing": True}),
        ("full", {"stream": True}),
        ("full", {"response_only": False}),
    ],
)
def test_packed_training_equals_unpacked(train, tmp_path, method, more):
    """All samples are in every step, so the order does not matter."""
    batches = Batches()
    plain, _ = train("plain", method=method, **more)
    packed, record = train("packed", method=method, packing=True, watcher=batches, **more)

    assert plain == pytest.approx(packed, rel=1e-5)
    assert_same_training(tmp_path / "packed", tmp_path / "plain")
    assert all(1 == batch["input_ids"].shape[0] for batch in batches.seen)
    assert all(NUM_SAMPLES == len(batch["document_lengths"]) for batch in batches.seen)
    assert 3 == record.steps


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "qwen3", "phi3"])
def test_packed_training_equals_unpacked_in_other_families(train, tmp_path, family):
    model = resolve_model(f"tiny:{family}")
    plain, _ = train("plain", model=model, max_steps=2)
    packed, _ = train("packed", model=model, max_steps=2, packing=True)

    assert plain == pytest.approx(packed, rel=1e-5)
    assert_same_training(tmp_path / "packed", tmp_path / "plain")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_packed_training_in_half_precision(train, precision):
    plain, _ = train("plain", precision=precision)
    packed, _ = train("packed", precision=precision, packing=True)

    assert plain == pytest.approx(packed, rel=1e-2)


def test_packed_runs_count_steps_and_evaluate(train, tmp_path):
    losses, record = train(
        "packed",
        packing=True,
        max_steps=None,
        epochs=2,
        batch_size=1,
        max_length=256,
        early_stopping=3,
        eval_steps=1,
        eval_fraction=0.2,
    )

    assert record.steps == len([loss for loss in losses if loss is not None])
    assert record.steps < 2 * NUM_SAMPLES
    assert record.eval_loss is not None
    assert "mudpuppy_documents" not in (tmp_path / "packed/adapter_config.json").read_text()


def test_a_model_that_cannot_be_packed_is_refused_before_anything_is_written(train, tmp_path):
    with pytest.raises(ModelError, match="llava"):
        train("packed", model=resolve_model("tiny:llava"), packing=True)

    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_batches_by_tokens_are_within_budget_and_count_the_steps(train, accumulation):
    batches = Batches()
    losses, record = train(
        "tokens",
        tokens_per_batch=300,
        max_length=256,
        max_steps=None,
        epochs=2,
        gradient_accumulation=accumulation,
        watcher=batches,
    )

    shapes = [tuple(batch["input_ids"].shape) for batch in batches.seen]
    assert 2 * NUM_SAMPLES == sum(rows for rows, _ in shapes)
    assert max(rows * length for rows, length in shapes) <= 300
    assert len(set(shapes)) > 1
    assert record.steps == len(losses) == 2 * -(-(len(shapes) // 2) // accumulation)


def test_accumulated_batches_of_unequal_size_average_per_token(train, tmp_path):
    whole, _ = train("whole", tokens_per_batch=100_000)
    parts, _ = train("parts", tokens_per_batch=400, max_length=400, gradient_accumulation=99)

    assert whole == pytest.approx(parts, rel=1e-5)
    assert_same_training(tmp_path / "parts", tmp_path / "whole")


def test_a_sample_beyond_the_budget_is_named_by_its_line(train):
    with pytest.raises(DatasetError, match=r"varied.jsonl:\d+: a sample of \d+ tokens") as caught:
        train("tokens", tokens_per_batch=40)

    assert "--tokens-per-batch" in caught.value.hint


def test_the_planned_steps_are_those_of_the_batches():
    config = load_config(
        {"model": "m", "dataset": "d", "output": "o", "tokens_per_batch": 20, "epochs": 2}
    )
    sampler = TokenBudgetSampler([10] * 7, 20, seed=0)

    assert 2 * 4 == fitting.count_steps(7, config, sampler)


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("family", ["llama-tied", "gemma2"])
def test_the_loss_in_chunks_is_trls(train, tmp_path, monkeypatch, method, family):
    model = resolve_model(f"tiny:{family}")
    ours, _ = train("ours", model=model, method=method, max_steps=2)
    monkeypatch.setattr(batching, "has_plain_head", lambda base: False)
    theirs, _ = train("theirs", model=model, method=method, max_steps=2)

    assert ours == pytest.approx(theirs, rel=1e-5)
    assert_same_training(tmp_path / "ours", tmp_path / "theirs")


def test_it_is_the_chunked_loss_that_trains(train, monkeypatch):
    seen = []
    real = sft.MixedPrecisionSFTTrainer.chunk_loss
    monkeypatch.setattr(
        sft.MixedPrecisionSFTTrainer,
        "chunk_loss",
        lambda self: (real(self), seen.append(self.is_chunked)),
    )
    train("ours", max_steps=1)

    assert [True] == seen


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"method": "dpo", "packing": True}, "MP-R20"),
        ({"method": "rm", "tokens_per_batch": 64}, "MP-R21"),
        ({"packing": True, "tokens_per_batch": 64}, "MP-R22"),
        ({"packing": True, "compile": True}, "MP-R23"),
    ],
)
def test_what_does_not_go_together_is_refused_by_code(settings, code):
    with pytest.raises(UnsupportedCombination) as caught:
        load_config({"model": "m", "dataset": "d", "output": "o", **settings})

    assert [code] == list(caught.value.codes)
