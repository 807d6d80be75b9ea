"""Chat JSONL: what is read, and what every unusable line is told."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mudpuppy.data.chat import read_chat
from mudpuppy.errors import DatasetError

GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}


def write(path: Path, *lines: str) -> Path:
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    return path


def test_samples_know_their_line_and_blank_lines_are_passed_over(tmp_path: Path):
    path = write(tmp_path / "d.jsonl", json.dumps(GOOD), "", "  ", json.dumps(GOOD), "")

    samples = read_chat(path)

    assert [1, 4] == [sample.line for sample in samples]
    assert {"role": "assistant", "content": "Yo"} == samples[0].messages[1]


def test_a_byte_order_mark_is_no_error(tmp_path: Path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())

    assert 1 == len(read_chat(path))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"messages": [', "not JSON"),
        ("[1, 2]", "found a list instead of an object"),
        (
            '{"messages": [{"role": "user", "value": "x"}]}',
            "has no 'content': found 'role', 'value'",
        ),
        ('{"mesages": []}', "no usable field: found 'mesages'; did you mean 'messages'?"),
        ('{"text": "x"}', "no usable field: found 'text'"),
        ("{}", "found no fields"),
        ('{"messages": []}', "'messages' is an empty list"),
        ('{"messages": "x"}', "'messages' is a text"),
        ('{"messages": [1]}', "messages[0] is a number"),
        ('{"messages": [{"role": "usr", "content": "x"}]}', "did you mean 'user'"),
        ('{"messages": [{"role": "user", "content": null}]}', "messages[0].content is null"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "no assistant message with text"),
        ('{"messages": [{"role": "assistant", "content": " "}]}', "no assistant message with text"),
        (r'{"messages": [{"role": "assistant", "content": "\ud800"}]}', "surrogate"),
        (
            '{"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]}',
            "messages[0] has tool_calls",
        ),
    ],
)
def test_an_unusable_line_is_named_with_what_was_found_and_expected(tmp_path, line, expected):
    path = write(tmp_path / "d.jsonl", json.dumps(GOOD), line)

    with pytest.raises(DatasetError) as caught:
        read_chat(path)

    text = str(caught.value)
    assert text.startswith(f"{path}:2: ")
    assert expected in text
    assert '{"messages":' in caught.value.hint
    assert 2 == caught.value.line == caught.value.exit_code


def test_several_unusable_lines_are_listed_and_counted(tmp_path: Path):
    path = write(tmp_path / "d.jsonl", *["nonsense"] * 9)

    with pytest.raises(DatasetError) as caught:
        read_chat(path)

    assert f"{path}:5:" in str(caught.value)
    assert "and 4 more unusable lines" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"), [(b"", "holds no samples"), (b"\xff\xfe", "is not UTF-8")]
)
def test_an_empty_or_binary_file_is_refused(tmp_path: Path, content: bytes, expected: str):
    path = tmp_path / "d.jsonl"
    path.write_bytes(content)

    with pytest.raises(DatasetError, match=expected):
        read_chat(path)


def test_a_json_array_is_named_as_such_and_not_line_by_line(tmp_path: Path):
    path = write(tmp_path / "d.json", json.dumps([GOOD, GOOD], indent=1))

    with pytest.raises(DatasetError, match=r"d.json:1: is one JSON array") as caught:
        read_chat(path)
    assert "jq" in caught.value.hint


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path):
    with pytest.raises(DatasetError, match="is a folder"):
        read_chat(tmp_path)
    with pytest.raises(DatasetError, match="cannot be read: No such file"):
        read_chat(tmp_path / "absent.jsonl")


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("messages"), inner),
    max_leaves=12,
)


@given(st.lists(json_values.map(json.dumps) | st.text(), max_size=4))
def test_no_file_produces_anything_but_samples_or_a_dataset_error(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("any") / "d.jsonl"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    outcome: object = None
    try:
        outcome = read_chat(path)
    except DatasetError as error:
        outcome = error

    if isinstance(outcome, DatasetError):
        assert str(path) in str(outcome)
    else:
        assert all(sample.messages for sample in outcome)


def test_deeply_nested_json_is_an_error_and_not_a_crash(tmp_path: Path):
    path = write(tmp_path / "d.jsonl", "[" * 100_000)

    with pytest.raises(DatasetError, match="not JSON"):
        read_chat(path)


@pytest.mark.parametrize(
    "value",
    [
        {"k" * 1_000_000: 1},
        {"messages": [{"role": "r" * 1_000_000, "content": "x"}]},
        {"messages": [{"role": [["x" * 1000] * 1000], "content": "x"}]},
        {"messages": [{"role": "user", "c" * 1_000_000: "x"}]},
    ],
    ids=["field", "role", "list as role", "field of a message"],
)
def test_what_is_repeated_of_a_line_is_short(tmp_path: Path, value):
    path = write(tmp_path / "d.jsonl", json.dumps(value))

    with pytest.raises(DatasetError) as caught:
        read_chat(path)
    assert len(str(caught.value)) < 1000


def test_a_pipe_is_no_dataset(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(DatasetError, match="is no regular file"):
        read_chat(tmp_path / "pipe")


def test_fields_that_are_not_used_are_counted(tmp_path: Path):
    message = {"role": "assistant", "content": "x", "name": "ada", "tool_calls": []}
    value = {"messages": [message, message], "tools": [{"name": "search"}], "id": 3}

    (sample,) = read_chat(write(tmp_path / "d.jsonl", json.dumps(value)))

    assert ("name", "tool_calls", "name", "tool_calls", "tools") == sample.ignored
