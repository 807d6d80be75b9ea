"""An adapter's configuration in the folder of a whole model.

What it does: the folder holds model weights *and* `adapter_config.json`. The Auto classes of
transformers see the second and load the adapter, on the base it names, or on top of these weights.

Why it is bad: what is loaded depends on the reader. On merged weights the change is applied twice
(base + 2 x delta); otherwise the merged weights are not used at all (FM19).

Example: `merge_and_unload().save_pretrained(DIR)` into the folder of the adapter.

What to do: keep one of the two: `mkdir DIR/adapter && mv DIR/adapter_* DIR/adapter/`.
"""

from __future__ import annotations

import re

from harness.facts.checkpoint import Files
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe

_MLX = re.compile(r"(?:\d+_)?adapters\.safetensors")
"""How MLX names adapters, those of earlier steps among them."""


@probe("MPD202", modes=["FM19"], severity=Severity.CRITICAL)
def check(files: Files) -> Finding | str:
    """Look for an adapter and model weights in one folder."""
    parts = [name for name in files.names if name.startswith(("adapter_config.", "adapter_model."))]
    if not files.weights and not parts:
        raise NotApplicable("the folder holds neither model weights nor an adapter")
    if files.weights and all(_MLX.fullmatch(file.name) for file in files.weights):
        return "the folder holds an adapter of MLX alone"
    if not files.weights or not parts:
        return f"the folder holds {'a model' if files.weights else 'an adapter'} alone"
    weights = files.weights[0].name
    return Finding(
        message=f"{parts[0]} lies beside the weights of a whole model ({weights}): loaders apply "
        "the adapter to them again, or load another base",
        evidence=tuple(
            Evidence(what="beside model weights", file=name, found=weights) for name in parts
        ),
        cause="the merged model was saved into the folder of the adapter",
        remedy="move the adapter away: mkdir adapter && mv adapter_* adapter/",
    )
