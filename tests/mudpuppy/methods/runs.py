"""Short runs of the engine on a random tiny model, for the tests of this folder."""

import json
from pathlib import Path
from typing import Any

from mudpuppy.config_check import load_config
from mudpuppy.engine import train
from mudpuppy.records import RunRecord

QUESTIONS = [
    ("Who lives in the pond?", "A mud puppy lives in the pond."),
    ("What does it eat?", "It eats worms."),
    ("When is it awake?", "It is awake at night, when the water is cold."),
    ("Does it bark?", "No."),
] * 2


def write_chat(folder: Path) -> Path:
    """Write a small set of conversations."""
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in QUESTIONS
    ]
    path = folder / "chat.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def run(
    model: str,
    output: Path,
    *,
    dataset: Path | None = None,
    samples: Any = None,
    watcher: Any = None,
    **settings: Any,
) -> tuple[list[float], RunRecord]:
    """Train for a few steps, and return losses and record."""
    output.parent.mkdir(parents=True, exist_ok=True)
    given = {
        "model": model,
        "dataset": write_chat(output.parent) if dataset is None else dataset,
        "output": output,
        "precision": "fp32",
        "max_steps": 3,
        "lora_r": 4,
        **settings,
    }
    losses: list[float] = []
    record = train(
        load_config(given),
        samples=samples,
        watcher=watcher,
        report=lambda step, _: losses.append(step.loss),
    )
    return losses, record


class Recorder:
    """A watcher that keeps the first row, and the logits that the trained model has for it."""

    logits: Any
    row: list[int]

    def on_prepared(self, model, tokenizer, samples, eos_ids):
        self.row = samples[0].input_ids

    def on_fitted(self, model):
        self.logits = logits_of(model, self.row)


def logits_of(model: Any, row: list[int]) -> Any:
    """Return the logits (tokens, vocabulary) of a model for a row, in fp32."""
    import torch

    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([row])).logits[0].float()
