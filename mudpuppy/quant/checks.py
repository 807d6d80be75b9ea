"""Refuse a damaged or mismatched checkpoint in few bits before anything computes with it.

Loaders do not: a part that is absent is filled at random, scales of another block size are
multiplied with their neighbours' levels, and a NaN shows when the first loss does. What a format
allows is said by the format; here is what to do about the rest, for every format alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from mudpuppy.errors import ModelError, shown
from mudpuppy.quant.codes import PART_MISSING, WRONG_FORM, WRONG_GROUPS, WRONG_SCALES

if TYPE_CHECKING:
    from torch import Tensor

HINT = "fetch or quantise the model again; what else is wrong with it: mudpuppy-doctor MODEL"


class Form(NamedTuple):
    """What a part of a layer must be."""

    dtypes: tuple[str, ...]
    """Types as safetensors calls them."""
    shape: tuple[int, ...]
    """Its shape."""


class QuantisedModelError(ModelError):
    """A model in few bits that cannot be used.

    Args:
        message: what is wrong and where.
        code: one of `mudpuppy.quant.codes`, put before the message.
        hint: what to type or change next.
    """

    def __init__(self, message: str, *, code: str, hint: str = HINT) -> None:
        self.code = code
        super().__init__(f"{code}: {message}", hint=hint)


def refuse(code: str, where: str, problem: str) -> QuantisedModelError:
    """Return the error of a checkpoint that cannot be used."""
    return QuantisedModelError(f"{where}: {problem}", code=code)


def require_parts(
    where: str,
    found: Mapping[str, tuple[str, tuple[int, ...]]],
    wanted: Mapping[str, Form],
) -> None:
    """Refuse a layer whose parts are not all there, or are of another form.

    Args:
        where: folder and layer.
        found: type and shape of every part that is there.
        wanted: what its format asks for.

    Raises:
        QuantisedModelError: MP-Q02, a part is missing; MP-Q03, one has another type or shape.
    """
    for part, form in wanted.items():
        if part not in found:
            raise refuse(PART_MISSING, where, f"the part {part} is missing")
        dtype, shape = found[part]
        if dtype not in form.dtypes:
            expected = " or ".join(form.dtypes)
            raise refuse(WRONG_FORM, where, f"{part} is of the type {dtype}, not {expected}")
        if tuple(shape) != tuple(form.shape):
            problem = f"{part} has the shape {list(shape)}, and {list(form.shape)} is declared"
            raise refuse(WRONG_FORM, where, problem)


def require_scales(where: str, part: str, scales: Tensor, *, signed: bool = False) -> None:
    """Refuse scales that no writer makes.

    Args:
        where: folder and layer.
        part: name of the part.
        scales: any shape, floating.
        signed: whether they may be below zero.

    Raises:
        QuantisedModelError: MP-Q04, some are NaN, infinite or below zero.
    """
    if not scales.numel():
        return
    low, high = (float(bound) for bound in scales.float().aminmax())  # NaN goes through
    if not (low > -float("inf") and high < float("inf")):
        count = int((~scales.float().isfinite()).sum())
        raise refuse(WRONG_SCALES, where, f"{count} of {scales.numel()} {part} are NaN or infinite")
    if low < 0 and not signed:
        count = int((scales < 0).sum())
        raise refuse(WRONG_SCALES, where, f"{count} of {scales.numel()} {part} are below zero")


def require_groups(where: str, index: Tensor, groups: int, group_size: int | None = None) -> None:
    """Refuse groups of inputs (`g_idx`) that are not there, or that hold too many inputs.

    Args:
        where: folder and layer.
        index: (in,), the group of every input.
        groups: how many there are scales for.
        group_size: inputs of a group; None where it is not declared.

    Raises:
        QuantisedModelError: MP-Q05.
    """
    low, high = (int(bound) for bound in index.aminmax())
    if low < 0 or high >= groups:
        problem = f"g_idx names the groups {low} to {high}, and there are {groups}"
        raise refuse(WRONG_GROUPS, where, problem)
    largest = int(index.long().bincount().max())
    if group_size is not None and largest > group_size:
        problem = f"g_idx puts {largest} inputs into one group, and {shown(group_size)} is declared"
        raise refuse(WRONG_GROUPS, where, problem)
