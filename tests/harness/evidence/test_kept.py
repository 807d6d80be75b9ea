"""A large tokenizer.json is parsed once for all probes, and given up with the evidence."""

from __future__ import annotations

import gc
import json

from harness.evidence.files import kept
from harness.evidence.files.inventory import read_settings
from harness.evidence.source import CheckpointEvidence

FILE = "tokenizer.json"


def write(folder, size: int):
    folder.mkdir()
    (folder / FILE).write_text(json.dumps({"model": {"vocab": {"a": 0}}, "pad": "x" * size}))
    return CheckpointEvidence(folder)


def test_one_large_file_is_kept_and_only_one(tmp_path):
    first, second = write(tmp_path / "a", 2_000_000), write(tmp_path / "b", 2_000_000)
    value = read_settings(first, FILE)
    assert read_settings(first, FILE) is value
    assert read_settings(second, FILE) is not value
    assert len(kept._kept) == 1
    assert read_settings(first, FILE) == value
    del first, second, value
    gc.collect()
    assert not kept._kept


def test_a_small_file_is_read_anew(tmp_path):
    evidence = write(tmp_path / "a", 10)
    value = read_settings(evidence, FILE)
    assert read_settings(evidence, FILE) is not value
    assert not kept._kept
