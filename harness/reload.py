"""Reopen a cell's artefacts in a fresh process and compare their logits with the trained model's.

    python -m harness.reload CELL_DIR

Adapters are opened by plain PEFT and models by plain transformers; only 4-bit bases and GPTQ
folders need the engine's own loaders. Writes CELL_DIR/reload.json and CELL_DIR/behaviour.json.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from harness.evidence.behaviour import BEHAVIOUR_FILE, find_file, measure_behaviour, to_json
from harness.observations import Comparison
from harness.watcher import REFERENCE_FILE, compute_logits, read_reference
from mudpuppy.files import write_json_atomic
from mudpuppy.loading import load_tokenizer
from mudpuppy.provenance import read_provenance
from mudpuppy.quant.gptq_files import load_gptq
from mudpuppy.quant.int4 import replace_linears

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SAME_WEIGHTS = 1e-4
"""Largest logit difference relative to the largest logit where nothing was rounded: an adapter is
saved in fp32 beside the same base. On a CPU it is 0; a GPU may sum in another order."""
ROUNDED_WEIGHTS = {"fp32": SAME_WEIGHTS, "bf16": 0.03, "fp16": 0.005}
"""The same where master or merged weights were rounded once to 8 or 11 significant bits."""


def main(argv: list[str] | None = None) -> int:
    """Compare every artefact below CELL_DIR/checkpoint and measure the behaviour of the last."""
    (folder_name,) = sys.argv[1:] if argv is None else argv
    folder = Path(folder_name)
    artefact = folder / "checkpoint"
    provenance = read_provenance(artefact)
    if provenance is None:
        print(f"{artefact}: no mudpuppy.json, so the artefact is not complete", file=sys.stderr)
        return 1
    rows, reference = read_reference(folder / REFERENCE_FILE)
    base = provenance["base"]["path"]
    untouched = compute_logits(_load(base, torch.float32), rows)
    comparisons = []
    opened = _open_all(artefact, provenance)
    for name, loader, model in opened:
        logits = compute_logits(model, rows)
        comparisons.append(
            Comparison(
                artefact=name,
                loader=loader,
                max_difference=_max_difference(logits, reference),
                scale=max(float(np.abs(r).max()) for r in reference),
                effect=_max_difference(logits, untouched),
                tolerance=_tolerance(name, provenance["precision"]),
            )
        )
        print(f"reloaded {name} with {loader}: {comparisons[-1].relative:.2e} off", flush=True)
    write_json_atomic(folder / "reload.json", [asdict(item) for item in comparisons])
    name, _, model = opened[-1]
    subject = artefact if name in ("adapter", "model") else artefact / name
    _measure(folder, subject, Path(base), model)
    return 0


def _measure(folder: Path, subject: Path, base: Path, model: Any) -> None:
    """Ask the artefact and its base the base's own quiz, and keep the answers for the probes."""
    facts = measure_behaviour(
        subject,
        base,
        find_file("quiz.jsonl", base),
        find_file("voice.yaml", base),
        model=model,
        tokenizer=load_tokenizer(str(base)),
    )
    write_json_atomic(folder / BEHAVIOUR_FILE, to_json(facts))


def _tolerance(artefact: str, precision: str) -> float:
    """Return what may lie between the trained model and the saved artefact."""
    is_rounded = artefact in ("model", "merged")
    return ROUNDED_WEIGHTS[precision] if is_rounded else SAME_WEIGHTS


def _open_all(artefact: Path, provenance: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """Return every artefact with the name of the library that opened it."""
    dtype = DTYPES[provenance["precision"]]
    kind, base = provenance["kind"], provenance["base"]["path"]
    if kind == "gptq":
        return [("gptq", "mudpuppy.quant.gptq", load_gptq(artefact / "gptq", torch.float32))]
    if kind == "model":
        return [("model", "transformers", _load(str(artefact), dtype))]
    model, loader = _load(base, dtype), "peft"
    if provenance["quantisation"]:
        block_size = provenance["quantisation"]["block_size"]
        replace_linears(model, block_size=block_size, compute_dtype=dtype)
        loader = "peft on mudpuppy.quant.int4"
    opened = [("adapter", loader, PeftModel.from_pretrained(model, str(artefact)))]
    if (artefact / "merged").is_dir():
        opened.append(("merged", "transformers", _load(str(artefact / "merged"), dtype)))
    return opened


def _load(path: str, dtype: torch.dtype) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, use_safetensors=True)


def _max_difference(left: list[Any], right: list[Any]) -> float:
    """Return the largest absolute difference; infinite when a logit is not a number."""
    largest = max(float(np.abs(a - b).max()) for a, b in zip(left, right, strict=True))
    return largest if np.isfinite(largest) else float(np.finfo(np.float32).max)


if __name__ == "__main__":
    raise SystemExit(main())
