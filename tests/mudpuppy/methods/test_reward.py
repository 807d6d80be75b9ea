"""Reward and process reward models through the engine: heads that are saved, scores that return."""

import json
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)
from trl import RewardConfig, RewardTrainer

from mudpuppy.data.samples import StepsSample
from mudpuppy.errors import DatasetError
from mudpuppy.methods.process_reward import encode_steps
from mudpuppy.provenance import read_provenance
from mudpuppy.tiny import resolve_model
from tests.mudpuppy.methods.pairs import run, solutions

AUTO = {"rm": AutoModelForSequenceClassification, "prm": AutoModelForTokenClassification}
LABELS = {"rm": 1, "prm": 2}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(scope="module")
def base() -> str:
    return resolve_model("tiny:llama")


def reload(base, out, method, is_adapter, dtype=torch.float32):
    if not is_adapter:
        return AUTO[method].from_pretrained(out, dtype=dtype).eval()
    # the head of the base is random: only a head that is saved with the adapter gives equal scores
    torch.manual_seed(1)
    plain = AUTO[method].from_pretrained(base, num_labels=LABELS[method], dtype=dtype)
    return PeftModel.from_pretrained(plain, out).eval()


@torch.no_grad()
def scores_of(model, rows, pad):
    longest = max(len(row.input_ids) for row in rows)
    ids = torch.tensor([row.input_ids + [pad] * (longest - len(row.input_ids)) for row in rows])
    mask = torch.tensor([[1] * len(r.input_ids) + [0] * (longest - len(r.input_ids)) for r in rows])
    return model(input_ids=ids, attention_mask=mask).logits.float()


