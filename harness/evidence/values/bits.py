"""Extremes of raw values, and whether all are finite, by two reductions over views as integers.

A float that is not negative grows with its bits read as an integer, and a negative one with its
bits read without a sign. So the largest signed and the largest unsigned integer of a chunk say what
is largest, what is smallest and whether anything is infinite or NaN, for every width, at the speed
of memory and without a type that numpy lacks (bfloat16, fp8).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
"""Values as they lie in the file."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """How the bits of one float type say infinite and negative."""

    signed: Any
    """Integer type of the same width, with a sign."""
    unsigned: Any
    """The same without one."""
    infinite: int
    """Bits of +infinity, or of the first NaN where there is none: all above are not finite."""
    sign: int
    """The bit of the sign; 0 in types without one."""
    zero_is_nan: bool = False
    """Whether negative zero stands for NaN, and nothing else does."""

    @property
    def zero_mask(self) -> int:
        """Bits that are all zero in a zero, whatever its sign."""
        return self.sign - 1 if self.sign and not self.zero_is_nan else 0xFF


def _form(width: int, infinite: int, **more: bool) -> Form:
    size = width // 8
    return Form(
        signed=np.dtype(f"<i{size}"),
        unsigned=np.dtype(f"<u{size}"),
        infinite=infinite,
        sign=1 << (width - 1),
        **more,
    )


FORMS = {
    "F64": _form(64, 0x7FF << 52),
    "F32": _form(32, 0x7F80_0000),
    "C64": _form(32, 0x7F80_0000),
    "F16": _form(16, 0x7C00),
    "BF16": _form(16, 0x7F80),
    "F8_E4M3": _form(8, 0x7F),
    "F8_E5M2": _form(8, 0x7C),
    "F8_E4M3FNUZ": _form(8, 0x80, zero_is_nan=True),
    "F8_E5M2FNUZ": _form(8, 0x80, zero_is_nan=True),
    "F8_E8M0": Form(signed=np.dtype("u1"), unsigned=np.dtype("u1"), infinite=0xFF, sign=0),
}
"""The float types of the format; a complex number is two floats."""


class Extremes:
    """Smallest and largest finite value of chunks of one type, and how many are not finite.

    Values are kept as *keys*: integers in the order of the values, so that chunks can be merged
    without decoding any.
    """

    def __init__(self, dtype: str) -> None:
        """Start without values.

        Args:
            dtype: a float type of `FORMS`.
        """
        self.dtype = "F32" if dtype == "C64" else dtype
        self.form = FORMS[dtype]
        self.nonfinite = 0
        self.low: int | None = None
        self.high: int | None = None

    def add(self, raw: Bytes) -> None:
        """Add a chunk of whole values."""
        form = self.form
        if not raw.size:
            return
        plain = raw.view(form.unsigned)
        most = int(plain.max())
        top = int(raw.view(form.signed).max()) if form.sign else most
        suspect = top >= form.infinite or (form.sign and most >= form.infinite | form.sign)
        if form.zero_is_nan:
            suspect = bool((plain == form.sign).any())
        if suspect:
            self._add_carefully(plain)
        else:
            self._widen(plain, top, most)

    def _widen(self, plain: NDArray[Any], top: int, most: int) -> None:
        """Take in finite values, whose largest signed and unsigned bits are known."""
        sign = self.form.sign
        least = 0
        if top < 0 or not sign or most < sign:
            least = int(plain.min())  # of one sign alone: the other end has the smallest bits
        high = top if top >= 0 else sign - least
        low = sign - most if sign and most >= sign else least
        self.high = high if self.high is None else max(self.high, high)
        self.low = low if self.low is None else min(self.low, low)

    def _add_carefully(self, plain: NDArray[Any]) -> None:
        """Count what is not finite, and take in the rest."""
        form = self.form
        if form.zero_is_nan:
            good = plain != form.sign
        else:
            mask = plain.dtype.type(form.zero_mask)
            good = (plain & mask) < form.infinite
        kept = plain[good]
        self.nonfinite += plain.size - kept.size
        if kept.size:
            most = int(kept.max())
            top = int(kept.view(form.signed).max()) if form.sign else most
            self._widen(kept, top, most)

    def merge(self, other: Extremes) -> None:
        """Take in what another part of the same tensor holds."""
        self.nonfinite += other.nonfinite
        for end, choose in (("low", min), ("high", max)):
            mine, theirs = getattr(self, end), getattr(other, end)
            known = [one for one in (mine, theirs) if one is not None]
            setattr(self, end, choose(known) if known else None)

    def bits(self, key: int) -> Bytes:
        """Return the raw value that a key stands for."""
        raw = key if key >= 0 else self.form.sign - key
        return np.array([raw], dtype=self.form.unsigned).view(np.uint8)


def count_trailing_zeros(raw: Bytes, dtype: str) -> int:
    """Return how many values at the end of a chunk are zero, of either sign."""
    form = FORMS[dtype]
    plain = raw.view(form.unsigned)
    mask = plain.dtype.type(form.zero_mask)
    nonzero = np.flatnonzero(plain & mask)
    return int(plain.size if not nonzero.size else plain.size - 1 - nonzero[-1])


def find_zero_rows(raw: Bytes, dtype: str, rows: int) -> NDArray[np.bool_]:
    """Return for each of `rows` equal parts whether all of its values are zero, of either sign."""
    form = FORMS[dtype]
    plain = raw.view(form.unsigned).reshape(rows, -1)
    mask = plain.dtype.type(form.zero_mask)
    found: NDArray[np.bool_] = ~(plain & mask).any(axis=1)
    return found
