"""Weights or training state stored as a pickle, which can run code when loaded.

What it does: `.bin`, `.pt` and `.pth` files are pickles: programs that build objects. This tool
lists the functions they name, without running them.

Why it is bad: a pickle can start any program on the machine that loads it (FM59, CVE-2025-32434).
And its values cannot be examined here, so a model that exists only as a pickle stays *unknown*.

Example: `pytorch_model.bin` that names `os.system`.

What to do: if dangerous functions are named, do not load the file and ask where it comes from.
Otherwise convert it once, with torch 2.10 or newer, to safetensors:
`AutoModelForCausalLM.from_pretrained(PATH, weights_only=True).save_pretrained(NEW)`.
"""

from __future__ import annotations

from collections.abc import Mapping

from harness.facts import Files
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe


@probe("MPD106", modes=["FM59"])
def check(files: Files, pickles: Mapping[str, tuple[str, ...]]) -> Finding | str:
    """Report dangerous functions, and weights that exist only as a pickle."""
    bad = {name: calls for name, calls in pickles.items() if calls}
    if bad:
        first, calls = next(iter(bad.items()))
        return Finding(
            message=f"{first} would call {calls[0]} when it is loaded",
            evidence=tuple(
                Evidence(what="functions named by the pickle", file=name, found=list(named[:5]))
                for name, named in bad.items()
            ),
            cause="the file was made to run code, or pickled together with a program",
            remedy="do not load it; ask where it comes from, and take a safetensors file instead",
        )
    only = [f.name for f in (*files.weights, *files.adapter) if f.problem == "pickled"]
    if not only:
        return f"{len(pickles)} pickled files name no dangerous function"
    return Finding(
        message=f"the weights exist only as a pickle ({only[0]}), so their values are not examined",
        evidence=tuple(Evidence(what="pickled weights", file=name) for name in only),
        cause="saved by an old version, or with safe_serialization=False",
        remedy="convert it to safetensors: load it with weights_only=True and save_pretrained(NEW)",
        severity=Severity.NOTE,
    )
