"""No file of a stranger makes the doctor raise, hang or read outside its folder."""

from __future__ import annotations

import json
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.doctor import diagnose
from harness.evidence.files.headers import read_weight_file
from harness.evidence.files.inventory import leaves_folder
from harness.evidence.files.jsonfile import UnreadableJson, read_object
from harness.evidence.values.arrays import decode
from harness.evidence.values.numbers import measure
from harness.facts.checkpoint import Tensor
from harness.findings import Status, Verdict
from mudpuppy.deadline import call_within
from mudpuppy.errors import MudpuppyError
from tests.fuzz.seeds import lay_out, make_seeds

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
FILES = st.sampled_from(
    [
        "config.json",
        "adapter_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "mudpuppy.json",
        "model.safetensors.index.json",
    ]
)


def header_file(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    size = len(header) if length is None else length
    return size.to_bytes(8, "little") + header + data


def examine(files: dict[str, bytes]) -> Status | Verdict:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, raw in files.items():
            (folder / file).write_bytes(raw)
        started = time.process_time()
        diagnosis = diagnose(folder)
        assert time.process_time() - started < 1.0
        crashed = [r for r in diagnosis.probes if r.status is Status.CRASHED]
        assert not crashed, crashed
        return diagnosis.verdict


@QUICK
@given(st.binary(max_size=300))
def test_random_bytes_are_never_healthy(raw):
    assert examine({"model.safetensors": raw, "adapter_model.safetensors": raw}) is not (
        Verdict.HEALTHY
    )


@QUICK
@given(JSON, st.binary(max_size=40), st.none() | st.integers(0, 2**64 - 1))
def test_any_json_as_header_is_survived(value, data, length):
    raw = header_file(json.dumps(value).encode(), data, length)
    examine({"model.safetensors": raw})


ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8", "F8_E4M3", "F4", "I64", "C64", "X"]) | JSON,
        "shape": st.lists(st.integers(-1, 5) | st.integers(0, 2**70), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 64), min_size=1, max_size=3) | JSON,
    }
)


@QUICK
@given(st.dictionaries(st.text(max_size=30), ENTRY, max_size=4), st.binary(max_size=70))
def test_any_entries_are_survived(entries, data):
    examine({"adapter_model.safetensors": header_file(json.dumps(entries).encode(), data)})


@QUICK
@given(st.dictionaries(FILES, JSON, max_size=5))
def test_any_settings_beside_real_weights_are_survived(settings_files):
    entry = {
        "model.embed_tokens.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    }
    entry["base_model.model.q.lora_A.weight"] = {
        "dtype": "F32",
        "shape": [2, 2],
        "data_offsets": [16, 32],
    }
    raw = header_file(json.dumps(entry).encode(), np.arange(8, dtype="<f4").tobytes())
    files = {name: json.dumps(value).encode() for name, value in settings_files.items()}
    examine({"model.safetensors": raw, "adapter_model.safetensors": raw, **files})


@QUICK
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "r": JSON,
            "lora_alpha": JSON,
            "rank_pattern": JSON,
            "alpha_pattern": st.dictionaries(st.text(max_size=10), JSON, max_size=3),
            "target_modules": JSON,
            "use_rslora": JSON,
            "base_model_name_or_path": JSON,
            "peft_type": JSON,
            "vocab_size": JSON,
            "num_hidden_layers": JSON,
            "architectures": JSON,
            "model_type": st.sampled_from(["llama", "gemma2"]) | JSON,
            "text_config": JSON,
            "quantization_config": JSON,
            "tie_word_embeddings": JSON,
            "eos_token_id": JSON,
            "quantisation": JSON,
            "base": JSON,
            "adapter": JSON,
        },
    )
)
def test_any_values_of_known_keys_are_survived(value):
    keys = (
        "base_model.model.a.layers.0.q.lora_A.weight",
        "base_model.model.a.layers.0.q.lora_B.weight",
    )
    entry = {
        key: {"dtype": "F32", "shape": [2, 2], "data_offsets": [16 * i, 16 * i + 16]}
        for i, key in enumerate(keys)
    }
    raw = header_file(json.dumps(entry).encode(), np.arange(1, 9, dtype="<f4").tobytes())
    text = json.dumps(value).encode()
    names = ("config.json", "adapter_config.json", "mudpuppy.json", "generation_config.json")
    examine({"adapter_model.safetensors": raw, **dict.fromkeys(names, text)})
    model = json.dumps({k.replace("lora_", "w_"): v for k, v in entry.items()}).encode()
    data = np.arange(1, 9, dtype="<f4").tobytes()
    examine({"model.safetensors": header_file(model, data), **dict.fromkeys(names, text)})


def test_a_deep_header_is_a_bad_header(tmp_path):
    raw = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    (tmp_path / "m.safetensors").write_bytes(header_file(raw))
    found = read_weight_file(tmp_path / "m.safetensors", "m.safetensors")
    assert found.problem == "bad-header"
    assert "deep" in found.detail


