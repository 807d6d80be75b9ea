"""adapter_config.json names another base than the one the adapter was trained on.

What it does: compares `base_model_name_or_path` with the base that mudpuppy.json recorded while
training: by fingerprint when the folder is there, otherwise by name.

Why it is bad: every loader follows adapter_config.json and puts the adapter on that model. An
adapter is a difference; on another model it is slightly to badly wrong, without a word (FM35).

Example: mudpuppy.json: `models/qwen2.5-0.5b`; adapter_config.json: `models/qwen2.5-0.5b-instruct`.

What to do: write the recorded base into `base_model_name_or_path`. If adapter_config.json is right,
mudpuppy.json belongs to another run: copy the whole output folder again.
"""

from __future__ import annotations

from harness.facts.files import Manifest
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe


@probe("MPD408", modes=["FM35"], severity=Severity.HIGH)
def check(manifest: Manifest) -> Finding | str:
    """Report two bases for one adapter."""
    recorded = manifest.value.get("base")
    if not manifest.adapter.get("base_model_name_or_path") or not isinstance(recorded, dict):
        raise NotApplicable("no two files name a base")
    if not manifest.other_base:
        return "adapter_config.json and mudpuppy.json name the same base"
    old = str(recorded.get("path") or recorded.get("name"))[:200]
    new = manifest.other_base[:200]
    return Finding(
        message=f"adapter_config.json names the base {new}, the adapter was trained on {old}",
        evidence=(
            Evidence(what="base", file="adapter_config.json", found=new),
            Evidence(what="base", file="mudpuppy.json", found=old),
        ),
        cause="adapter_config.json was edited, or files of two outputs were mixed",
        remedy="write the base that it was trained on into base_model_name_or_path of "
        "adapter_config.json",
    )
