"""An adapter's settings without its weights.

What it does: looks for adapter_model.safetensors beside adapter_config.json.

Why it is bad: there is nothing to load. PEFT stops with "Can't find 'adapter_model.safetensors'",
or looks for the weights on a model hub (FM24).

Example: adapter_config.json and README.md were downloaded, the large file was not.

What to do: copy adapter_model.safetensors from where the adapter was trained.
"""

from __future__ import annotations

from harness.facts.checkpoint import Files
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe


@probe("MPD110", modes=["FM24"], severity=Severity.CRITICAL)
def check(files: Files) -> Finding | str:
    """Report adapter settings that have no weights beside them."""
    if "adapter_config.json" not in files.names:
        raise NotApplicable("the folder has no adapter_config.json")
    if files.weights and not files.adapter:
        raise NotApplicable("a whole model lies here; adapter-beside-merged-weights looks at that")
    if any(name.endswith("adapters.safetensors") for name in files.names):
        raise NotApplicable("the adapter is MLX's, which keeps its weights in adapters.safetensors")
    if files.adapter:
        return f"{files.adapter[0].name} is there"
    return Finding(
        message="adapter_config.json is there and the adapter's weights are not",
        evidence=(Evidence(what="weights", file="adapter_model.safetensors", found="absent"),),
        cause="the save or the copy was interrupted",
        remedy="copy adapter_model.safetensors from where the adapter was trained",
    )
