"""Reading a dataset of conversations: what is read, and what every unusable line is told."""

import json
import os
from pathlib import Path

import pytest

from mudpuppy.data.read import read_dataset
from mudpuppy.errors import DatasetError

GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}


def write(path: Path, *lines: str) -> Path:
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    return path


def test_samples_know_their_line_and_blank_lines_are_passed_over(tmp_path: Path):
    path = write(tmp_path / "d.jsonl", json.dumps(GOOD), "", "  ", json.dumps(GOOD), "")

    samples = read_dataset(path, "lora").samples

    assert [1, 4] == [sample.line for sample in samples]
    assert {"role": "assistant", "content": "Yo"} == samples[0].messages[1]


def test_a_byte_order_mark_is_no_error(tmp_path: Path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())

    assert 1 == len(read_dataset(path).samples)


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
        ('{"txt": "x"}', "no usable field: found 'txt'"),
        ('{"text": "x"}', "has text, and line 1 has messages: one dataset holds one format"),
        ("{}", "found no fields"),
        ('{"messages": []}', "'messages' is an empty list"),
        ('{"messages": null}', "no usable field: found 'messages'"),
        ('{"messages": 1, "messages": 1}', "the field 'messages' stands twice in one object"),
        ('{"messages": [], "score": NaN}', "NaN is no JSON"),
        ('{"messages": []} {}', "more than one value, from column 17"),
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
        read_dataset(path)

    text = str(caught.value)
    assert text.startswith(f"{path}:2: ")
    assert expected in text
    assert '{"messages":' in caught.value.hint
    assert 2 == caught.value.line == caught.value.exit_code


def test_several_unusable_lines_are_listed_and_counted(tmp_path: Path):
    path = write(tmp_path / "d.jsonl", *["nonsense"] * 9)

    with pytest.raises(DatasetError) as caught:
        read_dataset(path)

    assert f"{path}:5:" in str(caught.value)
    assert "and 4 more unusable lines" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "holds no samples"),
        (b"\n\n", "holds no samples"),
        (b"[]", "holds no samples"),
        (b"\xff\xfe", "is not UTF-8: byte 0xff at column 1"),
        (b"\x1f\x8b\x08", "is compressed"),
        (b"PAR1", "cannot be read"),
    ],
)
def test_an_empty_or_binary_file_is_refused(tmp_path: Path, content: bytes, expected: str):
    path = tmp_path / "d.jsonl"
    path.write_bytes(content)

    with pytest.raises(DatasetError, match=expected):
        read_dataset(path)


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path):
    with pytest.raises(DatasetError, match="is a folder with no JSONL"):
        read_dataset(tmp_path)
    with pytest.raises(DatasetError, match="cannot be read: No such file"):
        read_dataset(tmp_path / "absent.jsonl")


def test_deeply_nested_json_is_an_error_and_not_a_crash(tmp_path: Path):
    path = write(tmp_path / "d.jsonl", "[" * 100_000)

    with pytest.raises(DatasetError, match="not JSON"):
        read_dataset(path)


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
        read_dataset(path)
    assert len(str(caught.value)) < 1000


def test_a_pipe_is_no_dataset(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(DatasetError, match="is no regular file"):
        read_dataset(tmp_path / "pipe")


def test_fields_that_are_not_used_are_counted(tmp_path: Path):
    message = {"role": "assistant", "content": "x", "name": "ada", "tool_calls": []}
    value = {"messages": [message, message], "tools": [{"name": "search"}], "id": 3}

    (sample,) = read_dataset(write(tmp_path / "d.jsonl", json.dumps(value))).samples

    assert ("name", "tool_calls", "name", "tool_calls", "tools") == sample.ignored
