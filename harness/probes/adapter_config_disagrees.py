"""The adapter's settings and its tensors do not say the same.

What it does: the rank in `adapter_config.json` (with `rank_pattern`) is not that of the tensors,
the two factors of a module do not fit each other, the scale is zero or absent, magnitudes of DoRA
are there without `use_dora` or the reverse, or there are no settings at all.

Why it is bad: PEFT builds the modules from the settings and then fails on the tensors with `size
mismatch`, or leaves out what it has no place for; a scale of zero loads and switches the adapter
off; a wrong or absent one makes it too weak or too strong without a word (FM26). Factors of one
dimension are pieces of a sharded run that were never put together (FM24).

Example: `r: 16` in the config and `lora_A` of shape [8, 4096]: the config of another run was
copied.

What to do: put the rank of the tensors into `r` (or `rank_pattern`), and the `lora_alpha` that was
trained with; the run's log or its mudpuppy.json holds it.
"""

from __future__ import annotations

import re
from typing import Any

from harness.facts.checkpoint import Adapter, Files, Pair
from harness.findings import Evidence, Finding, Severity, agree
from harness.registry import Missing, NotApplicable, probe

FILE = "adapter_config.json"


@probe("MPD205", modes=["FM24", "FM26", "FM48", "FM53"], severity=Severity.CRITICAL)
def check(adapter: Adapter, files: Files) -> Finding | str:
    """Compare rank, alpha and shapes."""
    if FILE in files.unreadable_json:
        raise Missing(f"{FILE} cannot be read: {files.unreadable_json[FILE]}")
    if not adapter.settings and not files.alone:
        return _finding([Evidence(what="settings", file=FILE, found="absent or unreadable")])
    if adapter.kind not in ("LORA", ""):
        raise NotApplicable(f"the adapter is of type {adapter.kind[:40]}, not LORA")
    if not adapter.pairs:
        raise NotApplicable("the adapter holds no LoRA pairs")
    evidence = [] if files.alone else _check_scale(adapter) + _check_dora(adapter)
    for pair in adapter.pairs:
        evidence += _check_pair(adapter.settings, pair)
    if files.alone and not evidence:
        raise Missing(files.lacks(FILE))
    return (
        _finding(evidence) if evidence else f"rank and shapes of {len(adapter.pairs)} pairs agree"
    )


def _check_scale(adapter: Adapter) -> list[Evidence]:
    found = []
    for key in ("r", "lora_alpha"):
        value = adapter.settings.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
            said = "absent" if value is None else str(value)[:40]
            found.append(Evidence(what=key, file=FILE, found=said, expected="a positive number"))
    return found


def _check_dora(adapter: Adapter) -> list[Evidence]:
    """Compare `use_dora` with the magnitudes, of all modules that are not embeddings or experts."""
    plain = [p for p in adapter.pairs if "experts" not in p.module and not p.is_embedding]
    with_magnitude = [pair for pair in plain if pair.magnitude is not None]
    declared = adapter.settings.get("use_dora") is True
    if declared and plain and len(with_magnitude) < len(plain):
        bare = next(pair for pair in plain if pair.magnitude is None)
        found = f"no magnitude vector, though use_dora is set ({len(with_magnitude)} of "
        found += f"{len(plain)} have one)"
        return [Evidence(what="DoRA", tensor=bare.module, found=found)]
    if with_magnitude and adapter.settings.get("use_dora") is not True:
        found = "a magnitude vector, though use_dora is not set"
        return [Evidence(what="DoRA", tensor=with_magnitude[0].module, found=found)]
    return []


def _check_pair(settings: Any, pair: Pair) -> list[Evidence]:
    if "experts" in pair.module:
        return []  # fused experts multiply the rank by their number
    if pair.a is None or pair.b is None:
        lost = "lora_A" if pair.a is None else "lora_B"
        return [Evidence(what="factor without its partner", tensor=pair.module, found=f"no {lost}")]
    if 0 in pair.a.shape + pair.b.shape:
        return []  # tensors-empty says so
    if len(pair.a.shape) < 2 or len(pair.b.shape) < 2:
        return [Evidence(what="shape", tensor=pair.a.name, found=list(pair.a.shape))]
    rank, other = pair.a.shape[0], pair.b.shape[1]
    found = []
    if rank != other:
        shapes = f"{list(pair.a.shape)} and {list(pair.b.shape)}"
        found.append(Evidence(what="factors that do not fit", tensor=pair.module, found=shapes))
    expected = _expected_rank(settings, pair.module)
    if expected is not None and expected != rank:
        found.append(Evidence(what="rank", tensor=pair.a.name, found=rank, expected=expected))
    return found


def _expected_rank(settings: Any, module: str) -> int | None:
    """Return the rank the settings give a module; None when a pattern might say otherwise."""
    patterns = settings.get("rank_pattern")
    for key, value in patterns.items() if isinstance(patterns, dict) else ():
        plain = re.sub(r"\\(.)", r"\1", str(key))
        if module == plain or module.endswith(f".{plain}"):
            return value if type(value) is int else None
        if re.search(r"[\\^$*+?()\[\]{}|]", str(key)):
            return None
    rank = settings.get("r")
    return rank if type(rank) is int else None


def _finding(evidence: list[Evidence]) -> Finding:
    first = evidence[0]
    source = "expected" if first.file == FILE else "the settings say"
    expected = "" if first.expected is None else f", {source} {first.expected}"
    places = agree(len(evidence), "place", "places; first")
    return Finding(
        message=f"settings and tensors of the adapter disagree in {places}: {first.what} of "
        f"{first.tensor or first.file}: {first.found}{expected}",
        evidence=tuple(evidence),
        cause="adapter_config.json was copied from another run or edited, or the save was partial",
        remedy="write the r, rank_pattern and lora_alpha of the run that made the tensors into "
        "adapter_config.json",
    )
