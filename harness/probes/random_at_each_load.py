"""Each load gives another model.

What it does: loads an adapter twice under two seeds, or a model whose files lack parameters, and
compares the logits.

Why it is bad: parameters that the file does not hold, or holds under names that nobody looks for,
are filled with random numbers (FM53, FM34, FM63). Nothing raises, and no two runs agree.

Example: loaded twice, the logits differ by 0.9 of their size; `score.weight` is in no file.

What to do: compare the keys of the file with the names of the modules (adapter-keys-dead,
missing-tensors), and save again with `modules_to_save` for every new head.
"""

from __future__ import annotations

from harness.facts.forward import Consistency
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, NotApplicable, probe

SAME = 1e-3
"""Share of the logits by which two loads may differ: kernels of GPUs sum in any order."""


@probe("MPD613", modes=["FM53", "FM34", "FM63"], severity=Severity.CRITICAL)
def check(consistency: Consistency) -> Finding | str:
    """Compare two loads of the same files."""
    new, gap = consistency.new_weights, consistency.find("reload")
    if gap is None and consistency.kind == "scorer" and new:
        return _find(new, "random parameters of the head: " + new[0])
    if gap is None:
        if "reload" in consistency.not_compared:
            raise Missing(consistency.explain("reload"))
        raise NotApplicable("every parameter is in the files, so that loads cannot differ")
    if gap.relative <= SAME:
        return f"two loads differ by {gap.relative:.2g} of the logits' size"
    return _find(new, f"loaded twice, the logits differ by {gap.relative:.2g} of their size")


def _find(new: tuple[str, ...], message: str) -> Finding:
    named = tuple(Evidence(what="parameter in no file", tensor=name[:200]) for name in new)
    return Finding(
        message=message,
        evidence=named or (Evidence(what="difference of two loads", found=message),),
        cause="parameters that the files do not hold are filled with random numbers",
        remedy="save again with every trained module; compare key names with the base's",
    )
