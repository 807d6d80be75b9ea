"""A checkpoint of a run holds more than the one before it.

What it does: compares a `checkpoint-N` with the one before it in the same output: tensors that only
the later one has, tensors that are larger, folders of further adapters.

Why it is bad: the settings of a run do not change, so its checkpoints have one size. A larger one
carries a second adapter, because the resumption put a new one on top of the first (FM18); part of
the tensors is left out whenever it is loaded.

Example: 87 MB in checkpoint-500, 110 MB in checkpoint-1000, with keys that end in `default_0`.

What to do: go on from the last checkpoint of the smaller size, with
`PeftModel.from_pretrained(base, PATH, is_trainable=True)` or `--resume`, never with
`get_peft_model` on a loaded adapter.
"""

from __future__ import annotations

from harness.facts.outputs import Growth
from harness.findings import Evidence, Finding, Severity, agree
from harness.registry import probe

SPARE = 1.02
"""Growth of the bytes that is no finding."""


@probe("MPD112", modes=["FM18", "FM17"], severity=Severity.HIGH)
def check(growth: Growth) -> Finding | str:
    """Look for tensors, sizes and folders that the earlier checkpoint does not have."""
    more = [*growth.added, *growth.larger]
    swollen = growth.bytes_now > SPARE * growth.bytes_before
    if not more and not growth.folders and not swollen:
        return f"{growth.name} holds what {growth.earlier} holds: {growth.tensors} tensors"
    what = agree(len(more), "tensor more or larger", "tensors more or larger")
    if not more:
        folders = agree(len(growth.folders), "adapter folder more", "adapter folders more")
        what = folders if growth.folders else "wider types"
    evidence = [
        Evidence(
            what="bytes of the weights",
            found=growth.bytes_now,
            expected=f"{growth.bytes_before} as in {growth.earlier}",
        )
    ]
    evidence += [Evidence(what="only here, or larger here", tensor=name) for name in more]
    evidence += [Evidence(what="a further adapter", file=name) for name in growth.folders]
    return Finding(
        message=f"{growth.name} has {what} than {growth.earlier} ({growth.bytes_before:,} bytes "
        f"before, {growth.bytes_now:,} now)",
        evidence=tuple(evidence),
        cause="the run was resumed with a second adapter on top of the first",
        remedy=f"go on from {growth.earlier} with the adapter that is there: "
        "PeftModel.from_pretrained(base, PATH, is_trainable=True)",
    )
