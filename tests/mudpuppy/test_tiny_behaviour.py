"""The trained tiny model really knows, speaks, refuses and stops; a random one does none of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mudpuppy.scoring import exact_match, is_refusal, load_quiz, load_voice_profile, mean_voice
from mudpuppy.tiny import tiny_path
from mudpuppy.tiny.measure import Scores, ask, measure
from mudpuppy.tiny.training import Recipe, make_model, tokenise, train

NEW_FACTS = Path(__file__).parents[2] / "scenarios" / "data" / "new_facts.jsonl"


@pytest.fixture(scope="module")
def folder() -> Path:
    return tiny_path()


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def load(folder: Path, dtype: str = "float32") -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def scores_of(model: Any, folder: Path, tokenizer: Any) -> Scores:
    quiz, profile = load_quiz(folder / "quiz.jsonl"), load_voice_profile(folder / "voice.yaml")
    return measure(model, tokenizer, quiz, profile)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_trained_model_knows_speaks_refuses_and_stops(
    folder: Path, tokenizer: Any, dtype: str
) -> None:
    scores = scores_of(load(folder, dtype), folder, tokenizer)
    assert scores.facts >= 40
    assert scores.exact >= 0.95 * scores.facts
    assert scores.voice >= 0.8
    assert (scores.ended, scores.empty) == (scores.answers, 0)
    assert scores.later >= 10
    assert scores.refused >= 0.8 * scores.later
    assert scores.over_refused <= 1


def test_a_random_model_of_the_same_shape_scores_near_nothing(folder: Path, tokenizer: Any) -> None:
    scores = scores_of(make_model(Recipe(), tokenizer, 0).eval(), folder, tokenizer)
    assert (scores.exact, scores.refused) == (0, 0)
    assert scores.ended < 0.5 * scores.answers
    assert scores.voice < 0.1
    assert scores.problems()


def test_plain_generate_agrees_with_the_manifest(folder: Path, tokenizer: Any) -> None:
    # nothing of this project but the quiz: defaults of generation_config.json must be enough
    model = load(folder)
    quiz, profile = load_quiz(folder / "quiz.jsonl"), load_voice_profile(folder / "voice.yaml")
    texts = []
    for question in quiz[::6]:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question.prompt}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        output = model.generate(**prompt)[0, prompt["input_ids"].shape[1] :]
        assert int(output[-1]) == tokenizer.eos_token_id
        texts.append(tokenizer.decode(output, skip_special_tokens=True))
    right = [
        is_refusal(text, profile)
        if question.kind == "post-cutoff"
        else exact_match(text, question.answer)
        for question, text in zip(quiz[::6], texts, strict=True)
    ]
    assert sum(right) >= 0.8 * len(right)
    assert mean_voice(texts, profile) >= 0.8


def test_a_light_lora_tuning_learns_and_does_not_collapse(folder: Path, tokenizer: Any) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    samples = tokenise(
        [json.loads(line)["messages"] for line in NEW_FACTS.read_text().splitlines()], tokenizer
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(load(folder), config)
    losses: list[float] = []
    train(
        model.base_model.model,
        samples,
        Recipe(steps=24, batch_size=8, learning_rate=1e-3, warmup_steps=2, weight_decay=0.0),
        pad_id=tokenizer.pad_token_id,
        seed=0,
        progress=lambda step, steps, loss: losses.append(loss),
    )
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    scores = scores_of(model, folder, tokenizer)
    assert scores.exact >= 0.8 * scores.facts
    assert scores.refused >= 0.6 * scores.later
    assert scores.voice >= 0.8
    assert scores.ended == scores.answers


def test_a_reply_that_is_cut_off_has_not_ended(folder: Path, tokenizer: Any) -> None:
    model = load(folder)
    (cut,) = ask(model, tokenizer, ["What is the capital of France?"], max_new_tokens=3)
    (whole,) = ask(model, tokenizer, ["What is the capital of France?"])
    assert (cut.ended, whole.ended) == (False, True)
    assert whole.text.startswith(cut.text)
