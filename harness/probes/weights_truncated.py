"""A weights file ends before its header says it does.

What it does: the header of a safetensors file lists where every tensor lies. Bytes that are not
there are read as zeros or as garbage by readers that map the file, and refused by others.

Why it is bad: whole layers become noise, and different noise at each start (FM43). Nothing but the
size of the file shows it: the header is intact.

Example: `model-00002-of-00002.safetensors: 1,048,576 bytes on disk, 4,219,480 promised`, after a
full disk, an interrupted copy or a job that was killed while it saved.

What to do: copy or download the file again and compare its size with the source. If this is the
only copy, save again from the run, or go back to the newest checkpoint that is whole.
"""

from __future__ import annotations

from harness.facts.checkpoint import Files
from harness.findings import Evidence, Finding, Severity, agree
from harness.registry import NotApplicable, probe


@probe("MPD102", modes=["FM43"], severity=Severity.CRITICAL)
def check(files: Files) -> Finding | str:
    """Compare the size of every weights file with the end of its last tensor."""
    described = [*files.weights, *files.adapter]
    if not described:
        raise NotApplicable("the folder holds no weights file")
    short = [file for file in described if file.problem == "truncated"]
    if not short:
        return f"{len(described)} weights files are as long as their headers say"
    lost = sum(tensor.end > file.size_bytes for file in short for tensor in file.tensors)
    first = max(short, key=lambda file: file.missing_bytes)
    return Finding(
        message=f"{first.name} is cut off: {agree(first.missing_bytes, 'byte is', 'bytes are')}"
        " missing" + (f", which cuts {agree(lost, 'tensor', 'tensors')}" if lost else ""),
        evidence=tuple(
            Evidence(
                what="bytes on disk",
                file=file.name,
                found=file.size_bytes,
                expected=file.size_bytes + file.missing_bytes,
            )
            for file in sorted(short, key=lambda f: -f.missing_bytes)
        ),
        cause="the copy, the download or the save was interrupted, or the disk was full",
        remedy=f"copy {first.name} again from where it was complete, or save the model again",
    )
