"""A shard of the model that its index, or its numbering, promises is not there.

What it does: a large model is saved as `model-00001-of-00004.safetensors` and so on, with an index
that says which tensor lies in which file. One of the files is absent.

Why it is bad: some loaders stop; others fill the layers of the absent file with random values and
print a warning that scrolls away (FM45).

Example: `model.safetensors.index.json` names 4 shards, 3 are in the folder, after an interrupted
upload or a disk that filled up.

What to do: fetch the missing file from where the model was saved. If it exists nowhere, save again.
"""

from __future__ import annotations

import re

from harness.facts.checkpoint import Files
from harness.findings import Evidence, Finding, Severity, agree
from harness.registry import NotApplicable, probe

_PART = re.compile(r"^(.+)-(\d{5})-of-(\d{5})\.gguf$")
_NUMBERED = re.compile(r"^model-(\d{5})-of-(\d{5})\.safetensors$")


@probe("MPD103", modes=["FM45"], severity=Severity.CRITICAL)
def check(files: Files) -> Finding | str:
    """Look for every shard that the index or the numbering promises."""
    promised, named_by = _promised(files)
    absent = [name for name in promised if name not in files.names]
    if not absent:
        return f"all {len(promised)} shards are there"
    held = len(files.index.weight_map) if files.index else 0
    lost = sum(shard in absent for shard in files.index.weight_map.values()) if files.index else 0
    return Finding(
        message=f"{len(absent)} of {agree(len(promised), 'shard', 'shards')}"
        f" missing: {', '.join(absent[:3])}"
        + (f"; they hold {lost} of {held} tensors" if lost else ""),
        evidence=tuple(
            Evidence(what="absent shard", file=name, found="not there", expected=named_by)
            for name in absent
        ),
        cause="the save, the upload or the download was interrupted",
        remedy=f"fetch {absent[0]} from where the model was saved, or save the model again",
    )


def _promised(files: Files) -> tuple[list[str], str]:
    """Return the names of all shards and who promises them."""
    index = files.index
    if index is not None and index.weight_map and "model.safetensors" not in files.names:
        inside = set(index.weight_map.values()) - set(index.escaping)
        return sorted(inside), f"named in {index.name}"
    if files.is_gguf:
        return _promised_parts(files)
    if files.alone:
        raise NotApplicable("one file was given, not its folder")
    totals = [found.group(2) for name in files.names if (found := _NUMBERED.match(name))]
    if not totals or "model.safetensors" in files.names:
        raise NotApplicable("the model is not sharded")
    count = int(totals[0])
    names = [f"model-{i:05d}-of-{totals[0]}.safetensors" for i in range(1, min(count, 9999) + 1)]
    return names, f"'of {totals[0]}' in the names of the others"


def _promised_parts(files: Files) -> tuple[list[str], str]:
    """Return the names of all parts of a split GGUF model."""
    part = _PART.match(files.names[0])
    if part is None:
        raise NotApplicable("the model is one GGUF file")
    count = min(int(part[3]), 999)
    names = [f"{part[1]}-{n:05d}-of-{part[3]}.gguf" for n in range(1, count + 1)]
    return names, f"'of {part[3]}' in the names of the others"
