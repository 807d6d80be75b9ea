"""Each format: the sample a row becomes, and what an unusable row is told."""

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image
from trl import extract_prompt

from mudpuppy.data.read import read_dataset
from mudpuppy.data.samples import ChatSample, ImageSample, PreferenceSample
from mudpuppy.errors import DatasetError


@pytest.fixture
def read(tmp_path: Path):
    """Return a function that reads rows for a method."""

    def go(*rows, method=None):
        path = tmp_path / "d.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_dataset(path, method)

    return go


def user(text) -> dict:
    return {"role": "user", "content": text}


def says(text) -> dict:
    return {"role": "assistant", "content": text}


def png(**settings) -> bytes:
    out = io.BytesIO()
    Image.effect_noise((64, 64), 80).convert("RGB").save(out, **({"format": "PNG"} | settings))
    return out.getvalue()


def test_an_input_stands_below_its_instruction_and_a_system_text_first(read):
    rows = [
        {"instruction": "Add.", "input": "2, 3", "output": "5", "system": "Be brief."},
        {"instruction": "Say hi.", "input": "", "output": "Hi", "text": "below: Say hi. Hi"},
    ]
    first, second = read(*rows, method="lora").samples

    assert ({"role": "system", "content": "Be brief."}, user("Add.\n\n2, 3"), says("5")) == (
        first.messages
    )
    assert (user("Say hi."), says("Hi")) == second.messages


def test_a_dataset_says_what_is_kept_and_what_is_unlearnt(read):
    rows = [
        {"instruction": "a", "output": "b", "metadata": {"dataset_type": "retain"}},
        {"instruction": "c", "output": "d", "metadata": {"dataset_type": "unlearn"}},
        {"instruction": "e", "output": "f", "metadata": {"source": "x"}},
    ]

    assert ["retain", "unlearn", ""] == [sample.group for sample in read(*rows).samples]


def test_a_conversational_completion_is_all_that_is_learnt(read):
    prompt = [user("1?"), says("one"), user("2?")]

    (sample,) = read({"prompt": prompt, "completion": [says("two")]}, method="lora").samples

    assert ChatSample(messages=(*prompt, says("two")), learn_from=3, line=1) == sample


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ([user("a"), says("b")], [user("a"), says("c")]),
        (
            [user("a"), says("b"), user("c"), says("d")],
            [user("a"), says("b"), user("c"), says("e")],
        ),
        ("The sky is blue.", "The sky is green."),
    ],
)
def test_a_shared_beginning_is_the_prompt_as_trl_has_it(read, chosen, rejected):
    theirs = extract_prompt({"chosen": chosen, "rejected": rejected})

    (sample,) = read({"chosen": chosen, "rejected": rejected}, method="dpo").samples

    for name in ("prompt", "chosen", "rejected"):
        value = getattr(sample, name)
        assert theirs[name] == (list(value) if isinstance(value, tuple) else value)


def test_no_word_is_cut_in_two_where_answers_begin_alike(read):
    (sample,) = read({"chosen": "Is it blue?", "rejected": "Is it black?"}).samples

    assert ("Is it", " blue?", " black?") == (sample.prompt, sample.chosen, sample.rejected)


@pytest.mark.parametrize("prompt", ["hi", [user("hi")], None])
def test_a_prompt_that_the_answers_repeat_is_taken_once(read, prompt):
    row = {"prompt": prompt, "chosen": [user("hi"), says("b")], "rejected": [user("hi"), says("c")]}

    (sample,) = read(row, method="dpo").samples

    assert (
        PreferenceSample(prompt=(user("hi"),), chosen=(says("b"),), rejected=(says("c"),), line=1)
        == sample
    )


def test_a_column_that_is_null_is_no_field_of_a_prompt(read):
    rows = [{"prompt": "a", "answer": 1, "hint": None}, {"prompt": "b", "hint": [2]}]

    assert [{"answer": 1}, {"hint": [2]}] == [s.fields for s in read(*rows, method="grpo").samples]


PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
STEPS = {"prompt": "a", "completions": ["b", "c"], "labels": [True, False]}
KTO = {"prompt": "a", "completion": "b", "label": True}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (PAIR | {"rejected": "b"}, "'chosen' and 'rejected' are the same"),
        (PAIR | {"chosen": ""}, "chosen is empty"),
        (PAIR | {"rejected": 5}, "'chosen' is a text and 'rejected' is a number"),
        ({"chosen": "b"}, "has 'chosen' and no 'rejected': found 'chosen'"),
        ({"chosen": "b", "rejectd": "c"}, "did you mean 'rejected'?"),
        ({"chosen": "a b", "rejected": "a b c"}, "'chosen' holds nothing but what both"),
        ({"chosen": [says("a")], "rejected": [says("b")]}, "share no message that could be"),
        (
            {"chosen": [user("a")], "rejected": [user("a"), says("b")]},
            "does not end with an assist",
        ),
        (PAIR | {"image": "x.png"}, "has images, which are learnt from conversations only"),
        (STEPS | {"labels": [True]}, "has 2 completions and 1 labels"),
        (STEPS | {"labels": [True, 2]}, r"labels\[1\] is 2, expected true or false"),
        (STEPS | {"labels": [True, -1]}, r"labels\[1\] is -1, expected true or false"),
        (STEPS | {"labels": [True, None]}, r"labels\[1\] is null"),
        (STEPS | {"completions": []}, "'completions' is an empty list"),
        (STEPS | {"completions": ["x", " "]}, r"completions\[1\] is blank"),
        ({"prompt": "a", "completions": ["b"]}, "has 'completions' and no 'labels'"),
        (KTO | {"label": 2}, "label is 2, expected true or false"),
        (KTO | {"label": "true"}, "label is 'true', expected"),
        (KTO | {"label": 1.0}, "label is 1.0, expected"),
        (KTO | {"completion": [user("x")]}, "does not end with an assistant message"),
        ({"instruction": "a", "outptu": "b"}, "did you mean 'output'?"),
        ({"instruction": "a", "output": " "}, "output is blank"),
        ({"instruction": "a", "output": "b", "metadata": {"dataset_type": "unlern"}}, "'unlearn'?"),
        ({"prompt": [user("x")], "completion": "\ud800"}, "surrogate"),
        ({"prompt": "a", "answer": {"b": ["\udfff"]}}, "answer holds half of a surrogate pair"),
        ({"text": 5}, "text is a number instead of a text"),
        ({"conversations": [{"from": "humn", "value": "x"}]}, "did you mean 'human'"),
        ({"conversations": [{"from": "human", "text": "x"}]}, "has no 'value'"),
        ({"messages": [user([{"type": "video"}]), says("x")]}, "type is 'video', expected 'text'"),
    ],
)
def test_an_unusable_row_is_named_with_its_fault(read, row, expected):
    with pytest.raises(DatasetError, match=expected) as caught:
        read(row)
    assert 1 == caught.value.line


def test_a_wrong_kind_is_told_with_what_fits(read):
    with pytest.raises(DatasetError, match="holds pairs of a better") as caught:
        read(PAIR, method="lora")
    assert "--method dpo, ipo, orpo, rm, kto" in caught.value.hint
    with pytest.raises(DatasetError, match="did you mean 'completion'"):
        read({"prompt": "a", "complation": "b"}, method="lora")


def test_both_formats_of_a_mixed_dataset_are_named_with_their_lines(read):
    with pytest.raises(DatasetError, match=r":3: has messages, and line 1 has text") as caught:
        read({"text": "a"}, {"text": "b"}, {"messages": [says("x")]}, {"messages": [says("x")]})
    assert "d.jsonl:4:" in str(caught.value)


@pytest.mark.parametrize(
    "row",
    [
        {
            "images": ["a.png"],
            "messages": [user([{"type": "image"}, {"type": "text", "text": "?"}]), says("x")],
        },
        {
            "messages": [
                user([{"type": "image", "image": "a.png"}, {"type": "text", "text": "?"}]),
                says("x"),
            ]
        },
        {
            "messages": [
                user(
                    [
                        {"type": "image_url", "image_url": {"url": "a.png"}},
                        {"type": "text", "text": "?"},
                    ]
                ),
                says("x"),
            ]
        },
        {
            "image": "a.png",
            "conversations": [
                {"from": "human", "value": "<image>\n?"},
                {"from": "gpt", "value": "x"},
            ],
        },
        {"image": "a.png", "instruction": "?", "output": "x"},
        {"images": ["a.png"], "prompt": "?", "completion": "x"},
    ],
)
def test_images_are_found_in_every_spelling(read, tmp_path: Path, row):
    (tmp_path / "a.png").write_bytes(png())

    (sample,) = read(row, method="multimodal").samples

    parts = [{"type": "image"}, {"type": "text", "text": "?"}]
    answer = says([{"type": "text", "text": "x"}])
    assert (user(parts), answer) == sample.messages
    assert (str(tmp_path / "a.png"),) == sample.images


def test_a_conversation_without_images_stands_beside_one_with_some(read, tmp_path: Path):
    (tmp_path / "a.png").write_bytes(png())
    plain = {"messages": [user("?"), says("x")]}

    made = read(plain, plain | {"image": "a.png"}, method="multimodal")

    assert "multimodal" == made.kind
    assert all(isinstance(sample, ImageSample) for sample in made.samples)
    assert () == made.samples[0].images


def test_bytes_inside_the_dataset_are_an_image(read):
    url = "data:image/png;base64," + base64.b64encode(png()).decode()

    (sample,) = read({"image": url, "messages": [user("?"), says("x")]}).samples

    assert (url,) == sample.images


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("gone.png", None, r"images\[0\]: there is no image"),
        ("a.png", b"no image at all", "cannot be opened: UnidentifiedImageError"),
        ("a.png", png()[:-2000], "cannot be opened"),
        ("a.jpg", png(format="JPEG")[:-1000], "cannot be opened: OSError: image file is truncated"),
        ("https://example.org/a.png", None, "nothing is fetched"),
        ("data:image/png;base64,AAA*", None, "is no image"),
    ],
)
def test_an_image_that_cannot_be_used_is_named_with_its_line(
    read, tmp_path: Path, name, content, expected
):
    if content is not None:
        (tmp_path / name).write_bytes(content)

    with pytest.raises(DatasetError, match=expected) as caught:
        read({"image": name, "messages": [user("?"), says("x")]})
    assert 1 == caught.value.line


def test_as_many_images_as_places(read, tmp_path: Path):
    (tmp_path / "a.png").write_bytes(png())
    row = {"images": ["a.png"], "messages": [user("<image> or <image>?"), says("x")]}

    with pytest.raises(DatasetError, match="has 1 image in its column, and 2 places for them"):
        read(row)
