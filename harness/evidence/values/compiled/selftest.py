"""The self-test of a fresh library: it finds what the numpy path finds, here, or is not used.

It is tried in a process of its own: an instruction that this processor lacks ends that process, and
is an outcome here. Integers and extremes must be the same; sums of squares, which are added in
another order, agree within `TOLERANCE`.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.evidence.values.arrays import decode
from harness.evidence.values.bits import FORMS, Bytes, Extremes
from harness.evidence.values.compiled import abi, trial
from harness.evidence.values.rowsums import RowSums, sum_rows
from mudpuppy.native.apart import run_apart

LIMIT_S = 60
"""Time that a library has for its cases; it needs a tenth of a second."""
TOLERANCE = 1e-5
"""Relative difference of two sums of squares: rows have up to half a million values, and float32 a
rounding error of 6e-8."""
SHAPES = ((1, 1), (3, 8), (5, 9), (7, 33), (4, 130), (2, 4099), (40, 16))
"""Rows and values of a row: less than a vector, odd ones, more than is added in floats alone."""
BITS = "bits"
"""The kind of values that are random bits."""
VALUES = ("plain", "positive", "negative", "zeros", "few", "infinite", BITS)
"""What the cases hold: both signs, one sign, nothing but zeros, some rows of zeros, one infinity or
the type's one NaN, any bits."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A tensor, and how it is read."""

    dtype: str
    values: str
    rows: int
    width: int
    raw: Bytes
    has_rows: bool
    chunk: int
    """Units that are read at once."""

    def __str__(self) -> str:
        return f"{self.dtype} {self.rows} x {self.width} ({self.values})"

    @property
    def unit(self) -> int:
        """Bytes of a row, or of one value."""
        return self.raw.size // self.rows if self.has_rows else self.raw.size // self.width


def make_samples() -> Iterator[Sample]:
    """Yield tensors of every type, shape and kind of values, the same at every call."""
    random = np.random.default_rng(0)
    for dtype in abi.KINDS:
        for rows, width in SHAPES:
            for values in VALUES:
                raw = _make_values(dtype, rows * width, values, random)
                has_rows = dtype != "F8_E8M0" and values != "negative"
                count = rows if has_rows else 1
                yield Sample(
                    dtype=dtype,
                    values=values,
                    rows=count,
                    width=rows * width // count,
                    raw=raw,
                    has_rows=has_rows,
                    chunk=int(random.integers(1, 4)) if has_rows else int(random.integers(5, 999)),
                )


def _make_values(dtype: str, count: int, values: str, random: np.random.Generator) -> Bytes:
    form = FORMS[dtype]
    size = form.unsigned.itemsize
    raw: Bytes = random.integers(0, 256, count * size, np.uint8)
    plain = raw.view(form.unsigned)
    if values == "zeros":
        plain[:] = 0
    elif values == "positive" and form.sign:
        plain &= plain.dtype.type(form.sign - 1)
    elif values == "negative" and form.sign:
        plain |= plain.dtype.type(form.sign)
    elif values == "few":
        plain[count // 3 :] = 0
        plain[count // 2 :: 3] = form.sign
    if values != BITS:  # the largest exponents would hide all else in the squares
        bad = _is_large(raw, dtype)
        plain[bad] = 0 if values != "negative" else plain.dtype.type(form.sign | 1)
    if values == "infinite":
        plain[count // 2] = form.infinite | (form.sign if count % 2 else 0)
    return raw


def _is_large(raw: Bytes, dtype: str) -> Any:
    if dtype == "F8_E8M0":
        return np.zeros(raw.size, np.bool_)
    with np.errstate(all="ignore"):
        wide = raw.view("<f8") if dtype == "F64" else decode(raw, dtype)
        return ~(np.abs(wide) < 1e15)


def judge_library(library: Path) -> tuple[bool, str]:
    """Try a fresh library in a process of its own, and compare.

    Returns:
        Whether it may be used, and what was tested or what is wrong.

    Raises:
        KernelUnavailable: it could not be tried, which says nothing about the library.
    """
    samples = list(make_samples())
    cases = [_case(sample, number % 17) for number, sample in enumerate(samples)]
    short: trial.Case = {**cases[-1], "lacking": 1}
    command = [sys.executable, "-I", "-S", str(trial.__file__), str(library)]
    failure, answer = run_apart(command, json.dumps([*cases, short]), LIMIT_S)
    if failure:
        return False, failure
    *results, last = json.loads(answer)
    for sample, found in zip(samples, results, strict=True):
        if wrong := _find_difference(sample, found):
            return False, f"{wrong} of {sample} differ from numpy's"
    if last["error"] != abi.ENDED:
        return False, "a file that is too short was taken for whole"
    return True, f"{len(samples)} tensors are seen as by numpy"


def _case(sample: Sample, shift: int) -> trial.Case:
    return {
        "dtype": sample.dtype,
        "raw": base64.b64encode(sample.raw.tobytes()).decode(),
        "rows": sample.rows if sample.has_rows else 0,
        "unit": sample.unit,
        "step": sample.unit * sample.chunk,
        "shift": shift,
        "lacking": 0,
    }


def _find_difference(sample: Sample, found: trial.Result) -> str:
    """Return what of a sample was seen otherwise than by numpy; empty where nothing was."""
    extremes = Extremes(sample.dtype)
    extremes.add(sample.raw)
    seen = (found["low"], found["high"]) if found["seen"] else (None, None)
    told: dict[str, tuple[Any, Any]] = {
        "errors": (found["error"], 0),
        "values that are not finite": (found["nonfinite"], extremes.nonfinite),
        "extremes": (seen, (extremes.low, extremes.high)),
    }
    if sample.has_rows:
        sums = sum_rows(sample.raw, sample.dtype, sample.rows)
        marks, zero = sums.marks.tobytes(), sums.zero.tobytes()
        told["zeros"] = (found["zeros"], sums.zeros)
        told["marks"] = (base64.b64decode(found["marks"]), marks + trial.PAST)
        told["rows of zeros"] = (base64.b64decode(found["zero"]), zero + trial.PAST)
        squares = base64.b64decode(found["squares"])
        told["bytes past the squares"] = (squares[-len(trial.PAST) :], trial.PAST)
        told["squares"] = (_agree(squares[: -len(trial.PAST)], sums, sample), True)
    return next((name for name, (mine, numpys) in told.items() if mine != numpys), "")


def _agree(raw: bytes, sums: RowSums, sample: Sample) -> bool:
    """Whether sums of squares agree; of rows with values that are not finite they mean nothing."""
    mine = np.frombuffer(raw, np.float32)
    finite = [_is_finite(row, sample.dtype) for row in sample.raw.reshape(sample.rows, -1)]
    with np.errstate(all="ignore"):
        close = np.isclose(mine, sums.squares, rtol=TOLERANCE, atol=1e-37)
    return bool(np.all(close | ~np.array(finite)))


def _is_finite(row: Bytes, dtype: str) -> bool:
    extremes = Extremes(dtype)
    extremes.add(np.ascontiguousarray(row))
    return not extremes.nonfinite
