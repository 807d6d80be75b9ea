"""The compiled kernel under a QLoRA linear layer, forward + backward, against the bf16 layer."""

from __future__ import annotations

from typing import Any

from benchmarks.frame import NotRun, Plan, Row, Sides, Subject, Work, at_least, at_most, interleave

FULL = tuple((size, tokens) for size in ((2048, 2048), (11008, 4096)) for tokens in (1, 64, 512))
MANY_TOKENS = ((11008, 4096), 4096)
"""Forty seconds a thread for all its sides: once is enough to see that it tends to 1."""
GOAL_SHAPE, GOAL_TOKENS = (11008, 4096), 512
BUSY_S = 0.2
"""Small products are repeated for so long, as a call of a millisecond measures the clock."""


def measure(plan: Plan) -> Sides:
    """Time a step of the dense layer, of the packed one in PyTorch, and with the kernel."""
    import torch

    from mudpuppy.quant.kernels.choose import choose

    chosen = choose(torch.device("cpu"))
    plan.facts["kernel"] = f"{chosen.choice.value}: {chosen.choice.reason}"
    if chosen.kernel is None:
        raise NotRun(chosen.choice.reason)
    sizes = plan.pick(full=(*FULL, MANY_TOKENS), quick=(((2048, 2048), 64),))
    sides: Sides = {}
    for threads in plan.pick(full=(1, 2), quick=(1,)):
        torch.set_num_threads(threads)
        for shape, tokens in sizes:
            if tokens == MANY_TOKENS[1] and threads > 1:
                continue
            sides |= interleave(plan, _sides_of(shape, tokens, threads))
    return sides


def _name(kind: str, shape: tuple[int, int], tokens: int, threads: int) -> str:
    return f"{kind} {shape[0]}x{shape[1]}, {tokens} tokens, {threads}t"


def _sides_of(shape: tuple[int, int], tokens: int, threads: int) -> dict[str, Work | NotRun]:
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
        from benchmarks.frame import timed

        def work() -> None:
            with allowing(kernels):
                for _ in range(repeats):
                    x.grad = None
                    layer(x).backward(grad)

        return {key: value / repeats for key, value in timed(work).items()}

    kinds = {"bf16": (dense, False), "PyTorch": (packed, False), "C": (packed, True)}
    return {
        _name(kind, shape, tokens, threads): lambda layer=layer, on=on: step(layer, on)  # type: ignore[misc]
        for kind, (layer, on) in kinds.items()
    }


def _rows() -> tuple[Row, ...]:
    """Return the row of the goal, for one thread and for two, and all others to be shown."""
    made = []
    for threads in (1, 2):
        for shape, tokens in (*FULL, MANY_TOKENS):
            if tokens == MANY_TOKENS[1] and threads > 1:
                continue
            is_goal = (shape, tokens) == (GOAL_SHAPE, GOAL_TOKENS)
            size = (
                f"{shape[0]} x {shape[1]}, {tokens} tokens, {threads} thread{'s' * (threads > 1)}"
            )
            ours = _name("C", shape, tokens, threads)
            made.append(
                Row(
                    name=f"c-vs-bf16-{shape[1]}-{tokens}-{threads}t",
                    what=f"NF4 linear with the C kernel, {size}",
                    ours=ours,
                    against=_name("bf16", shape, tokens, threads),
                    goal=at_most(1.5) if is_goal else None,
                )
            )
            made.append(
                Row(
                    name=f"c-vs-pytorch-{shape[1]}-{tokens}-{threads}t",
                    what=f"the same against our PyTorch path, {size}",
                    ours=ours,
                    against=_name("PyTorch", shape, tokens, threads),
                    goal=at_least(1.0) if is_goal else None,
                )
            )
    return tuple(made)


SUBJECT = Subject(
    name="kernels",
    title="4-bit linear with the compiled kernel, forward + backward",
    measure=measure,
    rows=_rows(),
    minutes=15.0,
)
