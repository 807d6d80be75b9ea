"""What this project's own engine leaves, run as a person runs it: every method, short."""

from __future__ import annotations

import json
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from shutil import copytree

from harness.selftest.registry import Patient, Ward, healthy
from mudpuppy.errors import EngineError

DATA = Path(__file__).resolve().parents[3] / "scenarios/data"
FILES = {
    **dict.fromkeys(("dpo", "ipo", "orpo", "rm"), "preferences.jsonl"),
    "kto": "labelled.jsonl",
    "grpo": "prompts.jsonl",
    "prm": "steps.jsonl",
    "multimodal": "pictures.jsonl",
}
REWARD = "harness.selftest.make:reward_variety"
"""A reward that differs between answers: a random model never ends one, so `length` would not."""
RUNS: dict[str, str] = {
    "full": "--method full",
    "full-bf16": "--method full --precision bf16",
    "full-checkpoints": "--method full --save-steps 1",
    "lora": "--method lora",
    "lora-merged": "--method lora --merge-lora",
    "lora-merged-bf16": "--method lora --merge-lora --precision bf16",
    "lora-checkpoints": "--method lora --save-steps 1 --merge-lora",
    "dora": "--method lora --use-dora --merge-lora",
    "rslora": "--method lora --use-rslora",
    "packing": "--method lora --packing",
    "qlora": "--method qlora",
    "qlora-merged": "--method qlora --merge-lora",
    "gptq": "--method gptq --gptq-group-size 32",
    "qat": "--method qat",
    "qat-far": "--method qat --learning-rate 2e-2",
    "streaming": "--method full --stream",
    "dpo": "--method dpo",
    "ipo": "--method ipo",
    "kto": "--method kto",
    "orpo": "--method orpo",
    "grpo": f"--method grpo --reward-funcs {REWARD} --max-completion-length 8",
    "reward": "--method rm",
    "process-reward": "--method prm",
    "multimodal": "--method multimodal",
}
"""What is typed, by the name of the run."""


def run_engine(ward: Ward, *, words: str) -> Patient:
    """Train two steps on the first rows of the scenarios' data, through the command itself."""
    from mudpuppy.cli import main

    asked = words.split()
    method = asked[1]
    if "--precision" not in asked:
        asked += ["--precision", "fp32"]
    if method != "gptq":
        asked += ["--max-steps", "2", "--batch-size", "4"]
        asked += [] if "--learning-rate" in asked else ["--learning-rate", "2e-3"]
    if "lora" in method or method in FILES:
        asked += ["--lora-r", "4"]
    model = "tiny:llava" if method == "multimodal" else "tiny:llama"
    output = ward.folder / "out"
    given = [model, str(write_rows(ward.folder, method)), *asked, "--output", str(output)]
    said = StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = main(given)
    if code:
        raise EngineError(
            f"mud-puppy {' '.join(given)} ended with {code}: {said.getvalue()[-600:]}"
        )
    return Patient(path=output)


def write_rows(folder: Path, method: str, rows: int = 8) -> Path:
    """Write the first rows that a method is fed with, pictures named by their whole path."""
    source = DATA / FILES.get(method, "new_facts.jsonl")
    lines = source.read_text(encoding="utf-8").splitlines()[:rows]
    if method == "multimodal":
        records = [json.loads(line) for line in lines]
        for record in records:
            record["images"] = [str(DATA / image) for image in record["images"]]
        lines = [json.dumps(record) for record in records]
    target = folder / "data.jsonl"
    target.write_text("\n".join(lines), encoding="utf-8")
    return target


for _name, _words in RUNS.items():
    _notes = ("adapter-scale-unportable",) if "dora" in _words or "rslora" in _words else ()
    healthy(f"engine-{_name}", notes=_notes)(partial(run_engine, words=_words))


@healthy("engine-int8-of-its-model")
def give_int8_alone(ward: Ward) -> Patient:
    """Take the int8 form of a run that trained far, with the run's own model as its base."""
    output = ward.folder / "out"
    copytree(ward.get("engine-qat-far").path, output)
    return Patient(path=output / "int8", options={"base": output})


@healthy("engine-int8")
def save_int8(ward: Ward) -> Patient:
    """Save the int8 form of a model beside the model itself."""
    import torch

    from harness.selftest.make import load_model
    from mudpuppy.quant.int8 import quantise_weights, save_int8

    model = load_model(ward.get("transformers-llama").path)
    model.save_pretrained(ward.folder)
    save_int8(model, None, ward.folder / "int8", quantise_weights(model), torch.bfloat16)
    return Patient(path=ward.folder)
