"""What reading a damaged zip archive can raise: one list for all who open those of torch."""

from __future__ import annotations

import struct
import zipfile
import zlib

BROKEN_ARCHIVE: tuple[type[Exception], ...] = (
    *(OSError, EOFError, ValueError, OverflowError, NotImplementedError, RuntimeError),
    *(KeyError, zipfile.BadZipFile, zlib.error, struct.error),
)
"""A name that is no text is a ValueError, an encrypted member a RuntimeError, a member that is not
listed a KeyError, an unknown way of packing a NotImplementedError."""
