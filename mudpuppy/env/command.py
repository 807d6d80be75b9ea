"""The command `mud-puppy env`: what this machine is, which traps it is in, and what to type."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path

from mudpuppy.env.facts import Device, Facts
from mudpuppy.env.judged import EnvFinding
from mudpuppy.env.probe import collect
from mudpuppy.env.traps import fp8_support, judge
from mudpuppy.errors import UsageError

DESCRIPTION = "What this machine is, which traps it is in, and what to type."
WIDTH = 96
WORDS = {"blocks": "BLOCKS", "warns": "WARNS ", "note": "note  "}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the flags of the command."""
    parser.add_argument(
        "--format", choices=("text", "json"), default="text", help="form of the output"
    )
    parser.add_argument(
        "--compute",
        action="store_true",
        help="also compute a little on every GPU, each in a process of its own that may crash",
    )
    parser.add_argument(
        "--facts", type=Path, metavar="FILE", help="judge facts that --format json wrote elsewhere"
    )


def run(args: argparse.Namespace) -> int:
    """Run the parsed command; 1 where something blocks training, 0 otherwise.

    Raises:
        UsageError: the file of facts cannot be read.
    """
    facts = collect() if args.facts is None else read_facts(args.facts)
    if args.compute and args.facts is None:
        from mudpuppy.env.compute import compute_on_devices

        facts = compute_on_devices(facts)
    found = judge(facts)
    if args.format == "json":
        report = {"facts": facts.to_json(), "findings": [one.to_json() for one in found]}
        print(json.dumps(report, indent=2))
    else:
        print("\n".join([*describe_facts(facts), "", *describe_findings(found)]))
    return int(any(one.severity == "blocks" for one in found))


def read_facts(path: Path) -> Facts:
    """Read facts from a file: those alone, or the whole output of `--format json`.

    Raises:
        UsageError: the file cannot be read or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    return Facts.from_json(values.get("facts", values) if isinstance(values, dict) else values)


def describe_facts(facts: Facts) -> Iterator[str]:
    """Yield what the machine is, one line a fact."""
    torch = facts.torch
    if torch is None:
        yield "torch      not installed"
    else:
        built = f"ROCm (HIP {torch.hip})" if torch.hip else f"CUDA {torch.cuda}"
        yield f"torch      {torch.version}, for {built if torch.hip or torch.cuda else 'CPU only'}"
    for device in facts.devices:
        yield f"device     {_describe(device)}; fp8: {fp8_support(facts, device.index)[0]}"
    if not facts.devices:
        yield "device     none that torch sees"
    if facts.amd_gpus:
        yield f"AMD GPUs   {', '.join(facts.amd_gpus)}; /dev/kfd {facts.kfd}"
    if facts.nvidia_gpus:
        yield f"NVIDIA     {facts.nvidia_gpus}"
    if facts.rocm or facts.driver:
        yield f"installed  ROCm {facts.rocm or '-'}, driver {facts.driver or 'of the kernel'}"
    lock = "no limit" if facts.memlock_bytes is None else _size(facts.memlock_bytes)
    yield (
        f"host       {facts.system}, Python {facts.python}, {_size(facts.ram_bytes)} memory, "
        f"{_size(facts.disk_free_bytes)} disk free, memlock {lock}"
    )
    if facts.kernels:
        yield f"4 bits     on the processor: {facts.kernels}"
    if facts.packages:
        yield "packages   " + ", ".join(f"{n} {v}" for n, v in facts.packages.items())
    for name, value in facts.variables.items():
        yield f"variable   {name}={value}"


def describe_findings(found: tuple[EnvFinding, ...]) -> Iterator[str]:
    """Yield the findings: what, what to do, why."""
    for one in found:
        yield f"{WORDS[one.severity]} {one.code} {one.name}"
        yield from _paragraph("", one.what)
        yield from _paragraph("do:  ", one.do)
        yield from _paragraph("why: ", f"{one.why} [{'; '.join(one.sources)}]")
        yield ""
    blocking = sum(one.severity == "blocks" for one in found)
    if blocking:
        yield f"{blocking} of {len(found)} findings would stop or spoil a run: mend them first"
    elif found:
        yield "nothing here stops a run"
    else:
        yield "no trap found"


def _paragraph(head: str, text: str) -> list[str]:
    # A command must stay one line that can be copied.
    if head == "do:  " and "   # " in text:
        return [f"       {head}{text}"]
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"       {head}",
        subsequent_indent=" " * (7 + len(head)),
        break_on_hyphens=False,
        break_long_words=False,
    )


def _describe(device: Device) -> str:
    kind = "integrated" if device.is_integrated else "discrete"
    results = "".join(f", {name} {result}" for name, result in device.compute.items())
    return (
        f"cuda:{device.index} {device.name} ({device.arch}, {kind}), "
        f"{_size(device.total_bytes)}{results}"
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
