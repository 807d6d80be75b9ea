"""What a GGUF file holds, as the gguf package reads it."""

import hashlib
from pathlib import Path
from typing import Any


def read_tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return type, shape (columns first, as the file says it) and bytes of every tensor."""
    import gguf

    return {
        one.name: (one.tensor_type.name, tuple(map(int, one.shape)), one.data.tobytes())
        for one in gguf.GGUFReader(path).tensors
    }


def read_metadata(path: Path) -> dict[str, Any]:
    """Return every key with its value, but not those of the reader itself."""
    import gguf

    fields = gguf.GGUFReader(path).fields
    return {
        key: (field.types, field.contents())
        for key, field in fields.items()
        if not key.startswith("GGUF.")
    }


def digest(path: Path) -> dict[str, str]:
    """Return type, shape and hash of every tensor."""
    return {
        name: f"{kind} {'x'.join(map(str, shape))} {hashlib.sha256(data).hexdigest()[:16]}"
        for name, (kind, shape, data) in sorted(read_tensors(path).items())
    }
