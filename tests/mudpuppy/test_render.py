"""Rendering: what is trained is the answers and their ends, under every template we know."""

import json
import signal
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mudpuppy.data.render import IGNORED, RenderedSample, Renderer, count_labels, render_all
from mudpuppy.data.samples import ChatSample
from mudpuppy.data.timelimit import time_limit
from mudpuppy.errors import DatasetError, ModelError

SHARED = Path(__file__).parents[3] / "shared" / "data" / "chat_templates"
TAGGED = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
UNTAGGED = TAGGED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
SPECIALS = ["<pad>", "<s>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
FOUND_IN_TEMPLATES = [
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|begin_of_text|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "[INST]",
    "[/INST]",
    "</s>",
]
END_OF_TURN = {
    "chatml": "<|im_end|>",
    "gemma-it": "<end_of_turn>",
    "llama-3-instruct": "<|eot_id|>",
    "mistral-instruct": "</s>",
    "phi-3": "<|end|>",
    "qwen2.5-instruct": "<|im_end|>",
    "zephyr": "</s>",
    "alpaca": "</s>",
}


@pytest.fixture(scope="module")
def plain_tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[*SPECIALS, *FOUND_IN_TEMPLATES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    raw.train_from_iterator(["Who lives here? A mud puppy. It is fine."] * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="<|end|>"
    )


def make_renderer(tokenizer, template, *, eos="<|end|>", response_only=True, max_length=512):
    tokenizer.chat_template = template
    tokenizer.eos_token = eos
    return Renderer(
        tokenizer=tokenizer,
        eos_ids=frozenset({tokenizer.convert_tokens_to_ids(eos)}),
        use_template=template is not None,
        response_only=response_only,
        max_length=max_length,
    )


def conversation(*turns: str, system: str = "") -> ChatSample:
    roles = ["user", "assistant"]
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    return ChatSample(messages=tuple(messages), line=1)


def trained_spans(tokenizer, sample: RenderedSample) -> list[str]:
    spans: list[list[int]] = [[]]
    for label in sample.labels:
        if label != IGNORED:
            spans[-1].append(label)
        elif spans[-1]:
            spans.append([])
    return [tokenizer.decode(span) for span in spans if span]


@pytest.mark.parametrize("template", [TAGGED, UNTAGGED], ids=["tagged", "untagged"])
def test_exactly_the_answers_and_their_ends_are_trained(plain_tokenizer, template):
    renderer = make_renderer(plain_tokenizer, template)

    sample = renderer.render(conversation("Who?", "A mud puppy.", "Where?", "Here.", system="Hm"))

    assert ["A mud puppy.<|end|>", "Here.<|end|>"] == trained_spans(plain_tokenizer, sample)
    assert len(sample.input_ids) == len(sample.labels)


def test_tags_and_search_give_the_same_labels(plain_tokenizer):
    chat = conversation("Who?", "A mud puppy.", "Where?", "Here.")

    tagged = make_renderer(plain_tokenizer, TAGGED).render(chat)
    searched = make_renderer(plain_tokenizer, UNTAGGED).render(chat)

    assert tagged == searched


def test_an_answer_that_the_question_quotes_is_found_at_its_own_place(plain_tokenizer):
    renderer = make_renderer(plain_tokenizer, UNTAGGED)

    sample = renderer.render(conversation("Say Here. now", "Here."))

    assert ["Here.<|end|>"] == trained_spans(plain_tokenizer, sample)
    first = next(i for i, label in enumerate(sample.labels) if label != IGNORED)
    assert plain_tokenizer.decode(sample.input_ids[:first]).endswith("<|assistant|>")


def test_eos_outside_the_generation_tags_is_trained_all_the_same(plain_tokenizer):
    forgetful = TAGGED.replace(
        "{{ m.content }}<|end|>{% endgeneration %}", "{{ m.content }}{% endgeneration %}<|end|>"
    )
    sample = make_renderer(plain_tokenizer, forgetful).render(conversation("Who?", "Me."))

    assert ["Me.<|end|>"] == trained_spans(plain_tokenizer, sample)


@pytest.mark.parametrize("template", [TAGGED, UNTAGGED], ids=["tagged", "untagged"])
def test_what_the_template_writes_behind_the_end_is_not_trained(plain_tokenizer, template):
    """A template may count its newline to the answer; jinja drops one behind a block tag."""
    chatty = template.replace("<|end|>", "<|end|>{{ '\\n' }}")
    renderer = make_renderer(plain_tokenizer, chatty)

    sample = renderer.render(conversation("Who?", "Me.", "Where?", "Here."))

    assert "<|end|>\n" in plain_tokenizer.decode(sample.input_ids)
    assert ["Me.<|end|>", "Here.<|end|>"] == trained_spans(plain_tokenizer, sample)


def test_eos_is_appended_where_the_template_has_none(plain_tokenizer):
    endless = UNTAGGED.replace("<|end|>", "")
    sample = make_renderer(plain_tokenizer, endless).render(conversation("Who?", "Me."))

    assert sample.labels[-1] == plain_tokenizer.eos_token_id
    assert 1 == sample.input_ids.count(plain_tokenizer.eos_token_id)


def test_eos_is_trained_although_it_pads(plain_tokenizer):
    renderer = make_renderer(plain_tokenizer, TAGGED)
    plain_tokenizer.pad_token = "<|end|>"
    try:
        sample = renderer.render(conversation("Who?", "Me."))
    finally:
        plain_tokenizer.pad_token = "<pad>"

    assert ["Me.<|end|>"] == trained_spans(plain_tokenizer, sample)


def test_without_response_only_every_token_is_trained(plain_tokenizer):
    renderer = make_renderer(plain_tokenizer, TAGGED, response_only=False)

    sample = renderer.render(conversation("Who?", "Me."))

    assert sample.input_ids == sample.labels


def test_without_a_template_the_answer_ends_in_eos(plain_tokenizer):
    sample = make_renderer(plain_tokenizer, None).render(conversation("Who?", "Me."))

    assert "Who?\nMe.<|end|>" == plain_tokenizer.decode(sample.input_ids)
    assert ["Me.<|end|>"] == trained_spans(plain_tokenizer, sample)


def test_a_long_sample_is_cut_and_counted(plain_tokenizer):
    renderer = make_renderer(plain_tokenizer, TAGGED, max_length=12)
    chats = [conversation("Who?", "A mud puppy. " * 9), conversation("?", "Me.")]

    samples = render_all(renderer, chats, "d.jsonl")
    shares = count_labels(samples, renderer.eos_ids)

    assert [12, True] == [len(samples[0].input_ids), samples[0].truncated]
    assert (2, 1, 1) == (shares.samples, shares.truncated, shares.samples_ending_in_eos)


def test_a_dataset_with_nothing_to_train_is_refused(plain_tokenizer):
    renderer = make_renderer(plain_tokenizer, TAGGED, max_length=8)

    with pytest.raises(DatasetError, match="no sample has a trained token within 8 tokens"):
        render_all(renderer, [conversation("A mud puppy " * 9, "Me.")], "d.jsonl")


def test_a_template_that_refuses_names_the_line(plain_tokenizer):
    strict = "{{ raise_exception('roles must alternate') }}"

    with pytest.raises(DatasetError, match=r"d.jsonl:1: .*roles must alternate"):
        render_all(make_renderer(plain_tokenizer, strict), [conversation("a", "b")], "d.jsonl")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the collected chat templates are not beside this")
@pytest.mark.parametrize("name", sorted(END_OF_TURN))
def test_templates_in_the_wild_train_the_answers_and_their_ends(plain_tokenizer, name):
    template = (SHARED / f"{name}.jinja").read_text()
    renderer = make_renderer(plain_tokenizer, template, eos=END_OF_TURN[name])

    sample = renderer.render(conversation("Who?", "A mud puppy.", "Where?", "It is here."))

    texts = [text.strip() for text in trained_spans(plain_tokenizer, sample)]
    assert [f"A mud puppy.{END_OF_TURN[name]}", f"It is here.{END_OF_TURN[name]}"] == [
        text.replace(f" {END_OF_TURN[name]}", END_OF_TURN[name]) for text in texts
    ]
    assert json.dumps(sample.labels)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ raise_exception('\\x1b[2J' ~ 'no' * 1000000) }}", "no"),
        ("{{ messages[0].content.absent.more }}", "absent"),
        ("{% for", "refuses this sample"),
        ("{{ range(10000000) | list }}", "OverflowError"),
    ],
    ids=["division", "recursion", "control", "undefined", "syntax", "range"],
)
def test_whatever_a_template_raises_is_an_error_of_the_line(plain_tokenizer, template, expected):
    renderer = make_renderer(plain_tokenizer, template)

    with pytest.raises(DatasetError, match=expected) as caught:
        render_all(renderer, [conversation("Hi", "Yo")], "d.jsonl")
    assert str(caught.value).startswith("d.jsonl:1: the chat template refuses this sample")
    assert len(str(caught.value)) < 500


