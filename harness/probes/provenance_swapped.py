"""mudpuppy.json describes another artefact than the one it lies beside.

What it does: compares the kind, the rank and the names of the trained parameters that mudpuppy.json
records with the files of the folder.

Why it is bad: whoever merges or checks the artefact trusts the record: which base it was made from,
on which rounding its adapter was trained, what it was taught. The record of another run makes a
wrong merge look right (FM13, FM35).

Example: `kind: merged` beside an adapter of rank 8, where the record says rank 16: the files of two
outputs were copied into one folder.

What to do: copy the whole output folder of one run, and never single files of two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.facts.files import Manifest
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe

FILE = "mudpuppy.json"
_BESIDE = {
    "merged": "model",
    "model": "model",
    "adapter": "adapter",
    "gptq": "gptq",
    "int8": "int8",
}
"""What lies beside the record of each kind."""


@probe("MPD407", modes=["FM13", "FM35"], severity=Severity.HIGH)
def check(manifest: Manifest) -> Finding | str:
    """Compare the record with the files."""
    kind = manifest.value.get("kind")
    if not isinstance(kind, str) or kind not in _BESIDE or manifest.lies_beside == "nothing":
        raise NotApplicable("there is nothing that the record could be compared with")
    evidence = []
    if _BESIDE[kind] != manifest.lies_beside:
        evidence.append(
            Evidence(what="kind", file=FILE, found=kind, expected=f"that of {_a(manifest)}")
        )
    elif kind == "adapter":
        evidence = _compare_adapter(manifest)
    if not evidence:
        return f"mudpuppy.json says {kind}, and that is what lies beside it"
    first = evidence[0]
    return Finding(
        message=f"mudpuppy.json does not belong to the files beside it: it records {first.what} "
        f"{first.found}, {first.expected} lies here"
        if first.what != "kind"
        else f"mudpuppy.json records the kind '{kind}', and {_a(manifest)} lies beside it",
        evidence=tuple(evidence),
        cause="files of two outputs were copied into one folder, or one save overwrote another",
        remedy="copy the whole output folder of one run again",
    )


def _a(manifest: Manifest) -> str:
    word = manifest.lies_beside
    return {"adapter": "an adapter", "model": "a plain model"}.get(word, f"a {word} model")


def _compare_adapter(manifest: Manifest) -> list[Evidence]:
    trained = manifest.value.get("trainable")
    if not isinstance(trained, dict):
        return []
    found = []
    described = trained.get("adapter")
    recorded: Mapping[str, Any] = described if isinstance(described, dict) else {}
    for key in ("r", "lora_alpha"):
        old, new = recorded.get(key), manifest.adapter.get(key)
        if type(old) is int and type(new) is int and old != new:
            found.append(Evidence(what=key, file=FILE, found=old, expected=new))
    hashed = trained.get("names_hash")
    if manifest.names_hash and isinstance(hashed, str) and hashed != manifest.names_hash:
        what = "the names of the trained parameters (hash)"
        found.append(
            Evidence(what=what, file=FILE, found=hashed[:16], expected=manifest.names_hash)
        )
    return found
