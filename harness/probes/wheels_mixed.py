"""Wheels for different hardware are installed side by side.

What it does: compares the builds that torch, torchvision and torchaudio name behind the + of their
versions, and looks for two packages that both bring a module `triton`.

Why it is bad: libraries of two builds in one process fail with "operator torchvision::nms does not
exist", or fall back to the processor; of two tritons, the one that was installed last is used,
and kernels are compiled for the wrong GPU (FM64).

Example: torch 2.13.0+rocm7.2 beside torchvision 0.28.0+cu130, after a `pip install -U torchvision`
without the index of the ROCm build.

What to do: uninstall all of them, and install them in one command from one index.
"""

from __future__ import annotations

import re

from harness.facts.machine import Wheels
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe


@probe("MPD954", modes=["FM64"], severity=Severity.HIGH)
def check(wheels: Wheels) -> Finding | str:
    """Report builds that differ, and two tritons."""
    kinds = {_kind(tag) for _, tag in wheels.builds if tag}
    if not wheels.builds and not wheels.tritons:
        raise NotApplicable("neither torch nor triton is installed")
    if len(kinds) < 2 and len(wheels.tritons) < 2:
        return f"{len(wheels.builds) + len(wheels.tritons)} wheels of one build"
    evidence = [Evidence(what=f"build of {name}", found=tag or "-") for name, tag in wheels.builds]
    if len(wheels.tritons) > 1:
        evidence.append(Evidence(what="packages with a module triton", found=list(wheels.tritons)))
    mixed = ", ".join(f"{name}+{tag}" for name, tag in wheels.builds if tag)
    return Finding(
        message=f"wheels of different builds: {mixed}"
        if len(kinds) > 1
        else f"{' and '.join(wheels.tritons)} bring the same module",
        evidence=tuple(evidence),
        cause="a package was installed from another index than torch",
        remedy="pip uninstall -y torch torchvision torchaudio triton pytorch-triton-rocm, then "
        "install them in one command from the index of your build",
    )


def _kind(tag: str) -> str:
    """Return cpu, cu or rocm: versions within them differ between packages at times."""
    return re.split(r"[\d.]", tag, maxsplit=1)[0]
