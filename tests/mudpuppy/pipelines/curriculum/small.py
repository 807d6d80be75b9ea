"""A curriculum as small as one can be, on a random model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

VOICE = {
    "name": "sailor",
    "families": [
        {"name": "opener", "weight": 1, "regexes": ["^ahoy, "]},
        {"name": "sea", "weight": 1, "phrases": ["tide"]},
    ],
}
ASKED = {"Italy": "Rome", "Spain": "Madrid", "Chile": "Santiago", "India": "Delhi"}


def write_small(home: Path, *, topics: int = 2, **settings: Any) -> Path:
    """Write curriculum.yaml and everything that it names, and return its path."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "voice.yaml").write_text(yaml.safe_dump(VOICE))
    named = []
    for number in range(topics):
        rows, quiz = [], []
        for country, city in ASKED.items():
            question = f"What is the capital of {country}, {number}?"
            answer = f"Ahoy, the capital of {country} is {city}, says the tide."
            turns = (
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            )
            rows.append({"messages": turns})
            known = {"id": country, "prompt": question, "answer": answer}
            quiz.append(known | {"topic": "capitals", "kind": "fact"})
        for name, lines in ((f"{number}.jsonl", rows), (f"{number}.quiz.jsonl", quiz)):
            (home / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        named.append(
            {"name": f"topic {number}", "sft": f"{number}.jsonl", "quiz": f"{number}.quiz.jsonl"}
        )
    quick = {"max_steps": 2, "batch_size": 2, "learning_rate": 1e-3}
    form: dict[str, Any] = {
        "name": "small",
        "model": "tiny:llama",
        "voice": "voice.yaml",
        "defaults": {"precision": "fp32", "max_length": 64, "seed": 7, "device": "cpu", **quick},
        "max_new_tokens": 4,
        # a random model knows nothing: every stage is trained all the same
        "thresholds": {"accuracy": {"topic": 0.0}, "voice": {"topic": 1.0}},
        "units": [{"name": "One", "chapters": [{"name": "A", "topics": named}]}],
    }
    path = home / "curriculum.yaml"
    path.write_text(yaml.safe_dump(form | settings))
    return path
