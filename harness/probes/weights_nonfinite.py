"""Weights that are NaN or infinite.

What it does: one NaN in a weight makes every output that passes it NaN; an infinity does the same
after the next normalisation.

Why it is bad: loaders, servers and the safetensors format do not look at values. A diverged adapter
is saved as a success (FM41); served, it repeats token 0, often printed as `!!!!` (FM12). Fused
attention kernels can hide it, so a few good answers prove nothing.

Example: `base_model.model.model.layers.3.mlp.down_proj.lora_B.weight: 65,536 of 65,536 values`,
after a loss of NaN at step 900 of a run in fp16.

What to do: throw this checkpoint away and resume from the newest one that is finite. Train in bf16
or fp32, lower the learning rate, clip gradients (`--max-grad-norm 1.0`). Do not replace NaN by 0:
that makes a model that is plausible and wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from harness.facts.checkpoint import Files, Numbers, Tensor
from harness.facts.files import list_unread
from harness.findings import Evidence, Finding, Severity, agree
from harness.registry import Missing, probe


@probe("MPD301", modes=["FM41", "FM12"], severity=Severity.CRITICAL)
def check(
    files: Files,
    numbers: Mapping[str, Numbers],
    undecodable: Sequence[Tensor],
    sample: str,
    judged_scales: Set[str],
    bad_blocks: Mapping[str, int],
) -> Finding | str:
    """Count the values that are not finite; scales are judged with the levels they belong to."""
    bad = sorted(
        (one for name, one in numbers.items() if one.nonfinite and name not in judged_scales),
        key=lambda one: (-one.nonfinite / one.tensor.elements, one.tensor.name),
    )
    broken = {name: number for name, number in bad_blocks.items() if number}
    if not bad and broken:
        return _broken(broken)
    undecodable = [tensor for tensor in undecodable if tensor.name not in bad_blocks]
    if not bad and undecodable:
        raise Missing(
            f"values of type {undecodable[0].dtype} are not decoded here ({len(undecodable)} "
            f"tensors, such as {undecodable[0].name}); the other {len(numbers)} tensors are finite"
        )
    if not bad:
        every = "every value read" if sample else "every value"
        said = f"{every} of {len(numbers)} tensors is finite" + (f"; {sample}" if sample else "")
        return said + _name_unread(files)
    worst = bad[0].tensor
    return Finding(
        message=f"NaN or infinite values in {len(bad)} of {len(numbers)} tensors"
        ": in "
        f"{worst.name} {bad[0].nonfinite:,} of {worst.elements:,}",
        evidence=tuple(
            Evidence(
                what="values that are NaN or infinite",
                file=one.tensor.file,
                tensor=one.tensor.name,
                found=one.nonfinite,
                expected=0,
            )
            for one in bad
        ),
        cause="training diverged (look for a loss of NaN), or a cast to fp16 overflowed",
        remedy="resume from an earlier checkpoint with bf16 or fp32, a lower learning rate and "
        "gradient clipping; do not replace the values by zeros",
    )


def _name_unread(files: Files) -> str:
    """Return in how many files nobody has looked, as the end of a sentence."""
    total, unread = len(files.weights) + len(files.adapter), list_unread(files)
    if not unread:
        return ""
    return f", in {total - len(unread)} of {total} weight files; {unread[0].name} was not read"


def _broken(broken: Mapping[str, int]) -> Finding:
    """Report blocks of levels whose scale is not finite, where the levels are not decoded."""
    first = next(iter(broken))
    return Finding(
        message=f"NaN or infinite scales in {agree(len(broken), 'tensor', 'tensors')}: in "
        f"{first} those of {agree(broken[first], 'block', 'blocks')} of levels",
        evidence=tuple(
            Evidence(what="blocks with a scale that is not finite", tensor=n, found=c, expected=0)
            for n, c in broken.items()
        ),
        cause="the model was not finite when it was quantised, or the file was damaged",
        remedy="examine the model that was converted, or fetch the file again",
    )
