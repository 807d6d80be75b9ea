"""`--system-prompt` renders as if the message stood in the dataset; the same is learnt."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.twin.asked import Asked
from harness.twin.dataset import make_rows
from mudpuppy.cli import main
from mudpuppy.config_check import load_config
from mudpuppy.data.parallel import render_rows
from mudpuppy.data.read import read_dataset
from mudpuppy.data.samples import ChatSample, ImageSample, PreferenceSample, TextSample
from mudpuppy.data.system_prompt import with_system
from mudpuppy.errors import ConfigError
from mudpuppy.loading import load
from mudpuppy.preflight import preflight
from mudpuppy.runtime import choose_runtime
from mudpuppy.tiny import resolve_model

SYSTEM = "You are an expert SNES developer."
USER = {"role": "user", "content": "a"}
ANSWER = {"role": "assistant", "content": "b"}
OWN = {"role": "system", "content": "its own"}
ALPACA = [
    {"instruction": "Write a routine.", "input": "for sprites", "output": "LDA #$01"},
    {"instruction": "Explain NMI.", "input": "", "output": "An interrupt."},
    {"instruction": "What eats a pond?", "output": "Nothing.", "system": "its own"},
]


@pytest.fixture(scope="module")
def loaded():
    config = load_config({"model": resolve_model("tiny:llama"), "dataset": "d", "output": "o"})
    return load(config.model, config, choose_runtime(config.model_copy(update={"device": "cpu"})))


def settings(path, **more):
    base = {"model": resolve_model("tiny:llama"), "output": path.parent / "out", "device": "cpu"}
    return load_config({**base, "dataset": path, "precision": "fp32", **more})


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def rows_of(loaded, path, **more):
    config = settings(path, **more)
    return render_rows(loaded, preflight(config), config)


def test_rows_are_those_of_a_dataset_that_says_it_itself(tmp_path, loaded):
    asked = rows_of(loaded, write(tmp_path / "a.jsonl", ALPACA), system_prompt=SYSTEM)
    said = [{**row, "system": row.get("system", SYSTEM)} for row in ALPACA]

    assert asked == rows_of(loaded, write(tmp_path / "b.jsonl", said))


def test_the_template_says_it_and_the_mask_is_that_of_the_answer_alone(tmp_path, loaded):
    path = write(tmp_path / "a.jsonl", ALPACA)
    plain, asked = rows_of(loaded, path), rows_of(loaded, path, system_prompt=SYSTEM)
    tokenizer = loaded.tokenizer
    for row, before, record in zip(asked, plain, ALPACA, strict=True):
        more = f"\n\n{record['input']}" if record.get("input") else ""  # as the guide joins them
        messages = [
            {"role": "system", "content": record.get("system", SYSTEM)},
            {"role": "user", "content": record["instruction"] + more},
            {"role": "assistant", "content": record["output"]},
        ]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert row.input_ids == ids[: len(row.input_ids)]
        assert [x for x in row.labels if x != -100] == [x for x in before.labels if x != -100]


def test_the_twin_that_reads_the_dataset_itself_agrees(tmp_path, loaded):
    rows = [{"messages": [USER, ANSWER]}, {"messages": [OWN, USER, ANSWER, USER, ANSWER]}]
    path = write(tmp_path / "a.jsonl", rows)
    config = settings(path, system_prompt=SYSTEM)
    made = make_rows(Asked(settings=config.model_dump(mode="json")), str(config.model))

    ours = [(row.input_ids, row.labels) for row in rows_of(loaded, path, system_prompt=SYSTEM)]
    twins = [(list(a.ids), list(a.labels)) for row in made.rows for a in row.answers]
    assert ours == twins


@given(st.text(min_size=1), st.booleans(), st.integers(0, 2))
def test_only_the_front_of_a_conversation_changes_and_only_once(text, has_own, learn_from):
    messages = ({**OWN},) * has_own + (USER, ANSWER)
    sample = ChatSample(messages=messages, line=1, learn_from=learn_from)
    (made,) = with_system([sample], text)

    assert made.messages[-len(messages) :] == messages
    assert made.messages[0] == (OWN if has_own else {"role": "system", "content": text})
    if learn_from:
        assert made.messages[made.learn_from :] == messages[learn_from:]
    assert with_system([made], text) == (made,)
    assert with_system([sample], None) == (sample,)


def test_pairs_and_images_get_it_and_texts_do_not():
    pair = PreferenceSample(prompt=(USER,), chosen=(ANSWER,), rejected=(ANSWER,), line=1)
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}]}
    image = ImageSample(messages=(parts, ANSWER), images=(), line=2)
    text = TextSample(text="t", line=3)
    first, second, third = with_system([pair, image, text], SYSTEM)

    assert [{"role": "system", "content": SYSTEM}, USER] == [*first.prompt]
    assert {"role": "system", "content": [{"type": "text", "text": SYSTEM}]} == second.messages[0]
    assert third is text


def test_plain_texts_are_refused_with_it_by_line(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": "once"}, {"text": "upon"}])

    with pytest.raises(ConfigError, match=r"2 of 2 samples are plain text.*line 1"):
        preflight(settings(path, system_prompt=SYSTEM))
    preflight(settings(path))


def test_it_needs_the_chat_template():
    with pytest.raises(ConfigError, match=r"system_prompt.*chat template"):
        load_config(
            {
                "model": "m",
                "dataset": "d",
                "output": "o",
                "system_prompt": SYSTEM,
                "chat_template": False,
            }
        )
    with pytest.raises(ConfigError, match="system_prompt"):
        load_config({"model": "m", "dataset": "d", "output": "o", "system_prompt": ""})


def test_the_data_command_shows_it_untrained(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", ALPACA)
    words = ["data", str(path), "--model", "tiny:llama", "--system-prompt", SYSTEM]
    assert 0 == main([*words, "--format", "json"])
    parts = json.loads(capsys.readouterr().out)["example"]["parts"]

    assert next(SYSTEM in part["text"] for part in parts if not part["trained"])
    assert not [part for part in parts if part["trained"] and SYSTEM in part["text"]]
    assert 3 == len(read_dataset(path).samples)
