"""The compiled kernel under a QLoRA linear layer, forward + backward, against the bf16 layer."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.frame import (
    NotRun,
    Plan,
    Row,
    Sides,
    Subject,
    Work,
    at_least,
    at_most,
    interleave,
    timed,
)

SHAPES = {"large": (11008, 4096), "small": (2048, 2048)}
"""Rows and columns of the weight in a full run."""
QUICK_SHAPE, QUICK_TOKENS = (2816, 1024), 256
"""What stands for the size of the goal in a quick run."""
FEW = (1, 64, 512)
CASES = (
    *((shape, tokens, threads) for shape in SHAPES for tokens in FEW for threads in (1, 2)),
    ("large", 4096, 1),  # once is enough to see that it tends to 1
)
GOAL = ("large", 512, 1)
"""Two threads are shown and not judged: with neighbours on the cores they wait for each other."""
Case = tuple[str, int, int]
"""Which weight, how many tokens, how many threads."""
BUSY_S = 0.2
"""Small products are repeated for so long, as a call of a millisecond measures the clock."""


KINDS = ("bf16 Linear", "pure PyTorch", "C")
_FULL_ONLY = NotRun("in a full run only")


def measure(plan: Plan) -> Sides:
    """Time a step of the dense layer, of the packed one in PyTorch, and with the kernel."""
    import torch

    from mudpuppy.quant.kernels.choose import choose

    plan.rounds = min(plan.rounds, 3)
    chosen = choose(torch.device("cpu"))
    plan.facts["kernel"] = f"{chosen.choice.value}: {chosen.choice.reason}"
    if chosen.kernel is None:
        raise NotRun(chosen.choice.reason)
    plan.facts["shapes"] = SHAPES
    sides: Sides = {_name(kind, case): _FULL_ONLY for case in CASES for kind in KINDS}
    for case in plan.pick(full=CASES, quick=(GOAL,)):
        torch.set_num_threads(case[2])
        size = plan.pick(full=(SHAPES[case[0]], case[1]), quick=(QUICK_SHAPE, QUICK_TOKENS))
        sides |= interleave(plan, _sides_of(case, *size))
    return sides


def _name(kind: str, case: Case) -> str:
    return f"{kind}, {case[0]}, {case[1]} tokens, {case[2]}t"


def _sides_of(case: Case, shape: tuple[int, int], tokens: int) -> dict[str, Work | NotRun]:
    """Return the three sides of one size; all compute the same product in bfloat16."""
    import torch

    from mudpuppy.quant.formats import FORMATS
    from mudpuppy.quant.kernels.choose import allowing
    from mudpuppy.quant.linear4bit import Linear4bit

    generator = torch.Generator().manual_seed(0)
    rows, columns = shape
    dense = torch.nn.Linear(columns, rows, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    packed = Linear4bit.from_linear(dense, FORMATS["nf4"])
    x = torch.randn(tokens, columns, generator=generator).bfloat16().requires_grad_()
    grad = torch.randn(tokens, rows, generator=generator).bfloat16()
    repeats = max(1, round(BUSY_S / (4e-11 * rows * columns * tokens + 1e-10 * rows * columns)))

    def step(layer: Any, kernels: bool) -> dict[str, float]:
        def work() -> None:
            with allowing(kernels):
                for _ in range(repeats):
                    x.grad = None
                    layer(x).backward(grad)

        return {key: value / repeats for key, value in timed(work).items()}

    layers = ((dense, False), (packed, False), (packed, True))
    return {
        _name(kind, case): partial(step, layer, kernels)
        for kind, (layer, kernels) in zip(KINDS, layers, strict=True)
    }


def _rows() -> tuple[Row, ...]:
    """Return a row for every size, and for that of the goal one against PyTorch alone, too."""

    def describe(shape: str, tokens: int, threads: int) -> str:
        rows, columns = SHAPES[shape]
        return f"{columns} x {rows}, {tokens} tokens, {threads} thread{'s' * (threads > 1)}"

    made = (
        Row(
            name=f"c-vs-bf16-{case[0]}-{case[1]}-{case[2]}t",
            what=f"nf4 linear with the C kernel, {describe(*case)}",
            ours=_name("C", case),
            against=_name("bf16 Linear", case),
            goal=at_most(1.5) if case == GOAL else None,
        )
        for case in CASES
    )
    against_pytorch = Row(
        name="c-vs-pytorch",
        what="the same size",
        ours=_name("C", GOAL),
        against=_name("pure PyTorch", GOAL),
        goal=at_least(1.0),
    )
    return (*made, against_pytorch)


SUBJECT = Subject(
    name="kernels",
    title="4-bit linear with the compiled kernel, forward + backward",
    measure=measure,
    rows=_rows(),
    minutes=15.0,
)