def test_a_template_that_never_ends_is_stopped(plain_tokenizer, monkeypatch):
    nested = "{% for _ in range(100000) %}" * 5 + "{% endfor %}" * 5
    renderer = make_renderer(plain_tokenizer, nested)
    monkeypatch.setattr("mudpuppy.data.render.TEMPLATE_TIMEOUT_S", 0.2)

    with pytest.raises(ModelError, match=r"does not come to an end within 0.2 s"):
        render_all(renderer, [conversation("Hi", "Yo")], "d.jsonl")


def test_a_time_limit_leaves_the_alarm_of_others_as_it_was():
    rang = []
    before = signal.getitimer(signal.ITIMER_REAL)
    handler = signal.signal(signal.SIGALRM, lambda *_: rang.append(1))
    signal.setitimer(signal.ITIMER_REAL, 30)
    try:
        with time_limit(5):
            assert signal.getitimer(signal.ITIMER_REAL)[0] <= 5
        assert 25 < signal.getitimer(signal.ITIMER_REAL)[0] <= 30
        with time_limit(60):
            assert signal.getitimer(signal.ITIMER_REAL)[0] <= 30
        assert [] == rang
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *before)


@pytest.mark.parametrize("turns", [("Hi<|end|><|assistant|>", "Yo"), ("Hi", "Yo <|end|> still")])
@pytest.mark.parametrize("template", [TAGGED, UNTAGGED, None])
def test_a_control_token_inside_a_text_is_refused(plain_tokenizer, template, turns):
    renderer = make_renderer(plain_tokenizer, template)

    with pytest.raises(DatasetError, match=r"d.jsonl:1: messages\[.\].content holds '<\|end\|>'"):
        render_all(renderer, [conversation(*turns)], "d.jsonl")
    (fine,) = render_all(renderer, [conversation("Hi <| end |>", "Yo < s>")], "d.jsonl")
    assert fine.labels


def test_an_added_token_that_is_no_control_token_may_stand_in_a_text(plain_tokenizer):
    from tokenizers import AddedToken

    plain_tokenizer.add_tokens([AddedToken("<think>", special=False)])
    renderer = make_renderer(plain_tokenizer, TAGGED)

    assert render_all(renderer, [conversation("Hi", "<think>Yo")], "d.jsonl")
