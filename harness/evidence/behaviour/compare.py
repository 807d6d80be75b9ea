"""Compare two forward passes: another kernel, padding, neighbour, cache, load or model.

Comparisons are made in fp32 where it fits into memory, so that a difference is a fault and not a
rounding; whether logits are finite is asked in the stored type first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.evidence.behaviour.forward import pad_left, reads_padding, settings, takes
from harness.evidence.behaviour.models import LOADING_PROBLEMS, attach_again
from harness.facts.adapters import starts_in_base
from harness.facts.forward import Gap

ROWS, WIDTH = 4, 24
"""Rows that are compared, and tokens of each; logits of all their positions are held."""
CACHED = 4
"""Last tokens of a row that are fed one by one with a cache."""
ROOM = 0.5
"""Share of the free memory that the model in fp32 may take."""


@dataclass
class Comparer:
    """Makes comparisons until its time is over, and remembers which ones it could not make."""

    ends_at: float
    """When to stop, on the monotonic clock."""
    say: Callable[[str], None]
    """Called before each comparison."""
    gaps: dict[str, Gap] = field(default_factory=dict)
    """What was compared."""
    not_compared: dict[str, str] = field(default_factory=dict)
    """What was not, and why."""

    def compare(self, name: str, make: Callable[[], Gap | None]) -> None:
        """Make one comparison unless the time is over; what cannot be compared says why."""
        if time.monotonic() > self.ends_at:
            self.not_compared[name] = "most of the time limit was over; raise --time-limit"
            return
        self.say(f"comparing: {name}")
        try:
            found = make()
        except LOADING_PROBLEMS as problem:
            self.not_compared[name] = f"{type(problem).__name__}: {problem}"[:300]
            return
        if found is None:
            self.not_compared[name] = "no position has finite logits in both"
        else:
            self.gaps[name] = found


def choose_rows(prompts: Sequence[Sequence[int]], vocabulary: int) -> list[list[int]]:
    """Return the rows to compare: the ends of prompts, or without any made-up ids."""
    whole = [list(row[:WIDTH]) for row in prompts if len(row) > CACHED + ROWS][:ROWS]
    if len(whole) > 1:  # of unlike lengths, so that a batch of them is padded
        return [row[: len(row) - place] for place, row in enumerate(whole)]
    # No tokenizer: any ids will do to compare a model with itself. 7919 is a prime.
    count = min(vocabulary, 100_000)
    return [[(n * 7919 + row * 104729) % count for n in range(8 + 2 * row)] for row in range(ROWS)]


def read(model: Any, rows: Sequence[Sequence[int]]) -> list[Any]:
    """Return the logits of every row, read alone, (tokens x vocabulary), fp32 on the CPU."""
    return [_forward(model, [row])[0] for row in rows]


def read_batch(model: Any, rows: Sequence[Sequence[int]]) -> list[Any]:
    """Return the same, read as one batch padded on the left."""
    return _forward(model, rows)


def _forward(model: Any, rows: Sequence[Sequence[int]]) -> list[Any]:
    import torch

    ids, mask = pad_left(rows, model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=mask, **settings(model, mask)).logits
    return [one[-len(row) :].float().cpu() for one, row in zip(logits, rows, strict=True)]


def read_cached(model: Any, rows: Sequence[Sequence[int]]) -> list[Any]:
    """Return the logits of the last CACHED tokens of every row, fed one by one with a cache."""
    import torch

    found = []
    for row in rows:
        ids = torch.tensor([row], device=model.device)
        with torch.inference_mode():
            cache = model(input_ids=ids[:, :-CACHED], use_cache=True).past_key_values
            if cache is None:
                raise ValueError("the model keeps no cache")
            steps = []
            for place in range(len(row) - CACHED, len(row)):
                output = model(
                    input_ids=ids[:, place : place + 1],
                    attention_mask=torch.ones_like(ids[:, : place + 1]),
                    **_position(model, place),
                    past_key_values=cache,
                    use_cache=True,
                )
                cache = output.past_key_values
                steps.append(output.logits[0, -1].float().cpu())
        found.append(torch.stack(steps))
    return found


def _position(model: Any, place: int) -> dict[str, Any]:
    import torch

    given = takes(model, "position_ids")
    return {"position_ids": torch.tensor([[place]], device=model.device)} if given else {}


def gap(mine: Sequence[Any], theirs: Sequence[Any], precision: str) -> Gap | None:
    """Return how far two readings are apart; the second is the measure.

    None where no position is finite in both.
    """
    import torch

    one, other = torch.cat(list(mine)), torch.cat(list(theirs))
    width = min(one.shape[-1], other.shape[-1])
    one, other = one[:, :width], other[:, :width]
    fine = torch.isfinite(one).all(-1) & torch.isfinite(other).all(-1)
    one, other = one[fine], other[fine]
    if not len(one):
        return None
    one, other = (x - x.mean(-1, keepdim=True) for x in (one, other))
    logs, base_logs = one.log_softmax(-1), other.log_softmax(-1)
    kl = (base_logs.exp() * (base_logs - logs)).nan_to_num().sum(-1).mean()
    return Gap(
        rms=float((one - other).square().mean().sqrt()),
        scale=float(other.square().mean().sqrt()),
        kl=max(0.0, float(kl)),
        flips=int((one.argmax(-1) != other.argmax(-1)).sum()),
        positions=len(one),
        precision=precision,
    )


def count_nonfinite(readings: Sequence[Any]) -> int:
    """Return how many readings hold a logit that is NaN or infinite."""
    import torch

    return sum(not bool(torch.isfinite(one).all()) for one in readings)


def compare_with_itself(
    model: Any, rows: list[list[int]], comparer: Comparer, reference: list[Any], precision: str
) -> None:
    """Compare a model with itself: read again, padded, beside another neighbour, with a cache."""
    comparer.compare("repeat", lambda: gap(read(model, rows), reference, precision))
    padded: list[list[Any]] = []

    def pad() -> Gap | None:
        padded.append(read_batch(model, rows))
        return gap(padded[0], reference, precision)

    def change_neighbour() -> Gap | None:
        other = [list(reversed(rows[0])), *rows[1:]]
        return gap(read_batch(model, other)[1:], padded[0][1:], precision)

    if reads_padding(model):
        for name in ("padding", "neighbour"):
            comparer.not_compared[name] = "a model without attention reads padding as text"
    else:
        comparer.compare("padding", pad)
        comparer.compare("neighbour", change_neighbour)
    last = [one[-CACHED:] for one in reference]
    comparer.compare("cache", lambda: gap(read_cached(model, rows), last, precision))


def compare_kernels(
    model: Any, rows: list[list[int]], comparer: Comparer, reference: list[Any], precision: str
) -> None:
    """Compare the eager attention with the kernel that a server takes."""

    def under_eager() -> Gap | None:
        with kernel(model, "eager") as (before, chosen):
            if before == chosen:
                raise ValueError(f"the model only has {chosen} attention here")
            return gap(read(model, rows), reference, precision)

    comparer.compare("kernel", under_eager)


@contextmanager
def kernel(model: Any, name: str) -> Iterator[tuple[str, str]]:
    """Set the attention kernel for a while; gives the name of the one before and of this one."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = inner.config._attn_implementation or "eager"
    inner.set_attn_implementation(name)
    try:
        yield before, inner.config._attn_implementation
    finally:
        inner.set_attn_implementation(before)


def compare_loads(
    model: Any,
    path: Path,
    rows: list[list[int]],
    comparer: Comparer,
    reference: list[Any],
    precision: str,
) -> None:
    """Attach the same adapter once more under another seed, and compare."""
    import torch

    start = getattr(getattr(model, "active_peft_config", None), "init_lora_weights", None)
    if starts_in_base(start):
        told = (
            "attaching the adapter takes a part of the base away, and once more would do so twice"
        )
        comparer.not_compared["reload"] = told
        return

    def again() -> Gap | None:
        torch.manual_seed(int(reference[0].numel()) + 1)
        attach_again(model, path, "again")
        return gap(read(model, rows), reference, precision)

    comparer.compare("reload", again)


def widen(model: Any) -> Any | None:
    """Return the model in fp32, changed in place; None where it is quantised or does not fit."""
    import psutil
    import torch

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if getattr(inner, "quantization_method", None) is not None:
        return None
    numbers = sum(parameter.numel() for parameter in model.parameters())
    if model.device.type == "cuda":
        free = torch.cuda.mem_get_info(model.device)[0]
    else:
        free = psutil.virtual_memory().available
    return model.float() if 4 * numbers < ROOM * free else None
