"""Weights or training state stored as a pickle, which can run code when loaded.

What it does: `.bin`, `.pt` and `.pth` files are pickles: programs that build objects. This tool
lists the functions and classes they name, without running them, and knows those that torch, numpy,
transformers, accelerate and TRL write. Any other name is reported, and so is a file that cannot be
followed to its end.

Why it is bad: a pickle can start any program on the machine that loads it (FM59, CVE-2025-32434).
And its values cannot be examined here, so a model that exists only as a pickle stays *unknown*.

Example: `pytorch_model.bin` that names `os.system`.

What to do: if dangerous functions are named, do not load the file and ask where it comes from.
Otherwise convert it once, with torch 2.10 or newer, to safetensors:
`AutoModelForCausalLM.from_pretrained(PATH, weights_only=True).save_pretrained(NEW)`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from harness.facts.checkpoint import Files, Pickled
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe

MOST_KEYS = 20
"""Names of one file that are told one by one."""


@probe("MPD106", modes=["FM59"], severity=Severity.CRITICAL)
def check(files: Files, pickles: Mapping[str, Pickled]) -> Finding | str:
    """Report names beyond the harmless, and weights that exist only as a pickle."""
    named = {name: one.calls for name, one in pickles.items() if one.calls}
    if named:
        return _named(named)
    cut = {name: one.problem for name, one in pickles.items() if one.problem}
    if cut:
        return _cut(cut)
    total = len(files.weights) + len(files.adapter)
    only = [f.name for f in (*files.weights, *files.adapter) if f.problem == "pickled"]
    if not only:
        return f"{len(pickles)} pickled files name nothing but what training files hold"
    some = (
        f"{len(only)} of {total} weight files exist" if len(only) < total else "the weights exist"
    )
    return Finding(
        message=f"{some} only as a pickle ({only[0]}), so their values are not examined",
        evidence=tuple(Evidence(what="pickled weights", file=name) for name in only),
        cause="saved by an old version, or with safe_serialization=False",
        remedy="convert it: AutoModelForCausalLM.from_pretrained(PATH, weights_only=True)"
        ".save_pretrained(NEW)",
        severity=Severity.NOTE,
    )


def _named(named: Mapping[str, tuple[str, ...]]) -> Finding:
    first, calls = next(iter(named.items()))
    return Finding(
        message=f"{first} names {calls[0]}, which loading it may call; training files hold no such "
        "name",
        evidence=tuple(
            Evidence(
                what="names beyond the harmless",
                file=name,
                found=list(several[:5]),
                keys=_keys(several),
            )
            for name, several in named.items()
        ),
        cause="the file was made to run code, or pickled together with classes of a program",
        remedy="do not load it unless you know the program that wrote it; take a safetensors file "
        "instead",
    )


def _keys(calls: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names by which a baseline and an acceptance know a file; few, and all of them."""
    if len(calls) <= MOST_KEYS:
        return calls
    rest = "\n".join(sorted(calls)).encode("utf-8", "surrogatepass")
    return (*calls[:MOST_KEYS], f"sha256:{hashlib.sha256(rest).hexdigest()}")


def _cut(cut: Mapping[str, str]) -> Finding:
    first, problem = next(iter(cut.items()))
    return Finding(
        message=f"what {first} would call cannot be listed to its end: {problem}",
        evidence=tuple(
            Evidence(what="not listed to the end", file=name, found=text)
            for name, text in cut.items()
        ),
        cause="damaged in a copy, no pickle at all, or written so that a scanner stops early",
        remedy=f"do not load {first}; copy it again from its source, or remove it if nothing "
        "needs it",
        severity=Severity.HIGH,
    )
