"""Whatever config.json says, an export ends with a plan or with a refusal that has a code."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest

from mudpuppy.export.gguf.general import describe_general
from mudpuppy.export.gguf.plan import make_plan
from mudpuppy.export.gguf.refusals import ExportRefused
from mudpuppy.export.gguf.settings import read_settings
from tests.mudpuppy.export.gguf.models import make_model

JUNK = (None, True, -1, 0, 1, 3, 2**70, 0.5, -1.0, "pond", "", [], [None], {}, {"pond": []})


def variants(value: Any) -> Iterator[Any]:
    """Yield a value with every part of it replaced, or taken away."""
    yield from JUNK
    if isinstance(value, dict):
        for key, part in value.items():
            yield {k: v for k, v in value.items() if k != key}
            yield from ({**value, key: other} for other in variants(part))


@pytest.mark.parametrize("kind", ["llama3", "mixtral", "qwen2moe", "gemma2", "gemma3", "phi3-long"])
def test_junk_is_refused_with_a_code_or_makes_a_file(kind: str, tmp_path: Path):
    folder = make_model(tmp_path, kind)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    ends = {"refused": 0, "planned": 0}
    for junk in variants(config):
        path.write_text(json.dumps(junk))
        try:
            plan = make_plan(folder, read_settings(folder))
        except ExportRefused:
            ends["refused"] += 1
            continue
        ends["planned"] += 1
        writer = gguf.GGUFWriter(None, plan.architecture)
        describe_general(writer, folder, plan, "f16")
        for value in writer.kv_data[0].values():
            writer._pack_val(value.value, value.type, add_vtype=True, sub_type=value.sub_type)

    assert min(ends.values()) > 50


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_blocks_beyond_number_are_refused_at_once(kind: str, tmp_path: Path):
    folder = make_model(tmp_path, kind)
    change(folder, num_hidden_layers=10**9)
    started = time.process_time()
    with pytest.raises(ExportRefused, match=r"MP-X02.*1,000,000,000"):
        make_plan(folder, read_settings(folder))
    assert time.process_time() - started < 1


def change(folder: Path, **settings: Any) -> None:
    """Write other settings into a model's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_a_stretch_within_windows_is_refused(tmp_path: Path):
    folder = make_model(tmp_path, "gemma3")
    near = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}
    change(folder, rope_parameters={"sliding_attention": near})
    with pytest.raises(ExportRefused, match=r"MP-X03.*sliding_attention.*linear"):
        make_plan(folder, read_settings(folder))


def test_a_window_of_phi_is_told(tmp_path: Path):
    folder = make_model(tmp_path, "phi3-long")
    change(folder, sliding_window=32)
    notes = make_plan(folder, read_settings(folder)).notes
    assert any("sliding_window 32 is not used" in note for note in notes)
