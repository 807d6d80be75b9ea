"""Where datasets lie: the same rows give the same samples, and what is broken is named."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from mudpuppy.data import jsonrows
from mudpuppy.data.formats import FORMATS
from mudpuppy.data.read import DatasetRead, read_dataset
from mudpuppy.errors import DatasetError

ROWS = [{"text": "one"}, {"text": "two"}, {"text": "three"}]


def write_parquet(path: Path, rows: list[dict]) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def contents(read: DatasetRead) -> tuple:
    """Return what was read, without where it stood."""
    return read.kind, read.format, [replace(sample, line=0) for sample in read.samples]


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
turns = st.builds(lambda role, text: {"role": role, "content": text}, st.just("assistant"), texts)
ROW_OF = {
    "text": st.fixed_dictionaries({"text": texts}),
    "chat": st.fixed_dictionaries({"messages": st.lists(turns, min_size=1, max_size=3)}),
    "kto": st.fixed_dictionaries({"prompt": texts, "completion": texts, "label": st.booleans()}),
    "completion": st.fixed_dictionaries({"prompt": texts, "completion": texts}),
    "prompts": st.fixed_dictionaries({"prompt": texts, "answer": st.integers(-9, 9) | st.none()}),
    "steps": st.lists(st.tuples(texts, st.booleans()), min_size=1, max_size=3).map(
        lambda pairs: {
            "prompt": "p",
            "completions": [text for text, _ in pairs],
            "labels": [label for _, label in pairs],
        }
    ),
}


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(ROW_OF)).flatmap(
        lambda kind: st.tuples(st.just(kind), st.lists(ROW_OF[kind], min_size=1, max_size=4))
    )
)
def test_the_same_rows_are_the_same_samples_wherever_they_lie(tmp_path_factory, drawn):
    kind, rows = drawn
    folder = tmp_path_factory.mktemp("same")
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "e.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    (folder / "f.json").write_text(json.dumps({"version": 1, "data": rows}, indent=2))
    write_parquet(folder / "d.parquet", rows)

    first = read_dataset(folder / "d.jsonl")

    assert kind == first.kind
    for name in ("e.json", "f.json", "d.parquet"):
        assert contents(first) == contents(read_dataset(folder / name))


@pytest.mark.parametrize("count", [1, 2])
def test_a_folder_with_one_data_file_is_that_file(tmp_path: Path, count: int):
    (tmp_path / "README.md").write_text("about")
    for index in range(count):
        write_parquet(tmp_path / f"{index}.parquet", ROWS)

    if count == 1:
        assert 3 == len(read_dataset(tmp_path).samples)
    else:
        with pytest.raises(DatasetError, match=r"2 data files: 0.parquet, 1.parquet"):
            read_dataset(tmp_path)


def test_a_saved_dataset_is_read_with_its_splits(tmp_path: Path):
    table = datasets.Dataset.from_list(ROWS)
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(tmp_path / "two")

    assert 3 == len(read_dataset(tmp_path / "one").samples)
    assert 3 == len(read_dataset(tmp_path / "two").samples)
    assert 1 == len(read_dataset(f"{tmp_path / 'two'}:test").samples)
    with pytest.raises(DatasetError, match="has no split 'tset'; did you mean 'test'"):
        read_dataset(f"{tmp_path / 'two'}:tset")
    (tmp_path / "one/state.json").write_text("{")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_dataset(tmp_path / "one")


def test_a_hub_dataset_comes_from_the_library_and_its_failure_is_one_line(monkeypatch):
    asked = []

    def load(name: str) -> datasets.DatasetDict:
        asked.append(name)
        if name == "some/absent":
            raise ConnectionError("Couldn't reach the Hub")
        table = datasets.Dataset.from_list(ROWS)
        return datasets.DatasetDict({"train": table, "test": table.select([0])})

    monkeypatch.setattr(datasets, "load_dataset", load)

    assert 3 == len(read_dataset("some/data", "lora").samples)
    assert 1 == len(read_dataset("some/data:test", "lora").samples)
    with pytest.raises(
        DatasetError, match="some/absent: no such file, and not to be had from the h"
    ):
        read_dataset("some/absent", "lora")
    assert ["some/data", "some/data", "some/absent"] == asked


@pytest.mark.parametrize("name", ["data/train.jsonl", "d.parquet", "x.csv", "plain"])
def test_a_missing_path_is_not_looked_for_on_the_hub(monkeypatch, name: str):
    monkeypatch.setattr(datasets, "load_dataset", lambda name: pytest.fail("asked the hub"))

    with pytest.raises(DatasetError, match="No such file"):
        read_dataset(name)


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ('[\n{"text": "a"},\n\n{"txt": "b"}]', 4, "no usable field"),
        ('[{"text": "a"}, {"txt": "b"}]', 2, "no usable field"),
        ('[{"text": "a"},\n{"text": ]', 2, "not JSON: Expecting value"),
        ('[{"text": "a"}\n{"text": "b"}]', 2, "a comma or ] is missing at column 1"),
        ('[{"text": "a"}', 1, "a comma or ] is missing"),
        ('[{"text": "a"}]\n[]', 2, "more than one value"),
        ('{\n"version": 1,\n"data": [\n{"text": ""}]}', 4, "text is empty"),
        ('{\n"data" [', 2, "a colon is missing"),
        ('{\n"version": NaN}', 2, "NaN is no JSON"),
        ('{\n"txt": "a"}', 1, "no usable field"),
    ],
)
def test_a_fault_in_a_json_file_is_found_at_its_line(tmp_path: Path, text, line, expected):
    path = tmp_path / "d.json"
    path.write_text(text)

    with pytest.raises(DatasetError) as caught:
        read_dataset(path)
    assert expected in str(caught.value)
    assert line == caught.value.line


def test_bytes_that_are_not_utf8_are_found_at_their_line(tmp_path: Path):
    (tmp_path / "a.json").write_bytes(b'[\n{"text": "\xff"}]')
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n{"text": "\xfe"}')

    for name, message in (
        ("a.json", "a.json:2: is not UTF-8: byte 0xff at column 11"),
        ("b.jsonl", "b.jsonl:3: is not UTF-8: byte 0xfe"),
    ):
        with pytest.raises(DatasetError) as caught:
            read_dataset(tmp_path / name)
        assert message in str(caught.value)
        assert 2 == caught.value.line


def test_a_parquet_fault_is_found_at_its_row(tmp_path: Path):
    path = write_parquet(tmp_path / "d.parquet", [{"text": "a"}] * 300 + [{"text": None}])

    with pytest.raises(DatasetError, match=r"d.parquet:301: no usable field"):
        read_dataset(path)


def test_a_line_of_ten_megabytes_is_read_and_one_without_end_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"text": "x" * 10_000_000}) + "\n" + json.dumps(ROWS[0]))
    started = time.monotonic()

    assert 2 == len(read_dataset(path).samples)
    assert time.monotonic() - started < 15

    monkeypatch.setattr(jsonrows, "MAX_LINE_BYTES", 2**20)
    with pytest.raises(DatasetError, match=r"d.jsonl:1: longer than 1 MiB") as caught:
        read_dataset(path)
    assert "more unusable" not in str(caught.value)


@pytest.mark.parametrize("name", ["d.csv", "d.txt"])
def test_another_kind_of_file_is_named(tmp_path: Path, name: str):
    (tmp_path / name).write_text("a,b\n1,2\n")

    with pytest.raises(DatasetError, match="JSONL, JSON or Parquet is expected"):
        read_dataset(tmp_path / name)


def test_files_are_read_without_torch_and_without_datasets(tmp_path: Path):
    (tmp_path / "d.jsonl").write_text(json.dumps(ROWS[0]))
    (tmp_path / "d.json").write_text(json.dumps(ROWS))
    write_parquet(tmp_path / "d.parquet", ROWS)
    code = (
        "import sys; from mudpuppy.data.read import read_dataset\n"
        f"for n in ('jsonl', 'json', 'parquet'): read_dataset({str(tmp_path)!r} + '/d.' + n)\n"
        "heavy = ('torch', 'transformers', 'datasets')\n"
        "sys.exit(' '.join(n for n in heavy if n in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (0, "") == (done.returncode, done.stderr.strip())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
names = sorted(
    {name for one in FORMATS for name in one.required}
    | {
        *(
            "input",
            "images",
            "image",
            "system",
            "metadata",
            "tools",
            "role",
            "content",
            "from",
            "type",
        )
    }
)
roles = st.sampled_from(["user", "assistant", "human", "gpt", "text", "image", "a.png"])
shaped = st.recursive(
    json_values | roles,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(names), inner, max_size=4)
    ),
    max_leaves=12,
)


@st.composite
def mutated(draw: st.DrawFn) -> object:
    """Return a valid row with one value somewhere replaced, or a field taken out."""
    row = json.loads(draw(st.sampled_from(FORMATS)).example)
    node: object = row
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = draw(st.sampled_from(keys))
        inner = node[key]
        if isinstance(inner, dict | list) and inner and draw(st.booleans()):
            node = inner
            continue
        if draw(st.booleans()) and isinstance(node, dict):
            del node[key]
        else:
            node[key] = draw(shaped)
        return row


def outcome(path: Path, method: str | None) -> object:
    """Return what was read, or the error; anything else that is raised fails the test."""
    result: object
    try:
        result = read_dataset(path, method)
    except DatasetError as error:
        result = error
    assert isinstance(result, DatasetRead) or str(path) in str(result)
    return result


methods = st.sampled_from([None, "lora", "dpo", "kto", "grpo", "prm", "multimodal"])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(mutated() | st.dictionaries(st.sampled_from(names), shaped), max_size=3), methods)
def test_no_rows_produce_anything_but_samples_or_a_dataset_error(tmp_path_factory, rows, method):
    folder = tmp_path_factory.mktemp("any")
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "d.json").write_text(json.dumps(rows))

    one, other = outcome(folder / "d.jsonl", method), outcome(folder / "d.json", method)

    assert type(one) is type(other)
    if isinstance(one, DatasetRead):
        assert contents(one) == contents(other)


@settings(max_examples=100, deadline=None)
@given(
    st.binary(max_size=60) | st.text(max_size=60).map(lambda t: t.encode("utf-8", "replace")),
    st.sampled_from(["jsonl", "json", "parquet"]),
)
def test_no_bytes_produce_anything_but_samples_or_a_dataset_error(tmp_path_factory, raw, suffix):
    path = tmp_path_factory.mktemp("bytes") / f"d.{suffix}"
    path.write_bytes(raw)

    outcome(path, None)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_damage_to_a_parquet_file_produces_a_traceback(tmp_path_factory, data):
    path = write_parquet(tmp_path_factory.mktemp("damaged") / "d.parquet", ROWS)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(raw[: data.draw(st.integers(len(raw) // 2, len(raw)))]))

    outcome(path, None)
