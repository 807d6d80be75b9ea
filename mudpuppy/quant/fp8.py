"""fp8 training: linear layers that multiply in scaled E4M3, with E5M2 gradients, over masters.

What is rounded is only what goes into a matrix product; the weights themselves stay as they are
(fp32 masters, or an adapter's frozen base) and are rounded anew at every use:

    scale    max|t| / max(format), fp32, one for a tensor; 1 where the tensor is zero
    value    round-to-nearest-even(clip(t / scale)) in the format; NaN and infinity become NaN
    forward  y  = (value(x) @ value(w).T) * scale(x) * scale(w) + b          x, w in E4M3
    backward dx = (value(g) @ value(w)) * scale(g) * scale(w)                g in E5M2
             dw = (value(g).T @ value(x)) * scale(g) * scale(x)

The scales follow each tensor, or, delayed, the steps before (`mudpuppy.quant.fp8_history`). The
formats and the recipe are those of Micikevicius et al., "FP8 formats for
deep learning" (arXiv 2209.05433). Where a device multiplies fp8 in hardware, `torch._scaled_mm`
does it; elsewhere the values are rounded to fp8 and multiplied in fp32 (CPU) or bf16 (GPU): the
same numbers up to the order of summation, and no speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from mudpuppy.env.traps import fp8_of_arch
from mudpuppy.errors import EngineError
from mudpuppy.quant.blocks import computing_as, find_decoder_layers, find_linears
from mudpuppy.quant.fp8_history import GRADIENT, INPUT, WEIGHT, Fp8History

MULTIPLE = 16
"""Sizes of a matrix that fp8 hardware multiplies are multiples of this."""
HISTORY = "fp8_history"
"""Name of the submodule that a layer's history is while it trains."""
SMALLEST_SCALE = 2.0**-126
"""Scales are never subnormal: dividing by one would overflow."""
PROBE_TOLERANCE = 0.02
"""Relative difference of a hardware product to the emulated one; both round to bf16 at the end."""


@dataclass(frozen=True, kw_only=True)
class Fp8Path:
    """How a device multiplies in fp8."""

    hardware: bool
    """Whether `torch._scaled_mm` multiplies; otherwise the products are emulated."""
    reason: str
    """Why, as it is printed and recorded."""
    forward: torch.dtype = torch.float8_e4m3fn
    """Format of inputs and weights."""
    gradient: torch.dtype = torch.float8_e5m2
    """Format of gradients."""


def choose_fp8_path(device: torch.device) -> Fp8Path:
    """Choose how `device` multiplies in fp8; hardware is believed after a product was checked."""
    if device.type != "cuda":
        why = f"emulated on {device.type}: the rounding is real, the speed is not"
        return Fp8Path(hardware=False, reason=why)
    arch = _arch_of(device)
    how, why = fp8_of_arch(arch)
    if how != "hardware":
        return Fp8Path(hardware=False, reason=f"emulated: {why}")
    # CDNA3 has the older formats, whose largest value is another one
    own = {"forward": torch.float8_e4m3fnuz, "gradient": torch.float8_e5m2fnuz}
    path = Fp8Path(hardware=True, reason=why, **(own if arch.startswith("gfx94") else {}))
    try:
        error = measure_path_error(path, device)
    except RuntimeError as problem:
        line = str(problem).partition("\n")[0]
        return Fp8Path(hardware=False, reason=f"emulated on {arch}, since {line}")
    if not error <= PROBE_TOLERANCE:
        wrong = f"whose fp8 product is off by {error:.2g}"
        return Fp8Path(hardware=False, reason=f"emulated on {arch}, {wrong}")
    return path


def _arch_of(device: torch.device) -> str:
    """Return `gfx1201` or `sm_89`."""
    if torch.version.hip is None:
        major, minor = torch.cuda.get_device_capability(device)
        return f"sm_{major}{minor}"
    return str(torch.cuda.get_device_properties(device).gcnArchName).partition(":")[0]


@torch.no_grad()
def measure_path_error(path: Fp8Path, device: torch.device) -> float:
    """Return the relative difference of a hardware product and its gradients to the emulation."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(32, 64, generator=generator).to(device)
    right = torch.randn(48, 64, generator=generator).to(device)
    grad = torch.randn(32, 48, generator=generator).to(device)
    worst = 0.0
    for a, b, formats in (
        (left, right, (path.forward, path.forward)),
        (grad, right.t(), (path.gradient, path.forward)),
        (grad.t(), left.t(), (path.gradient, path.forward)),
    ):
        one, other = quantise_fp8(a, formats[0]), quantise_fp8(b, formats[1])
        found = _multiply(one, other, torch.bfloat16, hardware=True).double()
        exact = _multiply(one, other, torch.float32, hardware=False).double()
        worst = max(worst, float((found - exact).norm() / exact.norm()))
    return worst


@dataclass(frozen=True)
class ScaledFp8:
    """A tensor rounded to fp8, and what one unit of it stands for."""

    values: Tensor
    """The rounded values, in an fp8 dtype."""
    scale: Tensor
    """fp32 scalar; the tensor is about `values * scale`."""

    def t(self) -> ScaledFp8:
        """Return the transpose; the memory is shared."""
        return ScaledFp8(self.values.t(), self.scale)

    def dequantise(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the rounded tensor in `dtype`."""
        return (self.values.to(torch.float32) * self.scale).to(dtype)


