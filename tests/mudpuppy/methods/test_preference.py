"""DPO, IPO, KTO and ORPO through the engine: known first losses, parity with TRL, clean models."""

import gc
import json
import math

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from mudpuppy.data.samples import PreferenceSample
from mudpuppy.errors import ConfigError
from mudpuppy.methods import preference
from mudpuppy.provenance import read_provenance
from mudpuppy.tiny import resolve_model
from tests.mudpuppy.methods.pairs import TRIPLES, pairs, run

METHODS = ("dpo", "ipo", "kto", "orpo")
FIRST = {"dpo": math.log(2), "ipo": 1 / (4 * 0.1**2), "kto": 0.5}
TEXTS = [
    PreferenceSample(line=i, prompt=f"{q}\n", chosen=good, rejected=bad)
    for i, (q, good, bad) in enumerate(TRIPLES, start=1)
]


@pytest.fixture(scope="module")
def base() -> str:
    return resolve_model("tiny:llama")


def reload(base, out, is_adapter, dtype=torch.float32):
    if not is_adapter:
        return AutoModelForCausalLM.from_pretrained(out, dtype=dtype)
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), out)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("use_peft", [True, False])
def test_the_right_parameters_move_and_the_artefact_is_the_model(base, tmp_path, method, use_peft):
    steps, record, peek = run(base, tmp_path / "out", method, use_peft=use_peft, max_steps=4)
    moved = {n for n in peek.before if not torch.equal(peek.before[n], peek.after[n])}
    again = reload(base, tmp_path / "out", use_peft)
    with torch.no_grad():
        score = again.eval()(input_ids=torch.tensor([peek.rows[0].input_ids])).logits

    assert moved == peek.trainable
    assert set(peek.before) == set(peek.after)
    assert peek.adapters == (["default"] if use_peft else [])
    assert peek.patched == []
    assert torch.allclose(score, peek.score, atol=1e-6)
    assert steps[0].loss == pytest.approx(FIRST.get(method, steps[0].loss), rel=1e-6)
    assert steps[-1].loss < steps[0].loss
    assert steps[-1].metrics["rewards/margins"] > steps[0].metrics.get("rewards/margins", 0.0)
    assert record.labels is not None
    assert record.labels.samples_ending_in_eos == record.labels.samples == len(peek.rows)
    assert not (tmp_path / "out" / "ref").exists()
    gc.collect()
    assert peek.model() is None  # nobody holds the model, and so nobody holds a reference


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("use_peft", [True, False])
def test_half_precision_trains(base, tmp_path, method, precision, use_peft):
    # fp16 halves its scale until the gradients of IPO, which are large, fit
    steps, _, peek = run(
        base, tmp_path / "out", method, precision=precision, use_peft=use_peft, max_steps=6
    )
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    again = reload(base, tmp_path / "out", use_peft, dtype)
    with torch.no_grad():
        score = again.eval()(input_ids=torch.tensor([peek.rows[0].input_ids])).logits

    assert steps[0].loss == pytest.approx(FIRST.get(method, steps[0].loss), rel=1e-3)
    assert steps[-1].loss < steps[0].loss
    assert torch.allclose(score.float(), peek.score, atol=0.05)


@pytest.mark.parametrize(("method", "loss_type"), [("dpo", "sigmoid"), ("ipo", "ipo")])
def test_the_losses_are_those_of_plain_trl(base, tmp_path, method, loss_type):
    steps, _, _ = run(base, tmp_path / "out", method, samples=TEXTS, use_peft=False, beta=0.3)
    plain = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(base),
        args=DPOConfig(
            output_dir=str(tmp_path / "trl"),
            loss_type=[loss_type],
            beta=0.3,
            max_steps=3,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            logging_steps=1,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=42,
            data_seed=42,
        ),
        train_dataset=Dataset.from_list(
            [{"prompt": s.prompt, "chosen": s.chosen, "rejected": s.rejected} for s in TEXTS]
        ),
        processing_class=AutoTokenizer.from_pretrained(base),
    )
    plain.train()
    theirs = [entry["loss"] for entry in plain.state.log_history if "loss" in entry]

    assert [step.loss for step in steps] == pytest.approx(theirs, rel=1e-5)


def test_orpo_is_the_formula_of_the_paper(base, tmp_path):
    steps, _, peek = run(base, tmp_path / "out", "orpo", use_peft=False, beta=0.25, max_steps=1)
    model = AutoModelForCausalLM.from_pretrained(base).double()

    def logps(row, answer):
        ids = torch.tensor([row.prompt_ids + answer])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        return logits.gather(-1, ids[0, 1:, None])[-len(answer) :, 0]

    likely, odds = [], []
    for row in peek.rows:
        good, bad = logps(row, row.chosen_ids), logps(row, row.rejected_ids)
        likely.append(good.mean())
        p, q = good.mean().exp(), bad.mean().exp()
        odds.append(torch.log(torch.sigmoid(torch.log(p / (1 - p)) - torch.log(q / (1 - q)))))
    expected = -torch.stack(likely).mean() - 0.25 * torch.stack(odds).mean()

    assert steps[0].loss == pytest.approx(float(expected), rel=1e-5)


