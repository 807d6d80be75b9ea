"""A merged adapter, and beside it weights that changed as no adapter changes them.

What it does: where no adapter is known, measures the rank of merged - base, matrix by matrix. Most
are of low rank, as an adapter leaves them; some are of full rank.

Why it is bad: a LoRA run changes nothing else. Frozen weights that moved are in no adapter, and the
adapter that was saved fits a model nobody has (FM52).

Example: q_proj and v_proj differ by rank 8 in all layers, `mlp.up_proj` of layer 3 by full rank.

What to do: pass the adapter with `--adapter`. Merge again from the original base, and compare the
answers.
"""

from __future__ import annotations

from harness.facts.merges import ChangeRanks
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe

LEAST = 4
"""Matrices of low rank from which a merge is taken for sure."""
MOST_RANKS = 2
"""Different ranks that an adapter's merge shows; a short training of all weights, whose changes can
be of low rank too, shows more."""


@probe("MPD411", modes=["FM52"], severity=Severity.MEDIUM)
def check(change_ranks: ChangeRanks) -> Finding | str:
    """Look for few changes of full rank among many of low rank."""
    low, full = change_ranks.low, change_ranks.full
    if not low:
        return f"the difference to {change_ranks.base} has full rank: trained as a whole"
    ranks = sorted(low.values())
    shown = f"rank {ranks[0]}" if ranks[0] == ranks[-1] else f"ranks {ranks[0]} to {ranks[-1]}"
    if change_ranks.others_moved or len(set(ranks)) > MOST_RANKS:
        return f"{len(low)} of {len(low) + len(full)} matrices differ by {shown}, and others too"
    if not full or len(low) < max(LEAST, 2 * len(full)):
        return f"{len(low)} of {len(low) + len(full)} matrices differ by {shown}: an adapter merged"
    return Finding(
        message=f"{len(low)} matrices differ from the base by {shown}, as a merged adapter leaves "
        f"them, and {len(full)} by full rank, such as {full[0]}",
        evidence=tuple(
            Evidence(what="rank of the difference", tensor=name, found="full", expected=shown)
            for name in full
        ),
        cause="the base was not frozen, or tensors were edited after the merge",
        remedy="pass the adapter with --adapter; merge again from the original base",
    )