def quantise_fp8(tensor: Tensor, dtype: torch.dtype) -> ScaledFp8:
    """Round a tensor to an fp8 format with one scale, so that its largest value just fits.

    NaN stays NaN, and an infinity makes all of the tensor NaN: a run that diverges must show it.
    """
    exact = tensor.detach().to(torch.float32)
    return _round(exact, dtype, _scale_of(_peak_of(exact), dtype))


def quantise_delayed(
    tensor: Tensor, dtype: torch.dtype, history: Fp8History, place: int, *, watched: bool
) -> ScaledFp8:
    """Round a tensor to an fp8 format with the scale that the steps before ask for.

    Args:
        tensor: what is rounded.
        dtype: the format.
        history: of the layer.
        place: which of its tensors this is.
        watched: whether the tensor becomes part of the history.
    """
    exact = tensor.detach().to(torch.float32)
    known = history.peak(place, exact.device)
    scale = _scale_of(torch.where(known > 0, known, _peak_of(exact)), dtype)
    if watched:
        history.see(place, exact, scale * torch.finfo(dtype).max)
    # clipped to the range an infinity would look like any large value
    finite = torch.where(exact.isinf(), torch.full_like(exact, torch.nan), exact)
    return _round(finite, dtype, scale)


def _peak_of(exact: Tensor) -> Tensor:
    return exact.abs().amax() if exact.numel() else exact.new_zeros(())


def _scale_of(peak: Tensor, dtype: torch.dtype) -> Tensor:
    scale = (peak / torch.finfo(dtype).max).clamp(min=SMALLEST_SCALE)
    return torch.where(peak == 0, torch.ones_like(scale), scale)


def _round(exact: Tensor, dtype: torch.dtype, scale: Tensor) -> ScaledFp8:
    largest = torch.finfo(dtype).max
    # without the clip a value that division rounds up past the largest would become NaN
    return ScaledFp8((exact / scale).clamp(-largest, largest).to(dtype), scale)


def _multiply(left: ScaledFp8, right: ScaledFp8, dtype: torch.dtype, *, hardware: bool) -> Tensor:
    """Return `left @ right.T` (m, n) of rounded matrices (m, k) and (n, k) in `dtype`."""
    if hardware:
        return _scaled_mm(left, right, dtype)
    device = left.values.device.type
    # both formats fit bf16 exactly, so only the sum is rounded there
    compute = torch.float32 if device == "cpu" else torch.bfloat16
    with torch.autocast(device, enabled=False):
        product = left.values.to(compute) @ right.values.to(compute).t()
    return (product.to(torch.float32) * (left.scale * right.scale)).to(dtype)


def _scaled_mm(left: ScaledFp8, right: ScaledFp8, dtype: torch.dtype) -> Tensor:
    """Return the hardware product; rows, and the summed length, are padded with zeros."""
    rows = left.values.shape[0]
    a, b = _padded(left.values), _padded(right.values)
    product = torch._scaled_mm(
        a,
        b.t(),
        scale_a=left.scale,
        scale_b=right.scale,
        out_dtype=dtype if dtype.itemsize == 2 else torch.float32,
    )
    return product[:rows, : right.values.shape[0]].to(dtype)


def _padded(values: Tensor) -> Tensor:
    """Return the matrix row by row in memory, with both sizes multiples of what hardware takes."""
    rows, columns = (-size % MULTIPLE for size in values.shape)
    if not rows and not columns:
        return values.contiguous()
    # fp8 has few operations: padding is done on its bytes, and 0 is 0 in every format
    bytes_ = nn.functional.pad(values.contiguous().view(torch.uint8), (0, columns, 0, rows))
    return bytes_.view(values.dtype)


class _Scaling(NamedTuple):
    """Where the scales of a layer come from."""

    history: Fp8History | None
    """What delayed scales follow, or None where each is that of its tensor."""
    watched: bool
    """Whether what is rounded becomes part of the history."""

    def quantise(self, tensor: Tensor, dtype: torch.dtype, place: int) -> ScaledFp8:
        """Round one of the layer's tensors."""
        if self.history is None:
            return quantise_fp8(tensor, dtype)
        return quantise_delayed(tensor, dtype, self.history, place, watched=self.watched)


