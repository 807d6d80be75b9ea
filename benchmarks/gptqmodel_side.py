"""GPTQModel's side of the GPTQ rows, run by an interpreter that has it: nothing of ours in it.

python gptqmodel_side.py MODEL ROWS.json OUTPUT BITS GROUP_SIZE DESC_ACT
python gptqmodel_side.py open FOLDER ROWS.json LOGITS.npz KIND     (KIND: gptqmodel, transformers)
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main(words: Sequence[str]) -> None:
    """Quantise or open, and print a line of JSON."""
    if words[0] == "open":
        open_folder(*words[1:])
        return
    model, rows, output, bits, group_size, desc_act = words
    samples = json.loads(Path(rows).read_text(encoding="utf-8"))
    seconds: dict[str, float] = {}
    for _ in range(2):  # the first round compiles its packing kernel
        shutil.rmtree(output, ignore_errors=True)
        seconds = quantise(model, samples, output, int(bits), int(group_size), bool(int(desc_act)))
    print(json.dumps(seconds))


def quantise(
    model: str,
    samples: list[list[int]],
    output: str,
    bits: int,
    group_size: int,
    desc_act: bool,
) -> dict[str, float]:
    """Quantise as its documentation shows, and return the seconds without loading and saving."""
    package: Any = importlib.import_module("gptqmodel")
    settings = package.QuantizeConfig(bits=bits, group_size=group_size, desc_act=desc_act)
    loaded = package.GPTQModel.load(model, settings, device="cpu", dtype="float32")
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in samples]
    wall, cpu = time.perf_counter(), time.process_time()
    loaded.quantize(rows, batch_size=1)
    seconds = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    loaded.save(output)
    return seconds


def open_folder(folder: str, rows: str, output: str, kind: str) -> None:
    """Open a GPTQ folder by another loader, and keep logits and dequantised weights."""
    import numpy as np
    import torch

    samples = json.loads(Path(rows).read_text(encoding="utf-8"))
    if kind == "gptqmodel":
        package: Any = importlib.import_module("gptqmodel")
        words = {"backend": package.BACKEND.TORCH, "device": "cpu", "dtype": torch.float16}
        model = package.GPTQModel.load(folder, **words).model
    else:
        transformers: Any = importlib.import_module("transformers")
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, device_map="cpu")
    found: dict[str, Any] = {}
    with torch.no_grad():
        for number, row in enumerate(samples):
            logits = model(input_ids=torch.tensor([row])).logits
            found[f"logits.{number}"] = logits.float().numpy()
        for name, module in model.named_modules():
            if hasattr(module, "dequantize_weight"):
                found[f"weight.{name}"] = module.dequantize_weight().T.float().numpy()
    np.savez(output, **found)
    print(json.dumps({"layers": sum(name.startswith("weight.") for name in found)}))


if __name__ == "__main__":
    main(sys.argv[1:])
