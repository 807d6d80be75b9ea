"""GRPO through the engine: rewards that are recorded, a policy that moves, a clean model."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from mudpuppy.config_check import load_config
from mudpuppy.errors import ConfigError, DatasetError, EngineError, UnsupportedCombination
from mudpuppy.methods.grpo import ReadyPromptsGRPOTrainer
from mudpuppy.records import StepRecord
from mudpuppy.telling import report_step
from mudpuppy.tiny import resolve_model
from tests.mudpuppy.methods.pairs import prompts, run

EVEN = ("tests.mudpuppy.methods.reward_functions:even",)
BASE = {"reward_funcs": EVEN, "max_completion_length": 8, "temperature": 1.5}


@pytest.fixture(scope="module")
def base() -> str:
    return resolve_model("tiny:llama")


@pytest.mark.parametrize(
    ("precision", "use_peft", "beta"),
    [("fp32", True, 0.1), ("fp32", False, None), ("bf16", True, None), ("fp16", False, 0.1)],
)
def test_the_policy_moves_and_the_artefact_is_it(base, tmp_path, precision, use_peft, beta):
    _, record, peek = run(
        base, tmp_path / "out", "grpo", precision=precision, use_peft=use_peft, beta=beta, **BASE
    )
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if use_peft:
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
        again = PeftModel.from_pretrained(plain, tmp_path / "out")
    else:
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=dtype)
    with torch.no_grad():
        score = again.eval()(input_ids=torch.tensor([peek.rows[0].input_ids])).logits.float()
    moved = {n for n in peek.before if not torch.equal(peek.before[n], peek.after[n])}
    lines = [json.loads(x) for x in (tmp_path / "out" / "steps.jsonl").read_text().splitlines()]

    assert moved == peek.trainable
    assert peek.adapters == (["default"] if use_peft else [])
    assert peek.patched == []
    assert torch.allclose(score, peek.score, atol=1e-6 if precision == "fp32" else 0.05)
    assert len(lines) == 3
    assert all(0 < line["reward"] < 1 for line in lines)
    assert all(line["metrics"][f"rewards/{EVEN[0]}/mean"] == line["reward"] for line in lines)
    assert [line["kl"] is None for line in lines] == [beta is None] * 3
    assert record.choices["reference"].value.startswith("none" if beta is None else ("the", "a "))
    assert record.labels is not None
    assert (record.labels.samples, record.labels.trained_tokens) == (4, 0)


def test_the_reward_rises(base, tmp_path):
    steps, _, _ = run(
        base,
        tmp_path / "out",
        "grpo",
        use_peft=False,
        max_steps=8,
        batch_size=32,
        num_generations=8,
        learning_rate=3e-2,
        lr_scheduler="constant",
        **{**BASE, "temperature": 1.0},
    )
    rewards = [step.reward for step in steps]
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 0.3


def test_prompts_are_tokenised_by_our_rules(base, tmp_path, monkeypatch):
    seen = []
    original = ReadyPromptsGRPOTrainer._generate_single_turn

    def look(self, prompt_ids, *rest, **more):
        seen.extend(prompt_ids)
        return original(self, prompt_ids, *rest, **more)

    monkeypatch.setattr(ReadyPromptsGRPOTrainer, "_generate_single_turn", look)
    _, _, peek = run(
        base, tmp_path / "out", "grpo", max_steps=1, batch_size=16, max_length=8, **BASE
    )
    assert {tuple(ids) for ids in seen} == {tuple(row.input_ids) for row in peek.rows}
    assert all(len(ids) <= 8 for ids in seen)
    assert any(row.truncated for row in peek.rows)


def test_a_broken_reward_ends_the_run_in_one_line(base, tmp_path):
    broken = {**BASE, "reward_funcs": (EVEN[0].replace("even", "raises"),)}
    with pytest.raises(EngineError, match=r"ZeroDivisionError: no mercy .* for the answer"):
        run(base, tmp_path / "out", "grpo", batch_size=16, **broken)
    assert not (tmp_path / "out" / "mudpuppy.json").exists()


def test_what_cannot_be_rewarded_is_refused_before_anything_is_written(base, tmp_path):
    wants = {**BASE, "reward_funcs": (EVEN[0].replace("even", "wants_more"), "exact-match")}
    with pytest.raises(ConfigError, match="asks for 'difficulty'"):
        run(base, tmp_path / "out", "grpo", **wants)
    with pytest.raises(DatasetError, match="2 prompts are too few: a step takes 4"):
        run(base, tmp_path / "out", "grpo", samples=prompts()[:2], batch_size=16, **BASE)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_generations": 3}, "'num_generations': the 3 answers .* 4 x 1 answers"),
        ({"reward_funcs": ()}, "'reward_funcs': grpo needs something"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(settings, message):
    given = {"model": "m", "dataset": "d", "output": "o", "method": "grpo", **BASE, **settings}
    with pytest.raises(ConfigError, match=message):
        load_config(given)


@pytest.mark.parametrize(
    ("method", "feature", "code"),
    [
        *((m, {"response_only": False}, "MP-R40") for m in ("dpo", "kto", "grpo", "rm", "prm")),
        ("grpo", {"early_stopping": 2}, "MP-R41"),
    ],
)
def test_features_without_a_meaning_are_refused(method, feature, code):
    given = {"model": "m", "dataset": "d", "output": "o", "method": method, **feature}
    with pytest.raises(UnsupportedCombination) as caught:
        load_config({**given, **(BASE if method == "grpo" else {})})
    assert caught.value.codes == (code,)


def test_a_person_sees_the_reward(capsys):
    report_step(StepRecord(step=1, epoch=0.5, loss=0.0, reward=0.25), 2)
    assert "step 1/2  loss 0.0000  reward 0.2500" in capsys.readouterr().out
