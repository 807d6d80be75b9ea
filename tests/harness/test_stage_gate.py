"""The stage gate: sound stages pass, and each of the report's root causes has its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from harness.by_hand import read_texts, stack
from harness.findings import ProbeResult, Status
from harness.mutants.curriculum import PLANTS
from harness.registry import load_probes
from harness.stage_gate import (
    ALWAYS,
    BASE_MOVED,
    LIVE,
    LIVE_FILE,
    NO_ADAPTER,
    ROOTS,
    WATCHED,
    DoctorGate,
    could_not,
)
from mudpuppy.adapters.shard_merge import merge_shards
from mudpuppy.pipelines.curriculum.gates import LEFTOVER, MERGE, STACKED, STUB, Examined
from mudpuppy.tiny import resolve_model
from scenarios.loader import SHIPPED

GATE = DoctorGate()
TARGETS = ["q_proj", "v_proj"]


@pytest.fixture(scope="module")
def base() -> Path:
    return Path(resolve_model("tiny:llama"))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return read_texts(SHIPPED / "data" / "new_facts.jsonl")[:4]


def attach(base: Path) -> Any:
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return get_peft_model(
        model, LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM")
    )


def train(model: Any, watcher: Any = None, steps: int = 3) -> Any:
    """Take a few steps on random tokens, as a trainer does, with somebody watching."""
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-3)
    ids = torch.randint(5, 200, (2, 24), generator=torch.Generator().manual_seed(0))
    if watcher is not None:
        watcher.on_prepared(model, None, [], frozenset())
    for _ in range(steps):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if watcher is not None:
        watcher.on_fitted(model)
    return model


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "adapter"
    train(attach(base)).save_pretrained(folder)
    return folder


def judge(folder: Path, base: Path, kind: Any = "sft", **more: Any) -> Any:
    return GATE.judge(
        Examined(name="topic sft", kind=kind, folder=folder, base=base, before=base, **more)
    )


def test_a_sound_adapter_and_its_merge_pass(base: Path, adapter: Path, tmp_path: Path):
    watcher = GATE.watch(tmp_path / "live")
    train(attach(base), watcher)
    seen = judge(adapter, base, live=tmp_path / "live")
    assert () == seen.faults
    assert not set(WATCHED) & {line.partition(" ")[0] for line in seen.unchecked}
    assert seen.checked > 20

    merge_shards(base, adapter, tmp_path / "model")
    assert () == judge(tmp_path / "model", base, "merge", adapter=adapter).faults


def test_an_adapter_on_an_adapter_is_named(base: Path, texts: list[str], tmp_path: Path):
    stack(str(base), texts, tmp_path / "stacked")

    seen = judge(tmp_path / "stacked", base, "dpo")
    assert (STACKED, "MPD201") == (seen.faults[0].root, seen.faults[0].code)
    assert seen.faults[0].remedy


def test_a_stub_is_named_by_what_moved(base: Path, tmp_path: Path):
    model = attach(base)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" not in name)
    train(model, GATE.watch(tmp_path / "live")).save_pretrained(tmp_path / "adapter")

    faults = judge(tmp_path / "adapter", base, live=tmp_path / "live").faults
    assert {STUB} == {one.root for one in faults}
    assert {BASE_MOVED, "MPD203", "MPD506"} <= {one.code for one in faults}


def test_a_model_that_trained_without_any_adapter_is_named(base: Path, tmp_path: Path):
    watcher = GATE.watch(tmp_path)
    train(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), watcher, steps=1)

    seen = json.loads((tmp_path / LIVE_FILE).read_text())
    assert (0, seen["tensors"]) == (seen["adapter_layers"], seen["moved"])


def test_a_stage_that_nobody_watched_is_told_as_unchecked(
    base: Path, adapter: Path, tmp_path: Path
):
    seen = judge(adapter, base, live=tmp_path / "never")

    assert () == seen.faults
    assert set(WATCHED) <= {one.partition(":")[0] for one in seen.unchecked}


def test_a_check_that_lacks_what_it_looks_at_is_told_as_unchecked(
    base: Path, adapter: Path, tmp_path: Path
):
    train(attach(base), GATE.watch(tmp_path))
    path = tmp_path / LIVE_FILE
    # what the watcher writes of a model whose state cannot be described
    seen = json.loads(path.read_text()) | {"unanswered": ["MPD506 trained-beside: no state"]}
    path.write_text(json.dumps(seen))

    assert "MPD506 trained-beside: no state" in judge(adapter, base, live=tmp_path).unchecked
    endings = (
        ("MPD1", Status.SKIPPED, True),
        ("MPD2", Status.SKIPPED, False),
        ("MPD3", Status.CRASHED, True),
        ("MPD4", Status.PASSED, True),
    )
    results = [
        ProbeResult(code=code, name="a", modes=(), status=status, applies=applies, reason="b")
        for code, status, applies in endings
    ]
    assert ["MPD1 a: b", "MPD3 a: b"] == could_not(results)


def test_a_healthy_adapter_moves_nothing_of_the_base(base: Path, tmp_path: Path):
    train(attach(base), GATE.watch(tmp_path))

    seen = json.loads((tmp_path / LIVE_FILE).read_text())
    assert (0, []) == (seen["moved"], seen["findings"])
    assert seen["adapter_layers"] == 4
    assert seen["answered"] >= 3


def test_settings_that_stayed_are_named(base: Path, tmp_path: Path):
    watcher = GATE.watch(tmp_path / "live")
    adapted = attach(base)
    settings = adapted.peft_config
    merged = adapted.merge_and_unload()
    merged.peft_config = settings
    watcher.on_prepared(merged)
    watcher.on_fitted(merged)
    merged_to = tmp_path / "model"
    del merged.peft_config
    merged.save_pretrained(merged_to)

    faults = judge(merged_to, base, "merge", live=tmp_path / "live").faults
    assert LEFTOVER in {one.root for one in faults}
    assert "MPD501" in {one.code for one in faults}


def test_a_merge_with_exchanged_strides_is_named(base: Path, adapter: Path, tmp_path: Path):
    merge_shards(base, adapter, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if "_proj" in name:
            tensors[name] = tensor.t().contiguous().view(tensor.shape)
    save_file(tensors, path, {"format": "pt"})

    faults = judge(tmp_path / "model", base, "merge", adapter=adapter).faults
    assert MERGE == faults[0].root


def test_every_code_of_the_table_is_a_probe_or_the_gates_own():
    known = {one.code for one in load_probes()} | {BASE_MOVED, NO_ADAPTER}

    assert {code for codes in ROOTS.values() for code in codes} <= known
    assert {*ALWAYS, *LIVE} <= known
    assert set(PLANTS) <= set(ROOTS)