class _Fp8Linear(torch.autograd.Function):
    """`F.linear` in fp8; it keeps the rounded input and weight for backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        path: Fp8Path,
        dtype: torch.dtype,
        scaling: _Scaling,
    ) -> Tensor:
        rows = scaling.quantise(x.flatten(0, -2), path.forward, INPUT)
        matrix = scaling.quantise(weight, path.forward, WEIGHT)
        ctx.save_for_backward(rows.values, rows.scale, matrix.values, matrix.scale)
        ctx.scaling = scaling
        ctx.path, ctx.dtypes = path, (x.dtype, weight.dtype, None if bias is None else bias.dtype)
        y = _multiply(rows, matrix, dtype, hardware=path.hardware)
        y = y.view(*x.shape[:-1], weight.shape[0])
        return y if bias is None else y + bias.to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        path: Fp8Path = ctx.path
        x_values, x_scale, w_values, w_scale = ctx.saved_tensors
        x_dtype, w_dtype, b_dtype = ctx.dtypes
        flat = grad.flatten(0, -2)
        rounded = ctx.scaling.quantise(flat, path.gradient, GRADIENT)
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            matrix = ScaledFp8(w_values, w_scale)
            dx = _multiply(rounded, matrix.t(), x_dtype, hardware=path.hardware)
            dx = dx.view(*grad.shape[:-1], w_values.shape[1])
        if ctx.needs_input_grad[1]:
            rows = ScaledFp8(x_values, x_scale)
            dw = _multiply(rounded.t(), rows.t(), w_dtype, hardware=path.hardware)
        if ctx.needs_input_grad[2]:
            db = flat.to(torch.float32).sum(0).to(b_dtype)
        return dx, dw, db, None, None, None


def fp8_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    path: Fp8Path,
    *,
    history: Fp8History | None = None,
    watched: bool = False,
) -> Tensor:
    """Return `x @ weight.T + bias` (..., out), multiplied in fp8.

    Args:
        x: (..., in), at least one dimension.
        weight: (out, in), in any floating dtype; it is only read.
        bias: (out), or None; added in the dtype of the result.
        path: how to multiply.
        history: what delayed scales follow; by default each scale is that of its tensor.
        watched: whether this pass becomes part of the history.

    Returns:
        The product in autocast's dtype, or else that of `x`.
    """
    kind = x.device.type
    is_cast = torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    dtype = torch.get_autocast_dtype(kind) if is_cast else x.dtype
    result = _Fp8Linear.apply(  # type: ignore[no-untyped-call]
        x if x.dim() > 1 else x.unsqueeze(0), weight, bias, path, dtype, _Scaling(history, watched)
    )
    return cast(Tensor, result if x.dim() > 1 else result.squeeze(0))


class Fp8Linear(nn.Linear):
    """A linear layer that multiplies in fp8; its parameters are those of the plain layer."""

    fp8_path: Fp8Path

    def forward(self, input: Tensor) -> Tensor:
        """Return `input @ weight.T + bias`, multiplied in fp8."""
        history = self._modules.get(HISTORY)
        return fp8_linear(
            input,
            self.weight,
            self.bias,
            self.fp8_path,
            history=history if isinstance(history, Fp8History) else None,
            watched=self.training and torch.is_grad_enabled(),
        )


@contextmanager
def fp8_linears(model: nn.Module, path: Fp8Path, window: int | None = None) -> Iterator[list[str]]:
    """Let the linear layers of the decoder blocks multiply in fp8 inside the block.

    Head, embeddings and adapters compute as they did. The layers change their class and nothing
    else, so optimizers, hooks and adapters that hold them go on as if nothing had happened; when
    the block ends, however it ends, they are plain again.

    Args:
        model: the model.
        path: how to multiply.
        window: steps that delayed scales follow; by default each scale is that of its tensor.

    Yields:
        The names of the layers, in the model's order.

    Raises:
        EngineError: no layer can multiply in fp8 (on hardware, sizes must be multiples of 16).
    """
    stack = find_decoder_layers(model)
    layers = {
        name: layer
        for name, layer in find_linears(stack.layers, stack.name).items()
        if ".lora_" not in name and (not path.hardware or _fits_hardware(layer))
    }
    if not layers:
        raise EngineError(
            "no linear layer of the decoder blocks can multiply in fp8",
            hint="use --precision bf16",
        )
    if window is not None:
        for layer in layers.values():
            layer.add_module(HISTORY, Fp8History(window, layer.weight.device))
    try:
        with computing_as(layers.values(), Fp8Linear, fp8_path=path):
            yield list(layers)
    finally:
        for layer in layers.values():
            layer._modules.pop(HISTORY, None)


def _fits_hardware(layer: nn.Linear) -> bool:
    return layer.in_features % MULTIPLE == 0 and layer.out_features % MULTIPLE == 0
