"""Diagnose the machine: every trap of `mud-puppy env`, and what is installed, in probes' form."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from harness.doctor.judging import USUAL, Judging
from harness.doctor.visit import choose_probes, conclude
from harness.evidence.source import CheckpointEvidence
from harness.evidence.training.versions import find_defects
from harness.facts.machine import JudgedTrap, Requirements, Version, Wheels
from harness.findings import Diagnosis, ProbeResult
from harness.registry import Probe, run_probe
from mudpuppy.env.facts import Facts
from mudpuppy.env.traps import TRAPS

PACKAGES = (
    *("torch", "torchvision", "torchaudio", "numpy", "jinja2", "safetensors", "tokenizers"),
    *("transformers", "peft", "trl", "accelerate", "datasets", "huggingface-hub", "bitsandbytes"),
    *("flash-attn", "xformers", "deepspeed", "vllm", "unsloth", "unsloth-zoo", "axolotl"),
    *("llamafactory", "ms-swift", "auto-gptq", "gptqmodel", "optimum", "triton"),
    *("pytorch-triton-rocm", "pytorch-triton", "triton-windows"),
)
"""Packages that are looked at."""
BUILT = ("torch", "torchvision", "torchaudio")
"""Packages whose wheels must be built for one another."""
TRITONS = ("triton", "pytorch-triton-rocm", "pytorch-triton", "triton-windows")


def diagnose_machine(facts: Facts | None = None, judging: Judging = USUAL) -> Diagnosis:
    """Examine this machine, or recorded facts about another one.

    Args:
        facts: what is known of the machine; by default this one, whose torch a child process asks.
        judging: which probes to run, and what counts.

    Raises:
        UsageError: a word of `select` or `ignore` names no probe.
    """
    chosen = choose_probes(judging.select, judging.ignore)
    is_here = facts is None
    if facts is None:
        from mudpuppy.env.probe import collect, find_versions

        facts = collect()
        packages = find_versions(PACKAGES)
    else:
        packages = dict(facts.packages)
    if facts.torch is not None:
        packages["torch"] = facts.torch.version
    results: list[ProbeResult] = []
    for name, subject, fact in _gather(facts, packages, is_here=is_here):
        results += [_ask(one, name, subject, fact) for one in chosen if one.needs == (name,)]
    described = {"subject": ".", "kind": _describe(facts)}
    number = len({result.code for result in results})
    facts_told = {"subjects": [described], "probes": number}
    return conclude("machine", results, facts_told, judging)


def _ask(one: Probe, name: str, subject: str, fact: Any) -> ProbeResult:
    return run_probe(one, CheckpointEvidence(Path(), given={name: fact}), subject)


def _gather(
    facts: Facts, packages: Mapping[str, str], *, is_here: bool
) -> Iterator[tuple[str, str, Any]]:
    """Yield the evidence, what it is about, and the fact."""
    for trap in TRAPS:
        said = trap.judge(facts)
        judged = JudgedTrap(
            code=trap.code,
            name=trap.name,
            why=trap.why,
            sources=trap.sources,
            severity=said.severity if said else "",
            what=said.what if said else "",
            do=said.do if said else "",
        )
        yield "trap", f"{trap.code} {trap.name}", judged
    known = {**packages, "hip": facts.is_hip, "system": facts.system.partition(" ")[0]}
    for name, version in packages.items():
        defects = find_defects(name, version, "machine", known)
        found = Version(package=name, version=version, found_in="installed", defects=defects)
        yield "installed", name, found
    yield "wheels", "wheels", find_wheels(packages)
    if is_here:
        for name, version in packages.items():
            unmet = tuple(find_unmet(metadata.requires(name) or ()))
            asked = Requirements(package=name, version=version, unmet=unmet)
            yield "requirements", name, asked


def find_wheels(packages: Mapping[str, str]) -> Wheels:
    """Return for what the wheels were built, by their versions."""
    builds = tuple((name, packages[name].partition("+")[2]) for name in BUILT if name in packages)
    return Wheels(builds=builds, tritons=tuple(name for name in TRITONS if name in packages))


def find_unmet(asked: Sequence[str]) -> Iterator[str]:
    """Yield what is asked for and is not installed so; extras are not asked for."""
    for text in asked:
        try:
            wanted = Requirement(text)
        except InvalidRequirement:
            continue
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            yield f"{wanted}, not installed"
            continue
        if not wanted.specifier.contains(version, prereleases=True):
            yield f"{wanted.name}{wanted.specifier}, installed {version}"


def _describe(facts: Facts) -> str:
    """Return the machine in one line."""
    torch = facts.torch
    parts = [f"{facts.system}, Python {facts.python}" if facts.system else "recorded machine"]
    if torch is None:
        parts.append("no torch")
    else:
        built = f"ROCm {torch.hip}" if torch.hip else f"CUDA {torch.cuda}" if torch.cuda else "CPU"
        parts.append(f"torch {re.sub('[^0-9A-Za-z.+-]', '', torch.version)[:40]} for {built}")
    parts += [f"{one.name} ({one.arch})" for one in facts.devices[:4]] or ["no GPU that torch sees"]
    return "; ".join(parts)
