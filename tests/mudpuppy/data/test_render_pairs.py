"""Prompts and answers as ids: the same ids as in supervised training, split where answers begin."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from mudpuppy.data.render import Renderer
from mudpuppy.data.render_pairs import (
    prompt_ids_of,
    render_labelled,
    render_pairs,
    render_prompts,
)
from mudpuppy.data.samples import ChatSample, LabelledSample, PreferenceSample, PromptSample
from mudpuppy.errors import DatasetError
from mudpuppy.tiny import resolve_model
from tests.mudpuppy.methods.pairs import asked, pairs, said

WORDS = st.text(alphabet="abc den.\n\u00e9\u4e2d", min_size=1, max_size=30).filter(str.strip)


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("tiny:llama"))
    return Renderer(
        tokenizer=tokenizer,
        eos_ids=frozenset({tokenizer.eos_token_id}),
        use_template=True,
        response_only=True,
        max_length=512,
    )


@pytest.mark.parametrize("use_template", [True, False])
@settings(max_examples=30, deadline=None)
@given(question=WORDS, good=WORDS, bad=WORDS)
def test_both_answers_have_the_ids_of_supervised_training(
    renderer, use_template, question, good, bad
):
    one = replace(renderer, use_template=use_template)
    sample = PreferenceSample(line=1, prompt=asked(question), chosen=said(good), rejected=said(bad))
    (row,) = render_pairs(one, [sample], "f")

    for ids, answer in ((row.chosen_ids, good), (row.rejected_ids, bad)):
        chat = one.render(ChatSample(line=1, messages=(*asked(question), *said(answer))))
        trained = [token for token in chat.labels if token != -100]
        assert ids[-1] == one.tokenizer.eos_token_id
        assert chat.input_ids[: len(row.prompt_ids) + len(ids)] == row.prompt_ids + ids
        # tokens may join across the border only where no marker stands between
        assert ids[-len(trained) :] == trained
    assert row.prompt_ids == prompt_ids_of(one, sample.prompt)[: len(row.prompt_ids)]


def test_the_prompt_is_what_generation_starts_from(renderer):
    for sample, row in zip(pairs(), render_pairs(renderer, pairs(), "f"), strict=True):
        assert row.prompt_ids == prompt_ids_of(renderer, sample.prompt)
        assert row.labels[: len(row.prompt_ids)] == [-100] * len(row.prompt_ids)
        assert row.input_ids == row.prompt_ids + row.chosen_ids


def test_whole_conversations_share_their_beginning(renderer):
    whole = [
        replace(s, prompt=(), chosen=(*s.prompt, *s.chosen), rejected=(*s.prompt, *s.rejected))
        for s in pairs()
    ]
    assert render_pairs(renderer, whole, "f") == render_pairs(renderer, pairs(), "f")


def test_only_the_last_turn_is_the_answer(renderer):
    history = (*asked("Does it bark?"), *said("No."), *asked("Why?"))
    sample = PreferenceSample(
        line=1, prompt=history, chosen=said("It has gills."), rejected=said("So.")
    )
    (row,) = render_pairs(renderer, [sample], "f")

    assert renderer.tokenizer.decode(row.chosen_ids).startswith("It has gills.")
    assert "No." in renderer.tokenizer.decode(row.prompt_ids)


@settings(max_examples=30, deadline=None)
@given(question=WORDS, good=WORDS, bad=WORDS)
def test_plain_texts_are_joined_and_ended(renderer, question, good, bad):
    sample = PreferenceSample(line=1, prompt=question, chosen=good, rejected=bad)
    (row,) = render_pairs(renderer, [sample], "f")
    decode = renderer.tokenizer.decode

    assert decode(row.input_ids[:-1]) == question + good
    assert decode(row.prompt_ids + row.rejected_ids[:-1]) == question + bad
    assert row.chosen_ids[-1] == row.rejected_ids[-1] == renderer.tokenizer.eos_token_id
    assert renderer.tokenizer.eos_token_id not in row.input_ids[:-1]


def with_bos(renderer):
    """Return a renderer whose tokenizer puts a BOS in front, as Llama's does."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = AutoTokenizer.from_pretrained(resolve_model("tiny:llama"))
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bos)]
    )
    assert tokenizer("a")["input_ids"][0] == bos
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    return replace(renderer, tokenizer=tokenizer), bos


@pytest.mark.parametrize("use_template", [True, False])
@pytest.mark.parametrize("as_text", [True, False])
def test_there_is_one_bos(renderer, use_template, as_text):
    one, bos = with_bos(renderer)
    one = replace(one, use_template=use_template)
    sample = (
        PreferenceSample(line=1, prompt="a b", chosen=" c", rejected=" d")
        if as_text
        else pairs()[0]
    )
    (row,) = render_pairs(one, [sample], "f")
    (prompt,) = render_prompts(one, [PromptSample(line=1, prompt=sample.prompt)], "f")

    assert row.input_ids.count(bos) == 1 == prompt.input_ids.count(bos)
    assert row.input_ids[0] == bos == prompt.input_ids[0]
    assert bos not in row.rejected_ids
    (cut,) = render_pairs(replace(one, max_length=len(row.input_ids) - 1), [sample], "f")[:1] or [
        row
    ]
    assert cut.prompt_ids[0] == bos


def test_a_long_prompt_loses_its_beginning_and_an_answer_nothing(renderer):
    (row,) = render_pairs(renderer, pairs()[:1], "f")
    longest = max(len(row.chosen_ids), len(row.rejected_ids))
    (cut,) = render_pairs(replace(renderer, max_length=longest + 3), pairs()[:1], "f")

    assert cut.truncated
    assert cut.prompt_ids == row.prompt_ids[-3:]
    assert (cut.chosen_ids, cut.rejected_ids) == (row.chosen_ids, row.rejected_ids)
    with pytest.raises(DatasetError, match="no sample has answers that fit"):
        render_pairs(replace(renderer, max_length=longest), pairs()[:1], "f")


def test_a_pair_is_a_good_and_a_bad_answer(renderer):
    rows = render_labelled(renderer, pairs()[:1], "f")
    (pair,) = render_pairs(renderer, pairs()[:1], "f")

    assert [(r.completion_ids, r.label) for r in rows] == [
        (pair.chosen_ids, True),
        (pair.rejected_ids, False),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": asked("a")}, "an answer must be one message of the role assistant"),
        ({"chosen": "text"}, "must all be texts, or all be messages"),
        ({"chosen": said("a<|assistant|>b")}, r"chosen\[0\].content holds '<\|assistant\|>'"),
        ({"prompt": "a", "chosen": "", "rejected": "b"}, "an answer is empty"),
    ],
)
def test_what_is_no_answer_is_refused_with_its_line(renderer, change, message):
    with pytest.raises(DatasetError, match=message) as caught:
        render_pairs(renderer, [pairs()[0], replace(pairs()[1], **change)], "f.jsonl")

    assert (caught.value.file, caught.value.line) == ("f.jsonl", 2)


def test_a_labelled_text_keeps_its_label(renderer):
    sample = LabelledSample(line=1, prompt="Is it wet?", completion=" Yes.", label=False)
    (row,) = render_labelled(renderer, [sample], "f")

    assert row.label is False
    assert renderer.tokenizer.decode(row.completion_ids[:-1]) == " Yes."
