"""Compile the Triton kernels for GPUs that need not be there; the tests start it on its own.

Triton's interpreter takes the place of its compiler in a process that asks for it, so this cannot
happen beside the other tests. Prints one line for every kernel: target, name, and what was made.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mudpuppy.quant.kernels import triton_source
from mudpuppy.quant.kernels.triton_kernel import BYTES, ROW_BYTES, ROWS

TARGETS = (
    GPUTarget("hip", "gfx942", 64),
    GPUTarget("hip", "gfx1100", 32),
    GPUTarget("hip", "gfx1201", 32),
    GPUTarget("cuda", 80, 32),
    GPUTarget("cuda", 90, 32),
)
"""MI300X, RX 7900 XTX, RX 9070; A100, H100."""
STRIDES = ["x_stride", "q_stride", "scale_stride", "y_stride"]
SIZES = ["tokens", "rows", "columns", "block", *STRIDES]
TILE = {"WEIGHT": tl.bfloat16, "M": 64, "N": ROWS, "BYTES": BYTES}


def kernels() -> list[tuple[str, dict[str, str], dict[str, object]]]:
    """Return name, types of the arguments, and constants of every kernel."""
    nf4 = {"q": "*u8", "scales": "*bf16", "levels": "*fp32"}
    mxfp4 = {**nf4, "scales": "*u8"}
    plain = {"IS_E8M0": False, "EVEN_BLOCK": True}
    odd = {"IS_E8M0": True, "EVEN_BLOCK": False}
    both = {"x": "*bf16", "y": "*bf16"}
    return [
        (
            "dequantise_rows",
            {**nf4, "out": "*bf16"}
            | dict.fromkeys(["columns", "block", "q_stride", "scale_stride", "out_stride"], "i32"),
            {**plain, "BYTES": ROW_BYTES},
        ),
        (
            "multiply",
            {**nf4, **both, "bias": "*bf16"} | dict.fromkeys(SIZES, "i32"),
            {**plain, **TILE, "HAS_BIAS": True},
        ),
        (
            "multiply_turned",
            {**mxfp4, **both} | dict.fromkeys(SIZES, "i32"),
            {**odd, **TILE},
        ),
    ]


def main() -> None:
    """Compile everything for every target."""
    for target in TARGETS:
        for name, types, constants in kernels():
            function = getattr(triton_source, name)
            known = {**types, **dict.fromkeys(constants, "constexpr")}
            signature = {argument: known[argument] for argument in function.arg_names}
            source = ASTSource(fn=function, signature=signature, constexprs=constants)
            made = triton.compile(source, target=target)
            print(target.backend, target.arch, name, *made.asm)


if __name__ == "__main__":
    main()
