"""Look for garbage less often while very many objects are made, none of which is garbage yet."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

YOUNG = 200_000
"""New objects after which the young ones are looked at; Python's own 700 make it look at all old
ones again and again while a quarter of a million tensors are described."""


@contextmanager
def collecting_rarely() -> Iterator[None]:
    """Raise the threshold of the garbage collector inside the block; nobody's own is lowered."""
    before = gc.get_threshold()
    if 0 < before[0] < YOUNG:  # 0 is switched off
        gc.set_threshold(YOUNG, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
