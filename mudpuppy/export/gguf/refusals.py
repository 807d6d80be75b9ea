"""Why a model is not written as GGUF: every refusal has a code that stays.

MP-X01  the architecture is none that is written
MP-X02  the weights are not those that the settings speak of: missing, left over, other shapes
MP-X03  the settings say what the format, or llama.cpp, has no word for
MP-X04  the folder is none of plain weights: an adapter, packed bits, no safetensors
MP-X06  a value that the chosen type cannot hold, or no number at all
MP-X07  nothing is installed that makes the chosen type
"""

from __future__ import annotations

from mudpuppy.errors import ModelError


class ExportRefused(ModelError):
    """A model that cannot be written as GGUF; nothing was written.

    Args:
        code: one of the codes above.
        message: what is wrong, and where.
        hint: what to type or change next.
    """

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(f"{code}: {message}", hint=hint)
        self.code = code
