"""An adapter for a task with a head of its own, without that head.

What it does: for classifiers, taggers and reward models looks for `score` or `classifier` in the
adapter; for every adapter, looks for the modules that `modules_to_save` promises.

Why it is bad: the base has no such head, so the loader makes a random one ("Some weights ... were
not initialized"), other numbers every time, and the scores mean nothing (FM63). A module of
modules_to_save that is not in the file stops PEFT with a KeyError or falls back to the base.

Example: `task_type: SEQ_CLS` with factors of q_proj and v_proj and nothing else: saved through a
state dict filter that kept `lora_` only.

What to do: save again with `save_pretrained()` of the PEFT model; without the run, the head is lost
and must be trained again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.facts.adapters import EMBEDDINGS, HEADS, SCORES
from harness.facts.checkpoint import Adapter
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe

TASKS = {
    "SEQ_CLS": ("score", "classifier", "classification_head"),
    "TOKEN_CLS": ("score", "classifier"),
    "QUESTION_ANS": ("qa_outputs",),
}
"""Tasks and the heads that transformers' classes for them have."""
MOST_WORDS = 100
"""Entries of modules_to_save that are followed."""
FILE = "adapter_model.safetensors"


@probe("MPD212", modes=["FM63", "FM25"], severity=Severity.CRITICAL)
def check(adapter: Adapter, base_names: frozenset[str] | None) -> Finding | str:
    """Look for the head of the task and for what modules_to_save promises."""
    if not adapter.settings or not adapter.tensors:
        raise NotApplicable("no settings of an adapter lie here")
    held = {part for key in adapter.tensors for part in key.split(".")}
    heads = TASKS.get(str(adapter.settings.get("task_type")), ())
    in_base = {_last(name) for name in base_names or ()}
    lost = [name for name in _promised(adapter.settings, base_names) if _last(name) not in held]
    if heads and not held & set(heads) and not in_base & set(heads):
        return _finding(adapter, f"the head of the task ({' or '.join(heads)})", list(heads[:1]))
    if lost:
        return _finding(adapter, f"{', '.join(lost[:3])} of modules_to_save", lost)
    return "every head that its settings promise is in the file"


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _promised(settings: Mapping[str, Any], base_names: frozenset[str] | None) -> list[str]:
    """Return the modules of modules_to_save that the model surely has."""
    saved = settings.get("modules_to_save")
    listed = saved[:MOST_WORDS] if isinstance(saved, list) else []
    words = [word for word in listed if isinstance(word, str)]
    # PEFT lists score and classifier for every classifier, which has one of them.
    known = {_last(name) for name in base_names or ()}
    words = [word for word in words if word not in SCORES or word in known]
    if base_names is None:
        return [word for word in words if _last(word) in (*HEADS, *EMBEDDINGS)]
    return [
        word
        for word in words
        if _last(word) in HEADS
        or any(name == word or name.endswith(f".{word}") for name in base_names)
    ]


def _finding(adapter: Adapter, what: str, names: list[str]) -> Finding:
    task = str(adapter.settings.get("task_type"))[:40]
    return Finding(
        message=f"{what} is not in the adapter's file ({len(adapter.tensors)} tensors, task "
        f"{task}): loaders make it anew, with random values, or stop",
        evidence=tuple(
            Evidence(what="not in the file", file=FILE, tensor=name, found="absent")
            for name in names
        ),
        cause="only the LoRA factors were saved, or the head was not in modules_to_save",
        remedy="save again with save_pretrained() of the PEFT model; without it the head must be "
        "trained again",
        severity=Severity.CRITICAL,
    )
