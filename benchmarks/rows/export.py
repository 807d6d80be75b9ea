"""Writing GGUF: ours against llama.cpp's converter, once there is an exporter."""

from __future__ import annotations

import importlib.util

from benchmarks.frame import NotRun, Plan, Row, Sides, Subject, at_least


def measure(plan: Plan) -> Sides:
    """Say why nothing is measured.

    Raises:
        NotRun: always, so far.
    """
    if importlib.util.find_spec("mudpuppy.export") is None:
        raise NotRun("mudpuppy writes no GGUF yet (issue 7)")
    raise NotRun("there is an exporter, and its measurement is not written yet (issue 7)")


SUBJECT = Subject(
    name="export",
    title="GGUF export",
    measure=measure,
    rows=(
        Row(
            name="bf16",
            what="safetensors to GGUF, bf16 (wall)",
            ours="ours",
            against="convert_hf_to_gguf.py",
            figure="wall_s",
            goal=at_least(5.0),
        ),
    ),
)
