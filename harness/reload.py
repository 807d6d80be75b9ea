"""Reopen a cell's artefacts in a fresh process and compare their logits with the trained model's.

    python -m harness.reload CELL_DIR

Adapters are opened by plain PEFT and models by plain transformers; only 4-bit bases and GPTQ
folders need the engine's own loaders. Writes CELL_DIR/reload.json and CELL_DIR/behaviour.json.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
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
from mudpuppy.loading import load_tokenizer, with_pad_token
from mudpuppy.provenance import read_provenance
from mudpuppy.quant.gptq_files import load_gptq
from mudpuppy.quant.int4 import replace_linears
from mudpuppy.runtime import DTYPES

Control = Callable[[Any], AbstractContextManager[Any]]
"""Gives the model that an artefact must differ from: its base, loaded and computed the same way."""
SAME_WEIGHTS = 1e-4
"""Largest logit difference relative to the largest logit where nothing was rounded and the sums are
made in the same order: an adapter or a packed model, on a CPU (measured: 0)."""
ROUNDED_WEIGHTS = {"fp32": SAME_WEIGHTS, "bf16": 0.03, "fp16": 0.005}
"""The same where master or merged weights were rounded once to 8 or 11 significant bits, or where a
GPU may sum in another order (measured for another order: 6e-3 in bf16, 8e-4 in fp16)."""


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
    scale = max(float(np.abs(logits).max()) for logits in reference)
    comparisons = []
    opened = _open_all(artefact, provenance)
    for name, loader, model, control in opened:
        logits = compute_logits(model, rows)
        with control(model) as untouched:
            effect = _max_difference(logits, compute_logits(untouched, rows))
        comparisons.append(
            Comparison(
                artefact=name,
                loader=loader,
                max_difference=_max_difference(logits, reference),
                scale=scale,
                effect=effect,
                tolerance=_tolerance(name, provenance),
            )
        )
        print(f"reloaded {name} with {loader}: {comparisons[-1].relative:.2e} off", flush=True)
    write_json_atomic(folder / "reload.json", [asdict(item) for item in comparisons])
    name, _, model, _ = opened[-1]
    subject = artefact if name in ("adapter", "model") else artefact / name
    _measure(folder, subject, Path(provenance["base"]["path"]), model)
    return 0


def _measure(folder: Path, subject: Path, base: Path, model: Any) -> None:
    """Ask the artefact and its base the base's own quiz, and keep the answers for the probes."""
    facts = measure_behaviour(
        subject,
        base,
        find_file("quiz.jsonl", base),
        find_file("voice.yaml", base),
        model=model,
        tokenizer=with_pad_token(load_tokenizer(str(base))),
    )
    write_json_atomic(folder / BEHAVIOUR_FILE, to_json(facts))


def _tolerance(artefact: str, provenance: dict[str, Any]) -> float:
    """Return what may lie between the trained model and the saved artefact."""
    is_rounded = artefact in ("model", "merged") or _device(provenance) != "cpu"
    return ROUNDED_WEIGHTS[provenance["precision"]] if is_rounded else SAME_WEIGHTS


def _open_all(artefact: Path, provenance: dict[str, Any]) -> list[tuple[str, str, Any, Control]]:
    """Return every artefact, the library that opened it, and its control: the same without it."""
    dtype = DTYPES[provenance["precision"]]
    kind, base = provenance["kind"], provenance["base"]["path"]

    @contextmanager
    def untouched(model: Any) -> Iterator[Any]:
        del model
        yield _load(base, dtype, provenance)

    if kind == "gptq":
        packed = load_gptq(artefact / "gptq", dtype).to(_device(provenance))
        return [("gptq", "mudpuppy.quant.gptq", packed, untouched)]
    if kind == "model":
        model = _load(str(artefact), dtype, provenance)
        return [("model", "transformers", model, untouched)]
    model, loader = _load(base, dtype, provenance), "peft"
    if provenance["quantisation"]:
        block_size = provenance["quantisation"]["block_size"]
        replace_linears(model, block_size=block_size, compute_dtype=dtype)
        loader = "peft on mudpuppy.quant.int4"
    adapted = PeftModel.from_pretrained(model, str(artefact))
    opened: list[tuple[str, str, Any, Control]] = [("adapter", loader, adapted, _without_adapter)]
    if (artefact / "merged").is_dir():
        merged = _load(str(artefact / "merged"), dtype, provenance)
        opened.append(("merged", "transformers", merged, untouched))
    return opened


@contextmanager
def _without_adapter(model: Any) -> Iterator[Any]:
    """Yield the very same base with its adapter switched off."""
    with model.disable_adapter():
        yield model


def _device(provenance: dict[str, Any]) -> str:
    """Return the device the run computed on, so that the comparison does the same."""
    return str(provenance["run"]["choices"]["device"]["value"])


def _load(path: str, dtype: torch.dtype, provenance: dict[str, Any]) -> Any:
    model = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=provenance["config"]["trust_remote_code"],
    )
    return model.to(_device(provenance))


def _max_difference(left: list[Any], right: list[Any]) -> float:
    """Return the largest absolute difference; infinite when a logit is not a number."""
    largest = max(float(np.abs(a - b).max()) for a, b in zip(left, right, strict=True))
    return largest if np.isfinite(largest) else float(np.finfo(np.float32).max)


if __name__ == "__main__":
    raise SystemExit(main())
