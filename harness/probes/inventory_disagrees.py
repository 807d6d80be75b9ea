"""config.json counts other parts than the files hold: layers, experts, positions, heads, towers.

What it does: for every family, counts the layers, the experts, the rows of the router and of
learned positions, the width of the embedding, and the tensors of a vision or audio tower, and
compares them with config.json. Layers that predict further tokens may lie behind the last.

Why it is bad: readers build what config.json says. Layers and experts beyond its count are dropped,
those below it are invented with random values, most without an error (FM46).

Example: num_hidden_layers 24 over files with 28 layers; num_local_experts 8 over files with 4; a
vision_config without a single vision tensor.

What to do: put the config.json back that was saved with these weights.
"""

from __future__ import annotations

from harness.facts.chat import Count
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe

FILE = "config.json"


@probe("MPD823", modes=["FM46", "FM34"], severity=Severity.CRITICAL)
def check(counts: tuple[Count, ...]) -> Finding | str:
    """Compare every count that both sides give."""
    wrong = [one for one in counts if not one.fits]
    if not wrong:
        kinds = ", ".join(dict.fromkeys(one.what for one in counts))
        return f"config.json and files agree on {kinds or 'what can be counted'}"
    first = wrong[0]
    return Finding(
        message=f"config.json says {first.key} {first.declared}, and the files hold "
        f"{first.stored:,} {first.what}",
        evidence=tuple(
            Evidence(
                what=one.what,
                file=FILE,
                tensor=one.tensor or None,
                found=one.stored,
                expected=f"{one.declared} ({one.key})",
            )
            for one in wrong
        ),
        cause="config.json belongs to another model of the family, or a part was not saved",
        remedy="put the config.json back that was saved with these weights, or save the "
        "part that is not there",
    )
