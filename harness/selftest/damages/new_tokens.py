"""Damages of added tokens: rows that were made and never trained."""

from __future__ import annotations

from typing import Any

from harness.selftest.edit import edit_tensors
from harness.selftest.registry import Patient, damage

TABLES = ("model.embed_tokens.weight", "lm_head.weight")
TRAINED = "tokens-added-and-trained"


def _set_rows(patient: Patient, make: Any) -> None:
    def change(tensors: dict[str, Any]) -> None:
        for key in TABLES:
            tensors[key][-2:] = make(tensors[key])

    edit_tensors(patient.path, change)


@damage("tokens-left-at-mean", patient=TRAINED, mode="FM29", probe="added-tokens-untrained")
def leave_mean(patient: Patient) -> None:
    """Leave the new rows as `resize_token_embeddings` makes them."""
    import torch

    torch.manual_seed(7)

    def make(table: Any) -> Any:
        noise = torch.randn_like(table[-2:]) * 3e-5 * table.std()
        return table[:-2].mean(0) + noise

    _set_rows(patient, make)


@damage("tokens-left-at-zero", patient=TRAINED, mode="FM29", probe="added-tokens-untrained")
def leave_zero(patient: Patient) -> None:
    """Leave the new rows at zero."""
    _set_rows(patient, lambda table: table[-2:] * 0)


@damage("tokens-left-alike", patient=TRAINED, mode="FM29", probe="added-tokens-untrained")
def leave_alike(patient: Patient) -> None:
    """Give all new tokens the one row that an older script makes."""
    _set_rows(patient, lambda table: table[5] * 0.7 + table[9] * 0.2)


@damage(
    "tokens-zero-without-base", patient="chat-thinking", mode="FM29", probe="added-tokens-untrained"
)
def leave_marker(patient: Patient) -> None:
    """Leave the rows of the markers that the template writes at the mean, with no base to ask."""
    import json

    ids = {
        one["content"]: one["id"]
        for one in json.loads((patient.path / "tokenizer.json").read_text())["added_tokens"]
    }
    template = (patient.path / "chat_template.jinja").read_text()
    rows = [number for text, number in ids.items() if text in template]

    def change(tensors: dict[str, Any]) -> None:
        for key in TABLES:
            if key in tensors:
                tensors[key][rows] = tensors[key].mean(0)

    edit_tensors(patient.path, change)
