"""Refuse a plain checkpoint whose tensors have another type or shape than the model's parameters.

Loaders convert: levels of int8, or fp8 without their scales, become floats that are no weights, and
a weight that is quantised on its way never meets the layer that it is for. Headers tell both.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from mudpuppy.base_path import ask_the_doctor
from mudpuppy.errors import ModelError
from mudpuppy.quant.checks import QuantisedModelError
from mudpuppy.quant.codes import WRONG_FORM
from mudpuppy.quant.packed_files import Entries
from mudpuppy.quant.places import find_targets
from mudpuppy.stored import FLOATS


def require_plain(path: str, model: Any, tensors: Entries, packed: Collection[str] = ()) -> None:
    """Refuse tensors that are no weights, or that do not fit.

    Args:
        path: for messages.
        model: without weights.
        tensors: of the checkpoint; those that the model has no place for are passed over.
        packed: names of weights whose form is checked elsewhere.

    Raises:
        QuantisedModelError: MP-Q03, a weight is of another type than a float.
        ModelError: one has another shape than the model's.
    """
    state = model.state_dict()
    plain = [name for name in tensors if name not in packed]
    for name, (target, is_whole) in find_targets(model, plain).items():
        wanted, found = state.get(target), tensors[name]
        if wanted is None:
            continue
        if wanted.is_floating_point() and found.dtype not in FLOATS:
            raise QuantisedModelError(
                f"{path}: the tensor {name} is of the type {found.dtype}, not one of "
                f"{', '.join(FLOATS)}; is it a quantised model that lost its quantization_config?",
                code=WRONG_FORM,
                hint=ask_the_doctor(path),
            )
        if is_whole and found.shape != tuple(wanted.shape):
            raise ModelError(
                f"{path}: the tensor {name} has the shape {list(found.shape)}, and the model of "
                f"config.json {list(wanted.shape)}",
                hint=ask_the_doctor(path),
            )
