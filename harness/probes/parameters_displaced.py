"""Parameters of a live model that are not where, or what, the others are.

What it does: looks for parameters on the meta device (without values), for several devices with
nothing that moves data between them, and for weights of one kind whose type differs between layers.

Why it is bad: what is on meta has no values: saving or running it fails or makes random ones
(FM34). Layers on another device stop the forward pass; layers in another type round otherwise than
their neighbours.

Example: `model.layers.31.*` on meta after a load with `low_cpu_mem_usage` from a file without them.

What to do: load again with `from_pretrained` and look at its warnings; `model.to(device, dtype)` as
a whole.
"""

from __future__ import annotations

from harness.facts.live import LiveState
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe


@probe("MPD507", modes=["FM34"], severity=Severity.CRITICAL)
def check(live_state: LiveState) -> Finding | str:
    """Look for meta tensors, several devices, and kinds of weights of several types."""
    state = live_state
    if not state.parameters:
        raise NotApplicable("the object has no parameters")
    if state.on_meta:
        whole = len(state.on_meta) == state.parameters
        return _finding(
            f"{len(state.on_meta)} of {state.parameters} parameters have no values (device meta), "
            f"such as {state.on_meta[0]}",
            [Evidence(what="device", tensor=n, found="meta") for n in state.on_meta],
            Severity.NOTE if whole else Severity.CRITICAL,  # a skeleton is made on purpose
        )
    if len(state.devices) > 1:
        shown = ", ".join(f"{count} on {name}" for name, count in state.devices.items())
        return _finding(
            f"the parameters are on several devices ({shown}), and nothing moves data between them",
            [Evidence(what="parameters", found=shown, expected="one device")],
            Severity.HIGH,
        )
    if state.mixed_types:
        kind, types = next(iter(state.mixed_types.items()))
        return _finding(
            f"{len(state.mixed_types)} kinds of weights have several types, such as {kind}: "
            f"{', '.join(types)}",
            [
                Evidence(what="types", tensor=kind, found=list(types), expected="one type")
                for kind, types in state.mixed_types.items()
            ],
            Severity.MEDIUM,
        )
    return f"{state.parameters} parameters are on one device, and their kinds have one type each"


def _finding(message: str, evidence: list[Evidence], severity: Severity) -> Finding:
    return Finding(
        message=message,
        evidence=tuple(evidence),
        cause="part of the model was loaded, moved or converted apart from the rest",
        remedy="load it again as a whole, then model.to(device, dtype)",
        severity=severity,
    )