def test_a_huge_claimed_header_is_not_read(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(header_file(b"{}", length=2**63))
    assert read_weight_file(tmp_path / "m.safetensors", "m").problem == "bad-header"


def test_overlaps_holes_and_wrong_sizes_are_bad_headers(tmp_path):
    def problem(**spans):
        entries = {
            name: {"dtype": "F32", "shape": [2], "data_offsets": list(span)}
            for name, span in spans.items()
        }
        path = tmp_path / "m.safetensors"
        path.write_bytes(header_file(json.dumps(entries).encode(), b"\0" * 32))
        return read_weight_file(path, "m").problem, read_weight_file(path, "m").detail

    assert "overlaps" in problem(a=(0, 8), b=(4, 12))[1]
    assert "hole" in problem(a=(0, 8), b=(12, 20))[1]
    assert "needs" in problem(a=(0, 12))[1]
    assert "no tensor covers" in problem(a=(0, 8))[1]
    assert problem(a=(0, 8), b=(8, 16), c=(16, 24), d=(24, 32))[0] == ""
    assert problem(**{c: (8 * i, 8 * i + 8) for i, c in enumerate("abcde")})[0] == "truncated"


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "", "..", "a\\b", "x\0y"])
def test_names_that_leave_the_folder_are_seen(tmp_path, name):
    assert leaves_folder(tmp_path, name)


def test_a_link_out_of_the_folder_is_refused_and_a_hub_cache_is_not(tmp_path):
    (tmp_path / "secret").write_text("x")
    snapshot = tmp_path / "models--a--b" / "snapshots" / "123"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "abc").write_text("x")
    (snapshot / "good").symlink_to(blobs / "abc")
    (snapshot / "bad").symlink_to(tmp_path / "secret")
    assert not leaves_folder(snapshot, "good")
    assert leaves_folder(snapshot, "bad")


@QUICK
@given(st.binary(max_size=200))
def test_any_bytes_as_pickle_are_survived(raw):
    examine({"pytorch_model.bin": raw, "training_args.bin": raw})


def test_a_pickle_alone_is_unknown_and_is_not_loaded(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"ccollections\nOrderedDict\n(tR.")
    diagnosis = diagnose(tmp_path)
    assert diagnosis.verdict is Verdict.UNKNOWN
    assert "pickle" in diagnosis.why


def test_an_empty_folder_is_unknown(tmp_path):
    assert diagnose(tmp_path).verdict is Verdict.UNKNOWN
    (tmp_path / "config.json").write_text("{}")
    assert diagnose(tmp_path).verdict is Verdict.UNKNOWN


def test_large_and_wrong_json_is_refused_with_a_reason(tmp_path):
    path = tmp_path / "x.json"
    for raw, word in (
        (b"[1]", "list"),
        (b"{", "Expecting"),
        (b" " * 50, "larger"),
        (b"\xff", "utf"),
    ):
        path.write_bytes(raw)
        with pytest.raises(UnreadableJson, match=word):
            read_object(path, 40)


@pytest.mark.parametrize("dtype", ["F32", "F64", "F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_every_float_type_is_scanned_like_numpy_does(tmp_path, dtype):
    from harness.evidence.values.arrays import FLOAT_TYPES

    rng = np.random.default_rng(0)
    values = (rng.standard_normal((50, 7)) * 3).astype(FLOAT_TYPES[dtype])
    values[40:] = 0
    raw = values.tobytes()
    (tmp_path / "f").write_bytes(raw)
    tensor = Tensor(name="t", dtype=dtype, shape=(50, 7), start=0, end=len(raw), file="f")
    found = measure(tmp_path, tensor)
    wide = values.astype(np.float64)
    assert found.nonfinite == 0
    assert found.abs_max == pytest.approx(np.abs(wide).max())
    assert (found.low, found.high) == (wide.min(), wide.max())
    assert found.trailing_zeros == 70
    flat = np.frombuffer(raw, np.uint8)
    np.testing.assert_array_equal(decode(flat, dtype), values.astype(np.float32).ravel())


def test_nan_and_infinity_are_counted_across_chunks(tmp_path):
    values = np.ones((3000, 200), "<f4")
    values[0, 0], values[1500, 3], values[2999, 199] = np.nan, np.inf, -np.inf
    (tmp_path / "f").write_bytes(values.tobytes())
    tensor = Tensor(name="t", dtype="F32", shape=(3000, 200), start=0, end=values.nbytes, file="f")
    found = measure(tmp_path, tensor)
    assert (found.nonfinite, found.abs_max) == (3, 1.0)


@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_a_pipe_in_the_place_of_any_file_is_not_waited_for(kind, tmp_path):
    files = make_seeds()[kind]
    for number, name in enumerate(sorted(files)):
        folder = tmp_path / str(number)
        folder.mkdir()
        lay_out(files, folder)
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with suppress(MudpuppyError):
            call_within(30, lambda folder=folder: diagnose(folder))
