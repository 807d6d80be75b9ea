"""Try a quantiser before it is trusted: rows with a known result, in a process of its own."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from mudpuppy.exits import describe_exit
from mudpuppy.export.gguf import ggml
from mudpuppy.export.gguf.ggml import Case, TypeForm, Unusable
from mudpuppy.native.apart import run_apart
from mudpuppy.native.compiler import KernelUnavailable

TIME_LIMIT_S = 60
"""Time that a trial has; it takes a quarter of a second."""
COLUMNS = 512
"""Length of the rows that are tried: two of the largest blocks."""
MOST_ERROR = {
    "Q3_K": 0.20,
    "Q4_0": 0.13,
    "Q4_K": 0.10,
    "Q5_0": 0.07,
    "Q5_1": 0.06,
    "Q5_K": 0.05,
    "Q6_K": 0.03,
}
"""Root of the mean squared error over that of the values, that a type may have on normally
distributed values; about one and a half times what llama.cpp reaches."""


def try_library(path: Path, forms: Mapping[str, TypeForm]) -> None:
    """Have a library quantise known rows to some types, and check what comes out.

    Raises:
        Unusable: it cannot be loaded, crashes, takes too long or computes something else.
    """
    rows = known_rows()
    cases = [_case(rows, name, form) for name, form in forms.items()]
    said = _run_child(path, cases)
    for name, result in zip(forms, said, strict=True):
        _judge(rows, name, forms[name], base64.b64decode(result))


def try_program(path: Path) -> None:
    """Have `llama-quantize` say what it can do.

    Raises:
        Unusable: it does not start, or knows no K types.
    """
    try:
        done = subprocess.run(
            [str(path), "--help"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIME_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unusable(f"it does not answer: {error}") from None
    if b"Q4_K_M" not in done.stdout + done.stderr:
        raise Unusable(
            f"it does not say that it makes Q4_K_M (it ended with {describe_exit(done.returncode)})"
        )


def known_rows() -> NDArray[np.float32]:
    """Return the rows that are tried: as weights are, with an outlier, tiny, and zero."""
    rows = np.random.default_rng(7).standard_normal((4, COLUMNS)).astype(np.float32)
    rows[1, 100] = 40.0
    rows[2] *= 1e-3
    rows[3] = 0.0
    return rows


def _case(rows: NDArray[np.float32], name: str, form: TypeForm) -> Case:
    return {
        "rows": base64.b64encode(rows.tobytes()).decode(),
        "num_rows": rows.shape[0],
        "columns": rows.shape[1],
        "type": name,
        "number": form.number,
        "block": form.block,
        "block_bytes": form.block_bytes,
    }


def _run_child(path: Path, cases: list[Case]) -> list[str]:
    """Return what a process of its own made of the cases."""
    command = [sys.executable, "-I", ggml.__file__, str(path)]
    try:
        failure, answer = run_apart(command, json.dumps(cases), TIME_LIMIT_S)
    except KernelUnavailable as error:
        raise Unusable(str(error)) from None
    if failure:
        raise Unusable(failure)
    said = json.loads(answer)
    if reason := said.get("unusable"):
        raise Unusable(reason)
    results: list[str] = said["results"]
    return results


def _judge(rows: NDArray[np.float32], name: str, form: TypeForm, raw: bytes) -> None:
    """Compare quantised rows with what they were, by an implementation that is not llama.cpp's."""
    number = gguf.GGMLQuantizationType[name]
    blocks = np.frombuffer(raw, np.uint8).reshape(len(rows), form.row_bytes(COLUMNS))
    found = gguf.quants.dequantize(blocks, number).astype(np.float64)
    if found[3].any():
        raise Unusable(f"it makes other numbers than zero of zeros in {name}")
    for place in (0, 2):
        wanted = rows[place].astype(np.float64)
        error = float(np.sqrt(np.mean((found[place] - wanted) ** 2) / np.mean(wanted**2)))
        if not error <= MOST_ERROR[name]:
            raise Unusable(f"its {name} is off by {error:.1%}, more than {MOST_ERROR[name]:.0%}")
    if abs(found[1, 100] - 40.0) > 40.0 * MOST_ERROR[name]:
        raise Unusable(f"its {name} makes {found[1, 100]:.1f} of 40")
