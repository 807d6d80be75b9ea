"""Find the layers in 4 bits of a checkpoint, whoever wrote them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mudpuppy.errors import shown
from mudpuppy.quant.bnb_files import BNB_METHOD, bnb_layers
from mudpuppy.quant.checks import refuse
from mudpuppy.quant.codes import UNKNOWN_SCHEME
from mudpuppy.quant.packed_files import OWN_METHOD, Entries, StoredLayer, own_layers
from mudpuppy.stored import Reader


def find_layers(
    folder: Path, tensors: Entries, declared: Mapping[str, Any], reader: Reader
) -> dict[str, StoredLayer]:
    """Return every layer in 4 bits of a checkpoint by its name in the files, checked.

    Args:
        folder: for messages.
        tensors: all tensors of the checkpoint.
        declared: its `quantization_config`.
        reader: reads small parts, such as tables.

    Raises:
        QuantisedModelError: MP-Q01 to MP-Q04; the message names the layer.
    """
    method = declared.get("quant_method")
    if method == OWN_METHOD:
        return own_layers(folder, tensors, declared)
    if method == BNB_METHOD:
        return bnb_layers(folder, tensors, reader)
    raise refuse(UNKNOWN_SCHEME, str(folder), f"the quant_method {shown(method)} is not known")
