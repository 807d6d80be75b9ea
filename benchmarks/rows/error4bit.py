"""The error of 4-bit formats: ours against bitsandbytes, on three kinds of weights.

The relative root mean square error of a matrix that was quantised and came back. Gaussian weights
are what the formats are made for; outlier columns (one in a thousand, eight times as large) and
Student-t with five degrees of freedom are what real layers look like.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.frame import Plan, Row, Sides, Subject, at_most, needs

if TYPE_CHECKING:
    import torch

KINDS = ("gaussian", "outlier columns", "Student-t")
SEARCH = 16
"""Steps of the search for a scale."""
OURS = {
    "nf4": ("nf4", 0),
    "nf4, searched": ("nf4", SEARCH),
    "int4": ("int4", 0),
    "mxfp4": ("mxfp4", 0),
}
"""Our sides: format and steps of search."""
THEIRS = {
    "bitsandbytes NF4": ("nf4", False),
    "bitsandbytes NF4, double": ("nf4", True),
    "bitsandbytes FP4": ("fp4", False),
}
"""bitsandbytes' sides: type, and whether the scales are quantised as well."""


def make_weights(kind: str, rows: int, columns: int) -> torch.Tensor:
    """Return a matrix of one kind, always the same, in fp32."""
    import torch

    random = torch.Generator().manual_seed(0)
    weights = torch.randn(rows, columns, generator=random)
    if kind == "outlier columns":
        weights[:, ::1000] *= 8
    elif kind == "Student-t":
        squares = torch.randn(5, rows, columns, generator=random).square_().mean(0)
        weights /= squares.sqrt()
    return weights


def relative_error(weights: torch.Tensor, back: torch.Tensor) -> float:
    """Return the relative root mean square error, summed in fp64."""
    return float((back.double() - weights.double()).norm() / weights.double().norm())


def measure(plan: Plan) -> Sides:
    """Quantise and come back, in every format; nothing here depends on the machine's speed."""
    rows, columns = plan.pick(full=(2048, 4096), quick=(256, 4096))
    plan.facts["matrix"] = f"{rows} x {columns}, values in fp32"
    sides: Sides = {}
    for kind in KINDS:
        weights = make_weights(kind, rows, columns)
        for name in OURS:
            sides[f"{name}: {kind}"] = [_ours(name, weights)]
        for name in THEIRS:
            sides[f"{name}: {kind}"] = needs("bitsandbytes") or [_theirs(name, weights)]
    return sides


def _ours(name: str, weights: torch.Tensor) -> dict[str, float]:
    from mudpuppy.quant.formats import FORMATS

    wanted, search = OURS[name]
    used = FORMATS[wanted]
    packed = used.quantise(weights, search=search)
    return {
        "rmse": relative_error(weights, used.dequantise(packed)),
        "bits": 8 * (packed.qweight.nbytes + packed.scales.nbytes) / weights.numel(),
    }


def _theirs(name: str, weights: torch.Tensor) -> dict[str, float]:
    from bitsandbytes import functional

    kind, is_double = THEIRS[name]
    packed, state = functional.quantize_4bit(
        weights, blocksize=64, quant_type=kind, compress_statistics=is_double
    )
    back = functional.dequantize_4bit(packed, state)
    held = packed.nbytes + state.absmax.nbytes
    if is_double:
        held += state.state2.absmax.nbytes
    return {"rmse": relative_error(weights, back), "bits": 8 * held / weights.numel()}


def _row(ours: str, other: str, kind: str, bound: float | None) -> Row:
    return Row(
        name=f"{ours}-{kind}".replace(", ", "-").replace(" ", "-"),
        what=f"{ours}: relative error, {kind}",
        ours=f"{ours}: {kind}",
        against=f"{other}: {kind}",
        figure="rmse",
        goal=None if bound is None else at_most(bound),
    )


SUBJECT = Subject(
    name="error4bit",
    title="4-bit formats: what is lost",
    measure=measure,
    rows=(
        *(_row("nf4", "bitsandbytes NF4", kind, 1.0) for kind in KINDS),
        *(_row("nf4, searched", "bitsandbytes NF4", kind, 0.94) for kind in KINDS[:1]),
        *(_row("nf4, searched", "bitsandbytes NF4", kind, 1.0) for kind in KINDS[1:]),
        *(_row("mxfp4", "bitsandbytes FP4", kind, 1.0) for kind in KINDS),
        *(_row("int4", "bitsandbytes NF4", kind, None) for kind in KINDS),
        Row(
            name="nf4-absolute",
            what="nf4: relative error, gaussian",
            ours="nf4: gaussian",
            against=None,
            figure="rmse",
            goal=at_most(0.0920),
        ),
        Row(
            name="nf4-searched-absolute",
            what="nf4, searched: relative error, gaussian",
            ours="nf4, searched: gaussian",
            against=None,
            figure="rmse",
            goal=at_most(0.0865),
        ),
        *(
            Row(
                name=f"{name}-bits",
                what=f"{name}: bits a weight",
                ours=f"{name}: gaussian",
                against=None,
                figure="bits",
                goal=at_most(bound),
            )
            for name, bound in (("nf4", 4.25), ("mxfp4", 4.25))
        ),
    ),
)
