"""Short runs with a twin beside them, in this process, for the tests of this folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.findings import Status
from harness.observations import Observations
from harness.observations_twin import TwinFacts
from harness.registry import Missing, load_probes, run_probe
from harness.twin.asked import Asked
from harness.twin.recording import recording
from harness.twin.replay import replay
from mudpuppy.config import TrainingConfig
from mudpuppy.config_check import load_config
from mudpuppy.engine import train
from mudpuppy.tiny import resolve_model

DATA = Path(__file__).parents[3] / "scenarios/data"
FILES = {
    **dict.fromkeys(("dpo", "ipo", "orpo", "rm"), "preferences.jsonl"),
    "kto": "labelled.jsonl",
    "grpo": "prompts.jsonl",
    "prm": "steps.jsonl",
    "multimodal": "pictures.jsonl",
}
PROBES = [probe for probe in load_probes() if "MPD722" <= probe.code <= "MPD729"]


def make_config(folder: Path, method: str, rows: int = 8, **settings: Any) -> TrainingConfig:
    """Return the settings of a run of two steps on the first rows of the scenarios' data."""
    source = DATA / FILES.get(method, "new_facts.jsonl")
    dataset = folder / "data.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    lines = source.read_text("utf-8").splitlines()[:rows]
    if method == "multimodal":
        records = [json.loads(line) for line in lines]
        for record in records:
            record["images"] = [str(DATA / image) for image in record["images"]]
        lines = [json.dumps(record) for record in records]
    dataset.write_text("\n".join(lines))
    given = {
        "model": "tiny:llava" if method == "multimodal" else "tiny:llama",
        "dataset": dataset,
        "output": folder / "checkpoint",
        "method": method,
        "precision": "fp32",
        "max_steps": 2,
        "batch_size": 4,
        "learning_rate": 5e-3,
        "lora_r": 4,
        "max_length": 128,
        "seed": 7,
    }
    if method == "grpo":
        given |= {"reward_funcs": ["length"], "max_completion_length": 8}
    return load_config({**given, **settings})


def run(folder: Path, method: str, **settings: Any) -> TwinFacts:
    """Train, replay, and return what the twin found."""
    config = make_config(folder, method, **settings)
    with recording(folder):
        train(config, records_dir=folder)
    asked = Asked(settings=config.model_dump(mode="json", exclude={"output"}))
    return replay(asked, resolve_model(config.model), folder)


class _Source:
    def __init__(self, evidence: dict[str, Any]) -> None:
        self._evidence = evidence

    def get(self, name: str) -> Any:
        """Return evidence that was given."""
        if name not in self._evidence:
            raise Missing(f"no {name}")
        return self._evidence[name]


def findings(twin: TwinFacts) -> dict[str, str]:
    """Return the message of every probe of the twin that failed, by code."""
    seen = Observations(ending="trained", twin=twin)
    source = _Source({"observations": seen, "expectation": {"config": {}}})
    results = [run_probe(probe, source) for probe in PROBES]
    assert not [r for r in results if r.status is Status.CRASHED]
    return {r.code: r.message for r in results if r.status is Status.FAILED}
