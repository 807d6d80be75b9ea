"""mud-puppy data: its text, its JSON, and that it agrees with what training reads."""

import io
import json
from pathlib import Path

import pytest

from mudpuppy.cli import main
from mudpuppy.config_check import load_config
from mudpuppy.data.facts import Measured, duplicates, summarise
from mudpuppy.data.render import count_labels
from mudpuppy.data.samples import TextSample
from mudpuppy.data.show import Marks
from mudpuppy.loading import open_for_text
from mudpuppy.methods.family import find_family
from mudpuppy.tiny import resolve_model


def chat(question: str, answer: str) -> dict:
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    rows = [chat("Who\nlives here?", "A mud puppy."), chat("And?", "Fish. " * 20)]
    rows += [chat("Who\nlives here?", "A mud puppy.")] * 2
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]):
    """Return a function that runs the command and returns what it prints."""

    def go(*words: object) -> str:
        code = main(["data", *map(str, words)])
        captured = capsys.readouterr()
        assert 0 == code, captured.err
        return captured.out

    return go


TEXT = """\
{path}
  kind        chat: conversations
  format      messages (JSONL)
  samples     4
  methods     full, lora, qlora, gptq, qat, multimodal
  duplicates  2 samples repeat an earlier one (lines 3, 4)
  advice      for 4 samples a guide to LoRA takes rank 8 to 16, alpha 2 x the rank, 5 to 10 \
epochs, and tries the learning rates 0.0001, 0.0002, 0.0005, 0.001 in this order

line 1 as lora reads it for tiny:llama, through its chat template; {start}trained{stop}
  | <|user|>Who
  | lives here?<|end|><|assistant|>{start}A mud puppy.<|end|>{stop}

tokens a sample: 17 to 87, median 17, mean 34.5, 95% up to 87
  10 - 19  3 ########################################
  20 - 29  0
  30 - 39  0
  40 - 49  0
  50 - 59  0
  60 - 69  0
  70 - 79  0
  80 - 89  1 #############  cut

trained     44 of 83 tokens (53.0%)
EOS         3 of the trained tokens (6.8%); 3 of 4 samples end in it
cut         at 32 tokens: 1 sample is cut (line 2), 55 tokens lost (39.9%)
no end      1 sample is without a trained EOS (line 2): from these the model does not learn to stop
"""


def test_the_text_says_what_a_model_learns(dataset: Path, said):
    text = said(dataset, "--model", "tiny:llama", "--max-length", 32)

    marks = {"start": "⟦", "stop": "⟧"} if "⟦" in text else {"start": "[[", "stop": "]]"}
    assert TEXT.format(path=dataset, **marks) == text


def test_without_a_model_the_sample_is_shown_as_it_was_read(dataset: Path, said):
    text = said(dataset, "--line", 2)

    assert "line 2, as it was read" in text
    assert "'content': 'And?'" in text
    assert "tokens a sample" not in text


def test_the_json_agrees_with_what_training_counts(dataset: Path, said):
    found = json.loads(
        said(dataset, "--model", "tiny:llama", "--max-length", 32, "--format", "json")
    )

    config = load_config(
        {"model": "tiny:llama", "dataset": dataset, "output": "out", "method": "lora"}
        | {"max_length": 32}
    )
    family = find_family("lora")
    loaded = open_for_text(resolve_model("tiny:llama"), config, family.form)
    from mudpuppy.data.read import read_dataset

    rows = family.render(loaded, read_dataset(dataset).samples, config)
    counted = count_labels(rows, loaded.eos_ids)
    rendered = found["rendered"]
    assert counted.tokens == rendered["tokens"]
    assert counted.trained_tokens == rendered["trained_tokens"]
    assert counted.eos_tokens == rendered["eos_tokens"]
    assert counted.truncated == len(rendered["truncated"])
    assert "".join(part["text"] for part in found["example"]["parts"] if part["trained"]) == (
        "A mud puppy.<|end|>"
    )
    assert [3, 4] == found["duplicates"]


def test_a_sample_of_which_nothing_is_left_is_named(dataset: Path, said):
    text = said(dataset, "--model", "tiny:llama", "--max-length", 8)

    assert "nothing of it is trained within 8 tokens" in text
    assert "left out    3 samples are without anything to train (lines 1, 3, 4)" in text


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "Once."}, "Once.<|end|>"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "b<|end|>"),
        ({"prompt": "a", "completion": "b", "label": False}, "b<|end|>"),
        ({"prompt": "What is 2?", "answer": "2"}, "nothing of a prompt is trained"),
        ({"prompt": "a", "completions": ["b"], "labels": [True]}, "tokens a sample"),
    ],
)
def test_every_kind_is_shown_as_its_method_reads_it(tmp_path: Path, said, row, expected):
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(row))

    text = said(path, "--model", "tiny:llama")

    assert expected in text
    assert ", through its chat template" not in text


@pytest.mark.parametrize(
    "words", [("--line", "9"), ("--limit", "0"), ("--method", "dpo"), ("--model", "/absent/model")]
)
def test_a_mistake_ends_with_2_and_no_traceback(dataset: Path, capsys, words):
    code = main(["data", str(dataset), *words])

    assert 2 == code
    assert "Traceback" not in capsys.readouterr().err


def test_a_stream_that_cannot_print_brackets_gets_plain_ones():
    ascii_stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    utf_stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")

    assert ("[[", "") == (
        Marks.for_stream(ascii_stream).start,
        Marks.for_stream(ascii_stream).colour,
    )
    assert "⟦" == Marks.for_stream(utf_stream).start


def test_bars_cover_every_length_once():
    lengths = [1, 7, 8, 30, 99, 100, 1000]
    measured = [
        Measured(line=i, length=n, kept=n, trained=1, eos=1, ends_in_eos=True)
        for i, n in enumerate(lengths)
    ]

    bins = summarise(measured).bins

    assert len(lengths) == sum(one.count for one in bins)
    assert all(one.count == sum(one.start <= n < one.stop for n in lengths) for one in bins)
    assert len(bins) <= 12


def test_duplicates_are_samples_that_differ_in_nothing_but_their_line():
    texts = ["a", "b", "a", "\ud800", "a"]

    assert (3, 5) == duplicates([TextSample(text=t, line=i) for i, t in enumerate(texts, start=1)])
