"""Samples that are held out apart from the dataset: evaluated, never trained on."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from mudpuppy.config_check import load_config
from mudpuppy.data.read import read_dataset
from mudpuppy.engine import train
from mudpuppy.tiny import resolve_model

PAIRS = [(f"Question {n}?", f"Answer number {n}.") for n in range(8)]
OTHERS = [("Who lives there?", "A frog."), ("And who is that?", "The other one, which is longer.")]


def samples(path, pairs):
    rows = [{"instruction": question, "output": answer} for question, answer in pairs]
    path.write_text("\n".join(map(json.dumps, rows)))
    return read_dataset(path).samples


@pytest.fixture
def go(tmp_path):
    def run(name, **more):
        trained = samples(tmp_path / "train.jsonl", PAIRS)
        settings = {"model": resolve_model("tiny:llama"), "dataset": tmp_path / "train.jsonl"}
        settings |= {"precision": "fp32", "max_steps": 3, "lora_r": 4, "eval_steps": 2}
        config = load_config({**settings, "output": tmp_path / name})
        return train(config, samples=trained, **more)

    return run


def test_they_change_no_weight_and_are_evaluated_when_asked_and_at_the_end(go, tmp_path):
    others = samples(tmp_path / "others.jsonl", OTHERS)
    alone, beside = go("alone"), go("beside", held_out=others)

    one, other = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("alone", "beside")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert alone.eval_loss is None
    assert "eval_loss" not in alone.metrics
    steps = [json.loads(x) for x in (tmp_path / "beside/steps.jsonl").read_text().splitlines()]
    assert [s["step"] for s in steps if s["eval_loss"] is not None] == [2, 3]
    assert beside.metrics["eval_loss"] == beside.eval_loss
    assert {"train_loss", "train_runtime", "total_flos", "epoch"} <= set(beside.metrics)


def test_the_last_evaluation_is_the_loss_of_the_saved_adapter(go, tmp_path):
    """Against a plain forward pass: mean over all trained tokens of both answers."""
    from peft import PeftModel

    record = go("out", held_out=samples(tmp_path / "others.jsonl", OTHERS))
    base = AutoModelForCausalLM.from_pretrained(resolve_model("tiny:llama"), dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    total, count = 0.0, 0
    for question, answer in OTHERS:
        asked = [{"role": "user", "content": question}]
        talk = [*asked, {"role": "assistant", "content": answer}]
        prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        ids = tokenizer.apply_chat_template(talk, return_dict=False)
        ids = ids[: len(ids) - ids[::-1].index(tokenizer.eos_token_id)]  # to the end of the turn
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1]
        losses = functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
        kept = losses[len(prompt) - 1 :]
        total, count = total + float(kept.double().sum()), count + len(kept)
    assert record.eval_loss == pytest.approx(total / count, rel=1e-4)


def test_checkpoints_stay_where_that_is_asked(tmp_path):
    trained = samples(tmp_path / "train.jsonl", PAIRS)
    settings = {"model": resolve_model("tiny:llama"), "dataset": tmp_path / "train.jsonl"}
    settings |= {"precision": "fp32", "max_steps": 2, "lora_r": 4, "save_steps": 1}
    for name, keeps in (("kept", True), ("gone", False)):
        config = load_config({**settings, "output": tmp_path / name})
        train(config, samples=trained, keep_checkpoints=keeps)
        assert (tmp_path / name / "checkpoint-2").is_dir() == keeps