def test_the_batch_that_reaches_the_model_ends_its_answers(base, tmp_path, monkeypatch):
    seen = []
    original = preference.ReadyRowsDPOTrainer._compute_loss

    def look(self, model, inputs, return_outputs):
        seen.append({k: v.clone() for k, v in inputs.items()})
        return original(self, model, inputs, return_outputs)

    monkeypatch.setattr(preference.ReadyRowsDPOTrainer, "_compute_loss", look)
    _, _, peek = run(base, tmp_path / "out", "dpo", max_steps=1)
    eos = AutoTokenizer.from_pretrained(base).eos_token_id

    (batch,) = seen
    ends = batch["completion_mask"].cumsum(1).argmax(1)
    assert batch["input_ids"].gather(1, ends[:, None]).eq(eos).all()
    assert len(batch["input_ids"]) == 2 * len(peek.rows)
    rows = {tuple(row.input_ids) for row in peek.rows}
    sent = {
        tuple(ids[mask.bool()].tolist())
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    }
    assert rows < sent


@pytest.mark.parametrize("method", ["dpo", "ipo", "orpo", "rm"])
def test_gradient_accumulation_changes_nothing(base, tmp_path, method):
    whole, _, _ = run(base, tmp_path / "a", method, use_peft=False)
    parts, _, _ = run(
        base, tmp_path / "b", method, use_peft=False, batch_size=1, gradient_accumulation=4
    )
    assert [s.loss for s in whole] == pytest.approx([s.loss for s in parts], rel=1e-5)


def test_a_continued_adapter_is_compared_with_itself(base, tmp_path):
    run(base, tmp_path / "a", "dpo", max_steps=2)
    steps, record, peek = run(base, tmp_path / "b", "dpo", adapter=tmp_path / "a")

    assert steps[0].loss == pytest.approx(math.log(2), rel=1e-6)
    assert record.choices["reference"].value == "a frozen copy of the adapter"
    assert peek.adapters == ["default"]
    assert set(peek.before) == set(peek.after)


@pytest.mark.parametrize("method", METHODS)
def test_the_merged_model_is_the_adapter(base, tmp_path, method):
    _, _, peek = run(base, tmp_path / "out", method, merge_lora=True)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged")
    with torch.no_grad():
        score = merged.eval()(input_ids=torch.tensor([peek.rows[0].input_ids])).logits

    assert torch.allclose(score, peek.score, atol=1e-5)
    assert not hasattr(merged, "peft_config")


@pytest.mark.parametrize("method", METHODS)
def test_the_best_step_is_kept(base, tmp_path, method):
    steps, _, peek = run(
        base,
        tmp_path / "out",
        method,
        samples=pairs() * 2,
        early_stopping=1,
        eval_steps=1,
        eval_fraction=0.5,
    )
    assert any(step.eval_loss is not None for step in steps)
    assert peek.patched == []


def test_steps_and_manifest_tell_what_was_taught(base, tmp_path):
    run(base, tmp_path / "out", "kto")
    lines = (tmp_path / "out" / "steps.jsonl").read_text().splitlines()
    manifest = read_provenance(tmp_path / "out")

    assert {"rewards/chosen", "logps/rejected"} <= set(json.loads(lines[0])["metrics"])
    assert json.loads(lines[0])["kl"] == 0.0
    assert manifest["labels"]["eos_tokens"] == 8
    assert manifest["run"]["choices"]["reference"]["value"] == "the model with the adapter off"


def test_kto_refuses_single_samples(base, tmp_path):
    with pytest.raises(ConfigError, match="needs 2 samples or more, got 1"):
        run(base, tmp_path / "out", "kto", batch_size=1)
    assert not (tmp_path / "out").exists()


def test_kto_mixes_a_sorted_set(base, tmp_path):
    steps, _, _ = run(base, tmp_path / "out", "kto", batch_size=4, max_steps=2)

    # sorted, the first batch would hold good answers only
    assert "logps/rejected" in steps[0].metrics
    assert "logps/chosen" in steps[1].metrics


def test_a_kto_row_that_is_left_over_is_not_its_own_stand_in():
    from types import SimpleNamespace

    from datasets import Dataset

    from mudpuppy.methods.preference import ReadyRowsKTOTrainer

    rows = Dataset.from_list([{"completion_ids": [index]} for index in range(9)])
    arguments = SimpleNamespace(seed=1, per_device_train_batch_size=4)
    prepare = ReadyRowsKTOTrainer._prepare_dataset
    made = prepare(None, rows, None, arguments, "train")

    assert all(row["KL_completion_ids"] != row["completion_ids"] for row in made)
