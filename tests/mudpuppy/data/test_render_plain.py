"""Texts, completions and prompts of several turns: which tokens are trained."""

import pytest
from transformers import AutoTokenizer

from mudpuppy.data.render import IGNORED, Renderer, render_all
from mudpuppy.data.samples import ChatSample, CompletionSample, TextSample
from mudpuppy.errors import DatasetError
from mudpuppy.tiny import resolve_model

PLAIN_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TURNS = (
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "First."},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "Second."},
)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(resolve_model("tiny:llama"))


def renderer(tokenizer, **settings) -> Renderer:
    fixed = {"use_template": True, "response_only": True, "max_length": 512}
    return Renderer(
        tokenizer=tokenizer, eos_ids=frozenset({tokenizer.eos_token_id}), **(fixed | settings)
    )


def taught(tokenizer, row) -> str:
    return tokenizer.decode([label for label in row.labels if label != IGNORED])


def test_every_token_of_a_text_is_trained_and_it_ends_in_eos(tokenizer):
    row = renderer(tokenizer).render(TextSample(text="Once upon a time.", line=1))

    assert f"Once upon a time.{tokenizer.eos_token}" == taught(tokenizer, row)
    assert tokenizer.eos_token_id == row.input_ids[-1]
    assert 1 == row.input_ids.count(tokenizer.eos_token_id)


@pytest.mark.parametrize(
    ("prompt", "completion"), [("The sky is", " blue."), ("ab", "cdef"), ("a", "b")]
)
def test_only_the_completion_is_trained_and_the_prompt_keeps_its_own_tokens(
    tokenizer, prompt, completion
):
    row = renderer(tokenizer).render(CompletionSample(prompt=prompt, completion=completion, line=1))
    alone = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    start = row.labels.index(next(label for label in row.labels if label != IGNORED))

    assert completion + tokenizer.eos_token == taught(tokenizer, row)
    assert alone == row.input_ids[start - len(alone) : start]


def test_without_response_only_the_prompt_is_trained_too(tokenizer):
    row = renderer(tokenizer, response_only=False).render(
        CompletionSample(prompt="The sky is", completion=" blue.", line=1)
    )

    assert row.input_ids == row.labels


@pytest.mark.parametrize("template", [None, PLAIN_TEMPLATE], ids=["with tags", "without tags"])
@pytest.mark.parametrize("use_template", [True, False])
def test_answers_in_the_prompt_are_not_trained(tokenizer, template, use_template):
    kept = tokenizer.chat_template
    tokenizer.chat_template = template or kept
    try:
        made = renderer(tokenizer, use_template=use_template)
        every = made.render(ChatSample(messages=TURNS, line=1))
        last = made.render(ChatSample(messages=TURNS, learn_from=3, line=1))
    finally:
        tokenizer.chat_template = kept

    assert "First." in taught(tokenizer, every)
    assert "First." not in taught(tokenizer, last)
    assert "Second." in taught(tokenizer, last)
    assert every.input_ids == last.input_ids


def test_a_control_token_in_a_text_is_refused_with_its_place(tokenizer):
    samples = [CompletionSample(prompt="x", completion=f"a{tokenizer.eos_token}b", line=7)]

    with pytest.raises(DatasetError, match=r"d.jsonl:7: completion holds .* control token"):
        render_all(renderer(tokenizer), samples, "d.jsonl")
