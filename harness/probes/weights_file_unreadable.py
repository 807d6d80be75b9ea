"""A weights file that is empty, a git-LFS pointer, or not a safetensors file.

What it does: something with the right name lies where the weights should be, but loaders cannot get
a tensor out of it.

Why it is bad: at best loading stops with HeaderTooLarge or a MemoryError (FM44); at worst it goes
through: a 16-byte adapter file with no tensor loads without a word and changes nothing (FM24).

Example: `adapter_model.safetensors: 16 bytes that hold no tensor`, saved under DeepSpeed ZeRO-3 or
FSDP without gathering the parameters; or 134 bytes that begin `version https://git-lfs`.

What to do: for a pointer, `git lfs install && git lfs pull`. For an empty adapter, gather the
parameters before saving (`stage3_gather_16bit_weights_on_model_save`, or FSDP's full state dict)
and save again. For damaged bytes, fetch the file again.
"""

from __future__ import annotations

from harness.facts.checkpoint import Files, WeightFile
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe

_WORDS = {
    "empty": ("holds no tensor", "a sharded optimizer saved parameters that it had not gathered"),
    "lfs-pointer": ("is a git-LFS pointer", "the repository was cloned without git-lfs"),
    "bad-header": ("is no valid {} file", "damaged in a copy, or written by another tool"),
    "unreadable": ("cannot be opened", "rights, or a broken disk or link"),
}


@probe("MPD101", modes=["FM24", "FM44"], severity=Severity.CRITICAL)
def check(files: Files) -> Finding | str:
    """Look for weights files whose header cannot be used."""
    described = [*files.weights, *files.adapter]
    if not described:
        raise NotApplicable("the folder holds no weights file")
    bad = [file for file in described if file.problem in _WORDS]
    if not bad:
        return f"{len(described)} weights files open and hold tensors"
    said, cause = _WORDS[bad[0].problem]
    if not bad[0].size_bytes and bad[0].problem == "empty":
        said, cause = "is empty", "the disk was full, or the save or the copy was interrupted"
    return Finding(
        message=f"{bad[0].name} {said.format(bad[0].kind)}: {bad[0].detail}",
        evidence=tuple(
            Evidence(what=file.detail, file=file.name, found=file.size_bytes) for file in bad
        ),
        cause=cause,
        remedy=_remedy(bad[0]),
    )


def _remedy(file: WeightFile) -> str:
    if file.problem == "lfs-pointer":
        return "git lfs install && git lfs pull"
    if file.problem == "empty" and file.size_bytes:
        return "gather the parameters on every rank before saving, then save again"
    return f"fetch {file.name} again from its source, or save it again"
