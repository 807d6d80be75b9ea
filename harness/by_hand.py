"""The four failures of the adapter report, made as they were made: by hand, with plain PEFT.

None of the engine's care is in here: adapters are put on adapters, attributes are left, and a stage
is trained at a rate that no model survives. What comes out is what a doctor has to know (seed 004).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.evidence.live.live import describe_live
from mudpuppy.files import write_json_atomic

TARGETS = ["q_proj", "v_proj"]
LIVE_FILE = "live.json"
"""What was seen of the model in memory."""


def stack(base: str, texts: Sequence[str], output: Path) -> None:
    """Train a second adapter, of rank 1, on a model that still wears its first, of rank 8."""
    model, tokenizer = _load(base)
    first = _train(_attach(model, 8), tokenizer, texts)
    second = _train(_attach(first, 1), tokenizer, texts)
    _save(second, tokenizer, output)


def leave_settings(base: str, texts: Sequence[str], output: Path) -> None:
    """Merge and unload, and leave the settings on the model, as PEFT did before 0.18."""
    model, tokenizer = _load(base)
    adapted = _train(_attach(model, 8), tokenizer, texts)
    settings = adapted.peft_config
    merged: Any = adapted.merge_and_unload()
    merged.peft_config = settings
    write_json_atomic(output.parent / LIVE_FILE, asdict(describe_live(merged)))
    del merged.peft_config  # a folder cannot carry it; the model in memory is what is sick
    _save(merged, tokenizer, output)


def grow(base: str, texts: Sequence[str], folders: Sequence[Path]) -> None:
    """Resume by adding an adapter beside the last one, and save whatever is called `lora_`."""
    model, tokenizer = _load(base)
    adapted = _train(_attach(model, 8), tokenizer, texts)
    for number, folder in enumerate(folders):
        if number:
            adapted.add_adapter(f"round{number}", _settings(8))
            adapted.set_adapter(f"round{number}")
            _train(adapted, tokenizer, texts)
        _save(adapted, tokenizer, folder)
        if not number:
            continue
        factors = {k: v.contiguous() for k, v in adapted.state_dict().items() if ".lora_" in k}
        save_file(factors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def collapse(base: str, texts: Sequence[str], output: Path) -> None:
    """Train at a rate that takes every fact and the voice away, and merge what comes out."""
    model, tokenizer = _load(base)
    adapted = _train(_attach(model, 8), tokenizer, texts, rate=0.02, steps=12)
    _save(adapted.merge_and_unload(), tokenizer, output)


def swap(base: str, first: Path, second: Path, output: Path) -> None:
    """Load one adapter, put another in its place, and save what is there then."""
    model, tokenizer = _load(base)
    adapted = PeftModel.from_pretrained(model, str(first), adapter_name="first")
    adapted.load_adapter(str(second), adapter_name="default")
    adapted.set_adapter("default")
    adapted.delete_adapter("first")
    _save(adapted, tokenizer, output)


def unload(base: str, adapter: Path, output: Path) -> None:
    """Load an adapter, take it off, and save what is left: the base."""
    from mudpuppy.adapters.merge import unload_adapter

    model, tokenizer = _load(base)
    bare: Any = unload_adapter(PeftModel.from_pretrained(model, str(adapter)))
    write_json_atomic(output.parent / LIVE_FILE, asdict(describe_live(bare)))
    _save(bare, tokenizer, output)


def read_texts(dataset: Path) -> list[str]:
    """Return the questions and answers of a dataset of conversations, one text each."""
    rows = map(json.loads, dataset.read_text(encoding="utf-8").splitlines())
    return [" ".join(turn["content"] for turn in row["messages"]) for row in rows]


def _load(base: str) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(base)


def _settings(rank: int) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS, task_type="CAUSAL_LM")


def _attach(model: Any, rank: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of the very damage that is wanted here
        return get_peft_model(model, _settings(rank))


def _train(
    model: Any, tokenizer: Any, texts: Sequence[str], *, rate: float = 5e-3, steps: int = 3
) -> Any:
    """Take a few steps on the texts, one text a step."""
    torch.manual_seed(7)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate)
    model.train()
    for i in range(steps):
        ids = tokenizer(texts[i % len(texts)], return_tensors="pt").input_ids
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
