"""Write merged weights back in few bits, row block by row block, and measure what that loses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from mudpuppy.adapters.codes import NOT_FINITE
from mudpuppy.adapters.fold import Workspace, merged_rows, packed_rows
from mudpuppy.adapters.merge_plan import Output, Packing
from mudpuppy.errors import EngineError
from mudpuppy.quant.formats import FORMATS
from mudpuppy.quant.formats.interface import Format, Packed
from mudpuppy.quant.packed_files import forms

MOST_OFF = 0.5
"""How far the share of an adapter's change that is left may be from 1, or a warning says so."""


@dataclass
class Loss:
    """What rounding one merged weight to few bits did, summed in float64."""

    module: str
    """The layer, as the file names it."""
    weight: float = 0.0
    """Sum of the squares of the exact merge."""
    noise: float = 0.0
    """Sum of the squares of what was rounded away from it."""
    change: float = 0.0
    """Sum of the squares of the adapter's change D."""
    along: float = 0.0
    """<rounded merge - base, D>."""

    def add(self, seen: Tensor, merged: Tensor, rounded: Tensor) -> None:
        """Add some rows: what the adapter saw, the exact merge, and the merge in few bits."""
        self.weight += _dot(merged, merged)
        missed = rounded - merged
        self.noise += _dot(missed, missed)
        if seen is merged:
            return
        change = merged - seen
        self.change += _dot(change, change)
        self.along += _dot(rounded - seen, change)

    @property
    def error(self) -> float:
        """Relative error of the weight: |rounded - merge| / |merge|."""
        return sqrt(self.noise / self.weight) if self.weight else 0.0

    @property
    def survived(self) -> float | None:
        """<rounded - base, D> / <D, D>: 1 where all of the change is left; None without any."""
        return self.along / self.change if self.change else None

    @property
    def ratio(self) -> float | None:
        """|D| / |rounded - merge|: below 1 the change is smaller than the rounding."""
        return sqrt(self.change / self.noise) if self.change and self.noise else None

    def describe(self) -> dict[str, float | None]:
        """Return the figures as mudpuppy.json holds them."""
        figures = {"error": self.error, "survived": self.survived, "change": self.ratio}
        return {key: None if v is None else round(v, 6) for key, v in figures.items()}


@dataclass
class Repacking:
    """Few bits that a merge writes, and what they cost so far."""

    packing: Packing
    """Format, block size and search."""
    modules: tuple[str, ...]
    """The layers, as the model calls them."""
    odd: tuple[str, ...]
    """Those of them with an odd number of inputs."""
    losses: list[Loss] = field(default_factory=list)
    """One for every layer that was written."""

    def describe(self) -> dict[str, Any]:
        """Return what mudpuppy.json says of it."""
        form = FORMATS[self.packing.format]
        said = form.describe(self.packing.block_size, self.packing.search)
        return {**said, "losses": {loss.module: loss.describe() for loss in self.losses}}

    def tell(self) -> Iterator[str]:
        """Yield what rounding lost, one line each; warnings last."""
        if not self.losses:
            return
        worst = max(self.losses, key=lambda loss: loss.error)
        total = sqrt(sum(x.noise for x in self.losses) / (sum(x.weight for x in self.losses) or 1))
        yield (
            f"{self.packing.format}: {len(self.losses)} layers, {total:.2%} off the exact merge, "
            f"at most {worst.error:.2%} ({worst.module})"
        )
        changed = [loss for loss in self.losses if loss.change]
        if not changed:
            return
        kept = sum(x.along for x in changed) / sum(x.change for x in changed)
        far = max(changed, key=_off)
        yield (
            f"{self.packing.format}: {kept:.1%} of the adapter's change is left; farthest from all "
            f"of it: {far.survived:.1%} ({far.module})"
        )
        small = [loss for loss in changed if (loss.ratio or 1.0) < 1]
        if small:
            yield (
                f"warning: in {len(small)} of {len(changed)} layers the adapter's change is "
                f"smaller than the rounding, such as {small[0].module} ({small[0].ratio:.2f} of "
                "it): keep the merged model in 16 bits, or serve the adapter beside its base"
            )
        lost = [loss for loss in changed if _off(loss) > MOST_OFF]
        if lost:
            yield (
                f"warning: in {len(lost)} of {len(changed)} layers what is left of the adapter's "
                f"change is more than {MOST_OFF:.0%} off, as in {far.module} ({far.survived:.1%})"
            )


def _off(loss: Loss) -> float:
    return abs((loss.survived or 0.0) - 1)


def _dot(one: Tensor, other: Tensor) -> float:
    return float((one.float() * other.float()).sum(dtype=torch.float64))


def part_shapes(output: Output) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return name, type and shape of the tensors that a weight becomes, in their order."""
    assert output.packed_as is not None
    packing, module = output.packed_as, output.name.removesuffix(".weight")
    rows, columns = output.source.shape
    wanted = forms(FORMATS[packing.format], rows, columns, packing.block_size)
    return [(f"{module}.{part}", form.dtypes[0], form.shape) for part, form in wanted.items()]


def repack(output: Output, work: Workspace, repacking: Repacking) -> Iterator[memoryview]:
    """Yield the bytes of a weight's levels, block by block, and then those of its scales.

    A layer that the adapter leaves alone keeps the levels that it has in the same packing: they are
    what it saw, and rounding them again could only change them. Everything else is rounded from
    the fp32 sum. The scales of one weight are held until its levels are out.

    Raises:
        EngineError: MP-E09, a value is not finite.
    """
    loss = Loss(output.name.removesuffix(".weight"))
    scales: list[Tensor] = []
    for packed in _packed_blocks(output, work, loss):
        scales.append(packed.scales)
        yield packed.qweight.view(torch.uint8).reshape(-1).numpy().data
    whole = torch.cat(scales).contiguous()
    yield whole.view(torch.uint8).reshape(-1).numpy().data
    repacking.losses.append(loss)


def _packed_blocks(output: Output, work: Workspace, loss: Loss) -> Iterator[Packed]:
    packing = output.packed_as
    assert packing is not None
    form = FORMATS[packing.format]
    for (start, stop), seen, merged in merged_rows(output, "F32", work):
        packed = None
        if output.change is None and output.rows is None:
            packed = _as_it_lies(packed_rows(output, start, stop, work), form, packing)
        if packed is None:
            packed = _quantise(form, merged, output, packing)
        loss.add(seen, merged, form.dequantise(packed))
        yield packed


def _as_it_lies(
    found: tuple[Format, Packed] | None, form: Format, packing: Packing
) -> Packed | None:
    """Return packed rows if they are in the wanted form already."""
    if found is None or found[0] is not form or found[1].block_size != packing.block_size:
        return None
    return found[1]


def _quantise(form: Format, merged: Tensor, output: Output, packing: Packing) -> Packed:
    try:
        return form.quantise(merged, packing.block_size, packing.search)
    except EngineError as error:
        raise EngineError(
            f"the merged tensor {output.name} is not finite: {error}",
            code=NOT_FINITE,
            hint="ask mudpuppy-doctor about the adapter and its base",
        ) from error
