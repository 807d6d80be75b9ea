"""The end of what a process prints: read while it comes, and no more of it kept."""

from __future__ import annotations

import os
import threading
from typing import IO

BLOCK = 65_536
"""Bytes that are read at once."""


class Tail:
    """The last bytes of a stream, which a thread reads so that whoever writes never waits.

    A server writes some lines for every request, and may run for months.

    Args:
        stream: read end of a pipe; closed by `close`.
        most: bytes that are kept.
    """

    def __init__(self, stream: IO[bytes], most: int) -> None:
        self._stream, self._most = stream, most
        self._kept = bytearray()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._read, name="mudpuppy-log", daemon=True)
        self._thread.start()

    def text(self, wait_s: float) -> str:
        """Return the last bytes as text.

        Args:
            wait_s: how long the end of the stream is waited for.
        """
        self._thread.join(wait_s)
        with self._lock:
            return bytes(self._kept[-self._most :]).decode("utf-8", "replace")

    def close(self, wait_s: float) -> None:
        """Close the stream as soon as it ends; one that does not is left to the process's exit."""
        self._thread.join(wait_s)
        if not self._thread.is_alive():
            self._stream.close()

    def _read(self) -> None:
        number = self._stream.fileno()
        while block := os.read(number, BLOCK):
            with self._lock:
                self._kept += block
                if len(self._kept) > 2 * self._most:  # not at every block: it moves what is kept
                    del self._kept[: -self._most]
