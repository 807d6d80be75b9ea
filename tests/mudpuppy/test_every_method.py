"""One representative of every accepted method x precision: it trains, saves, and opens elsewhere.

The full product with all features is the pressure matrix's; this is its diagonal.
"""

import json
from pathlib import Path

import pytest
import torch
import transformers
from peft import PeftModel
from PIL import Image

from mudpuppy.config_check import load_config
from mudpuppy.engine import train
from mudpuppy.features import METHODS, PRECISIONS
from mudpuppy.methods.family import find_family
from mudpuppy.provenance import read_provenance
from mudpuppy.quant.formats import FORMATS
from mudpuppy.quant.gptq import load_gptq
from mudpuppy.quant.int8 import load_int8
from mudpuppy.quant.linear4bit import replace_linears
from mudpuppy.rules import decide
from mudpuppy.runtime import DTYPES
from mudpuppy.tiny import resolve_model

ACCEPTED = [(m, p) for m in METHODS for p in PRECISIONS if decide(m, p).accepted]
TOLERANCE = {"fp32": 1e-5, "bf16": 3e-2, "fp16": 5e-3, "fp8": 0.15}
"""Difference of the logits, relative to the largest: what is saved was rounded once.

In fp8 the trained model was asked with products in fp8, and what is saved multiplies in bf16."""

ANSWERS = ["In the pond.", "Worms, mostly.", "At night, when it is cold.", "No.", "Gills."]
QUESTIONS = ["Where?", "What does it eat?", "When is it awake?", "Does it bark?", "How?"]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def rows_of(method: str, folder: Path) -> list[dict]:
    """Return a few records of the kind that the method learns from."""
    pairs = list(zip(QUESTIONS, ANSWERS, strict=True))
    if method in ("dpo", "ipo", "orpo", "rm"):
        return [
            {"prompt": [user(q)], "chosen": [assistant(a)], "rejected": [assistant("I bark.")]}
            for q, a in pairs
        ]
    if method == "kto":
        return [
            {"prompt": [user(q)], "completion": [assistant(a)], "label": i % 2 == 0}
            for i, (q, a) in enumerate(pairs)
        ]
    if method == "grpo":
        return [{"prompt": [user(q)], "answer": a} for q, a in pairs]
    if method == "prm":
        return [
            {"prompt": q, "completions": ["First, look.", a], "labels": [True, i % 2 == 0]}
            for i, (q, a) in enumerate(pairs)
        ]
    if method == "multimodal":
        picture = folder / "pond.png"
        Image.new("RGB", (28, 28), (10, 90, 60)).save(picture)
        seen = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
        return [
            {"images": ["pond.png"], "messages": [{"role": "user", "content": seen}, assistant(a)]}
            for a in ANSWERS
        ]
    return [{"messages": [user(q), assistant(a)]} for q, a in pairs]


class Recorder:
    """Keeps what the trained model says to one row."""

    def on_prepared(self, model, tokenizer, samples, eos_ids):
        del model, tokenizer, eos_ids
        self.row = samples[0].input_ids

    def on_fitted(self, model):
        self.logits = logits_of(model, self.row)


@torch.no_grad()
def logits_of(model, row):
    mixed = any("modules_to_save" in name for name, _ in model.named_parameters())
    is_half = model.dtype != torch.float32
    with torch.autocast("cpu", model.dtype, enabled=mixed and is_half):  # a head trains in fp32
        return model.eval()(input_ids=torch.tensor([row])).logits[0].float()


def reopen(config, folder: Path, base: str):
    """Open the artefact by other people's code, as its method says."""
    form = find_family(config.method).form
    kind = getattr(transformers, form.auto_class)
    dtype = DTYPES[config.precision]
    if config.method == "gptq":
        return load_gptq(folder / "gptq", dtype)
    if config.method == "qat":
        return load_int8(folder / "int8").to(dtype)
    if not config.trains_adapter:
        return kind.from_pretrained(folder, dtype=dtype)
    model = kind.from_pretrained(base, dtype=dtype, **form.settings)
    if config.method == "qlora":
        replace_linears(
            model,
            FORMATS[config.resolved_quant],
            block_size=config.resolved_quant_block_size,
            compute_dtype=dtype,
        )
    return PeftModel.from_pretrained(model, str(folder))


@pytest.mark.parametrize(("method", "precision"), ACCEPTED)
def test_it_trains_saves_and_opens_elsewhere(method: str, precision: str, tmp_path: Path):
    base = resolve_model("tiny:llava" if method == "multimodal" else "tiny:llama")
    dataset = tmp_path / "data.jsonl"
    dataset.write_text("\n".join(map(json.dumps, rows_of(method, tmp_path) * 2)))
    settings = {"reward_funcs": ["length"], "max_completion_length": 8} if method == "grpo" else {}
    if method == "gptq":
        settings = {"gptq_group_size": 32}
    config = load_config(
        {
            "model": base,
            "dataset": dataset,
            "output": tmp_path / "out",
            "method": method,
            "precision": precision,
            "max_steps": 3,
            "batch_size": 4,
            "lora_r": 4,
            "learning_rate": 1e-2 if method != "full" else 1e-3,
            **settings,
        }
    )
    seen = Recorder()
    record = train(config, watcher=seen)

    assert record.choices["precision"].value == precision
    assert record.steps == (0 if method == "gptq" else 3)
    assert read_provenance(tmp_path / "out")["method"] == method
    again = logits_of(reopen(config, tmp_path / "out", base), seen.row)
    bound = TOLERANCE[precision] * seen.logits.abs().max()
    assert float((again - seen.logits).abs().max()) <= bound
