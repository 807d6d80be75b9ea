"""Levels packed into 32-bit words, in numpy: the layouts of GPTQ, AWQ, bitsandbytes and int4."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Levels = NDArray[np.uint8]
"""Levels from 0 on."""
AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""In which nibble of a word of AWQ each of eight neighbouring outputs lies, 0 for the lowest."""


def unpack_words(words: NDArray[np.uint32], bits: int) -> Levels:
    """Return the levels of words that run down the rows, the first level lowest.

    Levels of 3 bits run on into the next word, as GPTQ packs them.

    Args:
        words: (rows, columns).
        bits: 2, 3, 4 or 8.

    Returns:
        Levels (rows * 32 // bits, columns).
    """
    count = words.shape[0] * 32 // bits
    places = np.arange(count) * bits
    row, shift = places // 32, (places % 32).astype(np.uint32)[:, None]
    found = words[row] >> shift
    spilled = np.flatnonzero(places % 32 + bits > 32)
    if spilled.size:
        found[spilled] |= words[row[spilled] + 1] << (np.uint32(32) - shift[spilled])
    levels: Levels = (found & np.uint32(2**bits - 1)).astype(np.uint8)
    return levels


def unpack_awq(words: NDArray[np.uint32]) -> Levels:
    """Return the 4-bit levels of AWQ's words that run along a row: (rows, columns * 8)."""
    levels = unpack_words(np.ascontiguousarray(words.T), 4).T
    grouped = levels.reshape(levels.shape[0], -1, 8)
    return np.ascontiguousarray(grouped[:, :, AWQ_PLACES].reshape(levels.shape))


def unpack_nibbles(raw: NDArray[np.uint8], *, high_first: bool) -> Levels:
    """Return two 4-bit levels a byte; bitsandbytes keeps the earlier one in the high half."""
    high, low = raw >> np.uint8(4), raw & np.uint8(15)
    pair = (high, low) if high_first else (low, high)
    return np.stack(pair, axis=-1).reshape(*raw.shape[:-1], -1)
