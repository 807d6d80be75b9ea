"""Model weights without a config.json.

What it does: looks for config.json beside weights of the names that transformers writes.

Why it is bad: the weights do not say what model they are. transformers refuses the folder with
"Unrecognized model"; tools that guess build another architecture (FM46).

Example: model.safetensors was copied by hand, and nothing else.

What to do: copy config.json (with generation_config.json and the tokenizer's files) from the base
model or from another checkpoint of the same run.
"""

from __future__ import annotations

import re

from harness.facts.checkpoint import Files
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe

_STANDARD = re.compile(r"^(model|pytorch_model)(-\d{5}-of-\d{5})?\.safetensors$")


@probe("MPD109", modes=["FM46"], severity=Severity.CRITICAL)
def check(files: Files) -> Finding | str:
    """Report standard weights without their settings."""
    standard = [file.name for file in files.weights if _STANDARD.match(file.name)]
    if files.alone:
        raise NotApplicable("one file was given, and nothing is known of what lies beside it")
    if not standard or files.adapter:
        raise NotApplicable("no model weights of a standard name are here")
    if "config.json" in files.names:
        return "config.json is there"
    return Finding(
        message=f"{standard[0]} is there and config.json is not: no reader can tell what model "
        "it is",
        evidence=(Evidence(what="settings", file="config.json", found="absent"),),
        cause="the weights were copied without their settings, or the save was interrupted",
        remedy="copy config.json from the base model or another checkpoint of the same run",
    )
