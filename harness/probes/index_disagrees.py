"""The shard index and the shards do not say the same.

What it does: `model.safetensors.index.json` maps each tensor to a shard. It names tensors that the
shard does not hold, leaves out tensors that are there, or points out of the folder.

Why it is bad: loaders follow the index. A tensor it leaves out is replaced by random values, and
one that moved is not found (FM45). A path that leads out of the folder may be an attack.

Example: a model saved again with fewer shards into the same folder, with the index of the first
save left behind; or three tensors lost when a script merged two indexes.

What to do: save the model again into an empty folder with `save_pretrained()`, which writes a new
index; or download index and shards together.
"""

from __future__ import annotations

from harness.facts.checkpoint import Files
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe


@probe("MPD104", modes=["FM45"], severity=Severity.CRITICAL)
def check(files: Files) -> Finding | str:
    """Compare the index with the headers of the shards, both ways."""
    evidence = _compare(files)
    if not evidence:
        return "the index and the shards name the same tensors"
    first = evidence[0]
    if files.index is None:
        return _no_index(evidence)
    places = "one place" if len(evidence) == 1 else f"{len(evidence)} places, first"
    return Finding(
        message=f"the shard index disagrees with the files in {places}: "
        f"{first.what} {first.tensor or first.file or ''}".rstrip(),
        evidence=tuple(evidence),
        cause="two saves were mixed in one folder, or the index was edited",
        remedy="save the model again into an empty folder: save_pretrained() writes a new index",
    )


def _no_index(evidence: list[Evidence]) -> Finding:
    return Finding(
        message=f"the model lies in shards such as {evidence[0].file}, and there is no index: "
        "transformers finds no weights",
        evidence=tuple(evidence),
        cause="model.safetensors.index.json was not copied, or the save was interrupted",
        remedy="copy model.safetensors.index.json from where the model was saved, or save it again",
    )


def _compare(files: Files) -> list[Evidence]:
    index = files.index
    if files.alone:
        raise NotApplicable("one file was given, and an index lies beside it if there is one")
    if "model.safetensors" in files.names:
        raise NotApplicable("the model is one file, an index is not used")
    numbered = [file for file in files.weights if "-of-" in file.name]
    if index is None:
        if numbered:
            return [Evidence(what="shards without an index", file=numbered[0].name)]
        raise NotApplicable("the model has no shard index")
    if index.problem:
        return [Evidence(what="unusable index", file=index.name, found=index.problem)]
    found = [
        Evidence(what="path that leaves the folder", file=index.name, found=name[:120])
        for name in index.escaping
    ]
    if any(file.problem for file in files.weights):
        return found  # what a damaged shard holds is not known
    held = {tensor.name: file.name for file in files.weights for tensor in file.tensors}
    present = {file.name for file in files.weights}
    for name, shard in index.weight_map.items():
        if shard in present and held.get(name) != shard:
            what = f"{held.get(name, 'in no shard')}"
            found.append(
                Evidence(
                    what="tensor not where the index says", file=shard, tensor=name, found=what
                )
            )
    found += [
        Evidence(what="tensor the index leaves out", file=held[name], tensor=name)
        for name in sorted(held.keys() - index.weight_map.keys())
    ]
    return found + _twice(files)


def _twice(files: Files) -> list[Evidence]:
    seen: dict[str, str] = {}
    found = []
    for file in files.weights:
        for tensor in file.tensors:
            if tensor.name in seen:
                found.append(
                    Evidence(
                        what="tensor held twice",
                        tensor=tensor.name,
                        file=file.name,
                        found=f"also in {seen[tensor.name]}",
                    )
                )
            seen[tensor.name] = file.name
    return found
