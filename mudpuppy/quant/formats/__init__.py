"""The formats that a base can be held in, by name; a new one is one module and one line."""

from __future__ import annotations

from mudpuppy.errors import ConfigError, shown
from mudpuppy.quant.formats.bnb import BnbFp4, BnbNf4
from mudpuppy.quant.formats.int4 import Int4
from mudpuppy.quant.formats.int8 import Int8
from mudpuppy.quant.formats.interface import Format, Packed
from mudpuppy.quant.formats.mxfp4 import Mxfp4
from mudpuppy.quant.formats.nf4 import Nf4

__all__ = ["FORMATS", "FOUR_BITS", "Format", "Packed", "find_format"]

FORMATS: dict[str, Format] = {
    form.name: form for form in (Nf4(), Int4(), Mxfp4(), Int8(), BnbNf4(), BnbFp4())
}
"""Every format by its name; what `--quant` offers is `mudpuppy.config`'s to say."""
FOUR_BITS: dict[str, Format] = {name: form for name, form in FORMATS.items() if form.bits == 4}
"""Those with two weights a byte, which kernels read."""


def find_format(name: str) -> Format:
    """Return the format of that name, or of that scheme in provenance.

    Raises:
        ConfigError: there is none.
    """
    for form in FORMATS.values():
        if name in (form.name, form.scheme):
            return form
    raise ConfigError([f"there is no format {shown(name)}; known: {', '.join(FORMATS)}"])
