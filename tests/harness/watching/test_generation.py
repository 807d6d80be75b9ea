"""One batch of answers: as `generate` gives them, and what is wrong with them is counted."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.evidence.behaviour.reference_texts import PROMPTS
from harness.watching.generation import NEW_TOKENS, NUM_PROMPTS, _ask, generate
from mudpuppy.tiny import resolve_model

BASE = resolve_model("tiny:llama")


@pytest.fixture
def parts():
    return AutoModelForCausalLM.from_pretrained(BASE).eval(), AutoTokenizer.from_pretrained(BASE)


def test_it_says_what_transformers_says_to_one_prompt_after_the_other(parts):
    model, tokenizer = parts
    found = _ask(model, tokenizer, PROMPTS[:3], 8)

    for prompt, row, ended in zip(PROMPTS, found.rows, found.ended, strict=False):
        messages = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        said = model.generate(**ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
        new = said[0, ids["input_ids"].shape[1] :].tolist()
        assert new[: len(row)] == row
        assert ended or len(row) == 8


def test_a_model_and_itself_are_alike(parts):
    model, tokenizer = parts
    seen = generate(model, nullcontext(model), tokenizer, Path(BASE))

    assert (NUM_PROMPTS, 0) == (seen.prompts, seen.nonfinite)
    assert (seen.empty, seen.ended) == (seen.control_empty, seen.control_ended)
    assert seen.right is None
    assert NEW_TOKENS <= 16


def test_logits_that_are_no_numbers_are_counted_by_prompt(parts):
    model, tokenizer = parts
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan

    assert NUM_PROMPTS == generate(model, nullcontext(model), tokenizer, Path(BASE)).nonfinite


def test_a_model_that_ends_at_once_says_nothing(parts):
    model, tokenizer = parts
    eos = tokenizer.eos_token_id
    model.register_forward_hook(lambda module, args, output: _end(output, eos))

    assert NUM_PROMPTS == generate(model, nullcontext(model), tokenizer, Path(BASE)).empty


def _end(output, eos):
    with torch.no_grad():
        output.logits[..., eos] = 1e4
    return output