@pytest.mark.parametrize("method", ["rm", "prm"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("use_peft", [True, False])
def test_the_head_is_trained_saved_and_back(base, tmp_path, method, precision, use_peft):
    steps, record, peek = run(
        base, tmp_path / "out", method, precision=precision, use_peft=use_peft, max_steps=4
    )
    moved = {n for n in peek.before if not torch.equal(peek.before[n], peek.after[n])}
    again = reload(base, tmp_path / "out", method, use_peft, DTYPES[precision])
    with torch.no_grad():
        score = again(input_ids=torch.tensor([peek.rows[0].input_ids])).logits.float()

    assert moved == peek.trainable
    assert any("score" in name for name in moved)
    assert peek.patched == []
    assert steps[-1].loss < steps[0].loss
    assert torch.allclose(score, peek.score, atol=1e-6 if precision == "fp32" else 0.02)
    assert record.labels is not None
    assert record.labels.samples == len(peek.rows)


@pytest.mark.parametrize("use_peft", [True, False])
def test_a_batch_scores_as_its_rows_do(base, tmp_path, use_peft):
    """The model finds the last token of a padded row only where it knows the pad id."""
    run(base, tmp_path / "out", "rm", use_peft=use_peft)
    *_, peek = run(base, tmp_path / "again", "rm", use_peft=use_peft)
    model = reload(base, tmp_path / "out", "rm", use_peft)
    pad = AutoTokenizer.from_pretrained(tmp_path / "out").pad_token_id

    together = scores_of(model, peek.rows, pad)
    alone = torch.cat([scores_of(model, [row], pad) for row in peek.rows])
    assert len({len(row.input_ids) for row in peek.rows}) > 1
    assert torch.allclose(together, alone, atol=1e-5)


def test_a_base_without_a_pad_token_gets_one(base, tmp_path):
    from transformers import AutoModelForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    tokenizer.pad_token = None
    model.config.pad_token_id = model.generation_config.pad_token_id = None
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")

    run(str(tmp_path / "base"), tmp_path / "full", "rm", use_peft=False)
    run(str(tmp_path / "base"), tmp_path / "lora", "rm")
    saved = AutoTokenizer.from_pretrained(tmp_path / "full")
    settings = json.loads((tmp_path / "full" / "config.json").read_text())
    card = (tmp_path / "lora" / "README.md").read_text()

    assert settings["pad_token_id"] == saved.pad_token_id is not None
    assert f"num_labels=1, pad_token_id={saved.pad_token_id})" in card


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("method", ["rm", "prm"])
def test_the_merged_model_has_the_trained_head(base, tmp_path, method, checkpointing):
    _, _, peek = run(
        base, tmp_path / "out", method, merge_lora=True, gradient_checkpointing=checkpointing
    )
    merged = reload(base, tmp_path / "out" / "merged", method, False)
    with torch.no_grad():
        score = merged(input_ids=torch.tensor([peek.rows[0].input_ids])).logits

    assert torch.allclose(score, peek.score, atol=1e-5)
    names = set(load_file(tmp_path / "out" / "merged" / "model.safetensors"))
    assert "score.weight" in names
    assert not any("modules_to_save" in name or "lora" in name for name in names)


@pytest.mark.parametrize("method", ["rm", "prm"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_fresh_head_keeps_steps_that_its_base_would_round_away(base, tmp_path, method, precision):
    _, _, peek = run(base, tmp_path / "out", method, precision=precision, learning_rate=1e-6)
    name = next(n for n in peek.before if n.endswith("score.modules_to_save.default.weight"))
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    head = next(tensor for key, tensor in saved.items() if key.endswith("score.weight"))

    assert peek.before[name].dtype == peek.after[name].dtype == head.dtype == torch.float32
    assert (peek.before[name] != peek.after[name]).float().mean() > 0.9
    assert torch.equal(head, peek.after[name])


def test_the_losses_are_those_of_plain_trl(base, tmp_path):
    steps, _, peek = run(base, tmp_path / "out", "rm", use_peft=False)
    torch.manual_seed(0)
    model = AUTO["rm"].from_pretrained(base, num_labels=1)
    model.score.weight.data = peek.before["score.weight"].clone()
    plain = RewardTrainer(
        model=model,
        args=RewardConfig(
            output_dir=str(tmp_path / "trl"),
            max_steps=3,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            logging_steps=1,
            bf16=False,
            use_cpu=True,
            activation_checkpointing=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=42,
            data_seed=42,
        ),
        train_dataset=Dataset.from_list([row.columns() for row in peek.rows]),
        processing_class=AutoTokenizer.from_pretrained(base),
    )
    plain.train()
    theirs = [entry["loss"] for entry in plain.state.log_history if "loss" in entry]

    assert [step.loss for step in steps] == pytest.approx(theirs, rel=1e-5)
    assert {"accuracy", "margin", "mean_reward"} <= set(steps[0].metrics)


def test_a_continued_reward_adapter_keeps_its_head(base, tmp_path):
    _, _, first = run(base, tmp_path / "a", "rm")
    _, _, second = run(base, tmp_path / "b", "rm", adapter=tmp_path / "a", max_steps=1)

    name = next(n for n in first.after if "modules_to_save" in n)
    assert torch.equal(first.after[name], second.before[name])
    assert not torch.equal(first.after[name], second.after[name])


def test_steps_are_judged_where_they_end(base, tmp_path):
    steps, _, peek = run(base, tmp_path / "out", "prm", use_peft=False)
    tokenizer = AutoTokenizer.from_pretrained(base)
    sample, row = solutions()[0], peek.rows[0]
    ids, positions = encode_steps(tokenizer, sample.prompt, sample.steps)

    assert row.input_ids == ids
    assert [row.judged[p] for p in positions] == [1, 0]
    assert [i for i, label in enumerate(row.judged) if label != -100] == positions
    for position in positions:
        assert tokenizer.decode([ids[position]]).endswith("\n")
    text = "\n".join([sample.prompt, *sample.steps, ""])
    assert tokenizer.decode(ids) == text
    assert {"accuracy", "accuracy/right", "accuracy/wrong"} <= set(steps[0].metrics)
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert settings["id2label"] == {"0": "wrong", "1": "right"}
    assert read_provenance(tmp_path / "out")["labels"]["trained_tokens"] == 8


def test_gradient_accumulation_changes_nothing(base, tmp_path):
    # solutions with one, two and three steps: a mean of means would be another number
    uneven = [
        replace(s, steps=s.steps * n, labels=s.labels * n)
        for n, s in zip((1, 2, 3, 1), solutions(), strict=True)
    ]
    whole, _, _ = run(base, tmp_path / "a", "prm", samples=uneven, use_peft=False)
    parts, _, _ = run(
        base,
        tmp_path / "b",
        "prm",
        samples=uneven,
        use_peft=False,
        batch_size=1,
        gradient_accumulation=4,
    )
    assert [s.loss for s in whole] == pytest.approx([s.loss for s in parts], rel=1e-5)


def test_steps_that_do_not_fit_are_left_out(base, tmp_path):
    (short, *_) = solutions()
    tokenizer = AutoTokenizer.from_pretrained(base)
    _, positions = encode_steps(tokenizer, short.prompt, short.steps)
    _, _, peek = run(
        base, tmp_path / "out", "prm", samples=[short], max_length=positions[0] + 1, batch_size=1
    )

    assert peek.rows[0].truncated
    assert [label for label in peek.rows[0].judged if label != -100] == [1]
    with pytest.raises(DatasetError, match="no sample has a step that ends"):
        run(base, tmp_path / "no", "prm", samples=[short], max_length=8)


def test_a_control_token_in_a_step_is_refused(base, tmp_path):
    bad = StepsSample(line=7, prompt="a", steps=("b", "c<|user|>"), labels=(True, False))
    with pytest.raises(DatasetError, match=r"steps\[1\] holds '<\|user\|>'") as caught:
        run(base, tmp_path / "out", "prm", samples=[bad])
    assert caught.value.line == 7
