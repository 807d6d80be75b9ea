"""Sizes, names and counts beyond all measure are refused in words, early, and cost no memory."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path

import pytest

from harness.doctor import diagnose
from harness.evidence.files import headers
from harness.evidence.files.headers import HEADER_LIMIT_BYTES, READ_LIMIT_BYTES, read_weight_file
from harness.evidence.files.inventory import leaves_folder
from harness.evidence.files.jsonfile import (
    CONFIG_LIMIT_BYTES,
    MOST_LISTS,
    MOST_OBJECTS,
    MOST_SEPARATORS,
    TOKENIZER_LIMIT_BYTES,
    is_path,
    limit_of,
    read_object,
)
from harness.evidence.source import CheckpointEvidence
from harness.evidence.text import template
from harness.findings import Status, Verdict
from mudpuppy.errors import MudpuppyError
from reports.commands.doctor import main
from tests.harness.checkpoints import copy, edit_json, save_adapter, save_base

LONG = "n" * 300


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("limits") / "base")


def assert_no_crash(folder: Path):
    found = diagnose(folder)
    crashed = [result for result in found.probes if result.status is Status.CRASHED]
    assert not crashed, crashed
    return found


@pytest.mark.parametrize("shape", [[2**52] * 64, [2**52, 2**52], [3]])
def test_a_shape_beyond_every_number_is_a_bad_header(tmp_path, shape):
    header = json.dumps({"t": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    found = read_weight_file(path, path.name)
    assert found.problem == "bad-header"
    assert ("than any file holds" in found.detail) is (shape != [3])
    assert len(found.detail) < 400
    assert_no_crash(tmp_path)


def write_sparse(path: Path, start: bytes, size: int) -> None:
    """Write a file of a size that takes no room on the disk."""
    with path.open("wb") as handle:
        handle.write(start)
        handle.truncate(size)


def test_a_header_of_nearly_the_largest_size_is_not_read(tmp_path):
    length = HEADER_LIMIT_BYTES - 1_000_000
    path = tmp_path / "model.safetensors"
    write_sparse(path, length.to_bytes(8, "little") + b"{", length + 100)
    (tmp_path / "config.json").write_text("{}")
    tracemalloc.start()
    found = assert_no_crash(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < READ_LIMIT_BYTES
    assert found.verdict is Verdict.UNKNOWN
    assert "a header of 99,000,000 bytes; at most 32,000,000 are read here" in found.why


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "mudpuppy.json"])
def test_a_settings_file_that_is_too_large_is_a_finding(base, tmp_path, name):
    folder = copy(base, tmp_path / "m")
    write_sparse(folder / name, b"{", limit_of(name) + 1)
    (finding,) = assert_no_crash(folder).findings
    assert finding.name == "config-file-unreadable"
    assert f"{name} cannot be read: larger than {limit_of(name):,} bytes" in finding.message
    assert "something else was written" in finding.cause


def test_large_files_have_larger_limits():
    assert limit_of("config.json") == CONFIG_LIMIT_BYTES
    assert limit_of("tokenizer.json") == TOKENIZER_LIMIT_BYTES > 33_000_000


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 3000])
def test_texts_that_are_no_paths(name):
    assert not is_path(name)
    assert leaves_folder(Path(), name)


@pytest.mark.parametrize("name", [LONG, "\ud800", "a\0b", "/" + LONG, "x/" * 900])
def test_paths_that_cannot_be_are_survived_wherever_they_stand(base, tmp_path, name):
    adapter = save_adapter(tmp_path / "a", base)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=name)
    record = {"kind": "adapter", "adapter": name, "base": {"name": name, "path": name}}
    (adapter / "mudpuppy.json").write_text(json.dumps(record))
    assert_no_crash(adapter)
    model = copy(base, tmp_path / "m")
    (model / "mudpuppy.json").write_text(json.dumps(record | {"kind": "merged"}))
    (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"lm_head.weight": name}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_no_crash(model)


def test_a_path_of_the_command_that_is_too_long_is_a_usage_error(base, capsys):
    for flags in ([LONG], [str(base), "--base", LONG], [str(base), "--adapter", LONG]):
        assert main(flags) == 2
    for flag in ("--quiz", "--voice", "--output"):
        assert main([str(base), flag, LONG]) == 2
        said = capsys.readouterr().err
        assert "File name too long" in said
        assert "examining" not in said


def test_settings_nested_too_deeply_are_a_finding(base, tmp_path):
    folder = copy(base, tmp_path / "m")
    (folder / "generation_config.json").write_text('{"a":' * 50_000 + "1" + "}" * 50_000)
    (finding,) = assert_no_crash(folder).findings
    assert "nested too deeply" in finding.message


def test_many_targets_and_many_modules_take_no_square_of_time(base, tmp_path):
    folder = save_adapter(tmp_path / "a", base)
    targets = [f"module{number}" for number in range(20_000)]
    edit_json(folder / "adapter_config.json", target_modules=[*targets, "q_proj", "v_proj"])
    names = {}
    for number in range(8_000):
        name = f"base_model.model.model.layers.{number}.self_attn.q_proj.lora_A.weight"
        names[name] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps(names).encode()
    raw = len(header).to_bytes(8, "little") + header
    (folder / "adapter_model.safetensors").write_bytes(raw)
    started = time.process_time()
    assert_no_crash(folder)
    assert time.process_time() - started < 5


def test_mistakes_of_the_caller_are_errors_of_ours(tmp_path):
    with pytest.raises(MudpuppyError):
        diagnose(tmp_path / LONG)


@pytest.mark.parametrize(
    ("filler", "mark"), [("[],", "["), ('{"a":1},', "{"), ("0,", ",")], ids=["[", "{", "comma"]
)
def test_a_small_file_of_many_values_is_not_parsed(base, tmp_path, filler, mark):
    folder = copy(base, tmp_path / "m")
    count = {"[": MOST_LISTS, "{": MOST_OBJECTS, ",": MOST_SEPARATORS}[mark] + 1
    (folder / "tokenizer.json").write_text('{"x": [' + filler * count + "0]}")
    tracemalloc.start()
    (finding,) = assert_no_crash(folder).findings
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert f"too many values: '{mark}' stands there" in finding.message
    assert "something else was written" in finding.cause
    assert peak < TOKENIZER_LIMIT_BYTES + 10_000_000  # the text itself, and nothing of it parsed


def test_a_tokenizer_of_the_largest_kind_is_read(tmp_path):
    vocabulary = {f"t{number:x}": number for number in range(262_144)}
    names = list(vocabulary)
    merges = [[names[number % 262_144], "t1"] for number in range(514_906)]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": {"vocab": vocabulary, "merges": merges}}))
    tracemalloc.start()
    value = read_object(path, limit_of(path.name))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(value["model"]["merges"]) == len(merges)
    assert peak < 300_000_000


def write_shards(folder: Path, count: int, tensors: int) -> None:
    index = {}
    for shard in range(count):
        names = [f"s{shard}.{number}" for number in range(tensors)]
        entry = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
        header = json.dumps(dict.fromkeys(names, entry)).encode()
        name = f"model-{shard + 1:05}-of-{count:05}.safetensors"
        (folder / name).write_bytes(len(header).to_bytes(8, "little") + header)
        index |= dict.fromkeys(names, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


@pytest.mark.parametrize(
    ("limit", "value", "said"),
    [
        ("MOST_TENSORS", 70, "more than 70 tensors in one folder"),
        ("ALL_HEADERS_BYTES", 6000, "headers of more than 6,000 bytes in one folder"),
    ],
)
def test_the_headers_of_a_folder_are_bounded_together(tmp_path, monkeypatch, limit, value, said):
    (tmp_path / "config.json").write_text("{}")
    write_shards(tmp_path, count=4, tensors=30)
    files = CheckpointEvidence(tmp_path).get("files")
    assert not any(file.problem for file in files.weights)
    monkeypatch.setattr(headers, limit, value)
    files = CheckpointEvidence(tmp_path).get("files")
    problems = [file.problem for file in files.weights]
    assert problems[0] == ""
    assert problems[-1] == "huge-header"
    found = assert_no_crash(tmp_path)
    assert found.verdict is not Verdict.HEALTHY
    assert said in files.weights[-1].detail


@pytest.mark.parametrize("count", [1, 3])
def test_all_templates_of_a_folder_are_bounded_together(base, tmp_path, monkeypatch, count):
    folder = copy(base, tmp_path / "m")
    texts = [
        {"name": f"n{number}", "template": "{{ a }}" * 40 + str(number)} for number in range(3)
    ]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": texts[:count]}))
    monkeypatch.setattr(template, "LIMIT_BYTES", 500)
    (result,) = diagnose(folder, select=["chat-template-broken"]).probes
    assert result.status is (Status.PASSED if count == 1 else Status.SKIPPED)
    assert count == 1 or "the templates are longer than 500 bytes" in result.reason


def test_templates_that_take_too_long_are_not_parsed(base, tmp_path, monkeypatch):
    folder = copy(base, tmp_path / "m")
    texts = [{"name": name, "template": name} for name in "abc"]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": texts}))
    monkeypatch.setattr(template, "SECONDS", -1.0)
    (result,) = diagnose(folder, select=["chat-template-broken"]).probes
    assert "take longer than" in result.reason
