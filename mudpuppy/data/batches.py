"""Batches by tokens: each holds as many samples as fit a budget that counts padding, too.

A batch costs its longest sample times its samples. Samples are batched by length, so little of that
is padding; which samples of one length meet, and the order of the batches, changes with each epoch.
The number of batches does not, since it follows from the lengths alone: schedules stay exact.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

from mudpuppy.errors import DatasetError


def plan_batches(lengths: Sequence[int], budget: int) -> list[int]:
    """Return how many samples each batch takes, of lengths that rise.

    Raises:
        ValueError: the lengths fall somewhere, or one is above the budget.
    """
    sizes: list[int] = []
    last = 0
    for length in lengths:
        if length > budget or length < last:
            raise ValueError(f"a length of {length} after {last}, with a budget of {budget} tokens")
        last = length
        if sizes and (sizes[-1] + 1) * length <= budget:
            sizes[-1] += 1
        else:
            sizes.append(1)
    return sizes


def split_to_share(sizes: list[int], parties: int) -> list[int]:
    """Return the sizes with large batches halved until `parties` can share them evenly.

    Neighbours stay neighbours, and halves are within any budget that the whole was in.

    Raises:
        ValueError: every batch is a single sample, and they still cannot.
    """
    sizes = list(sizes)
    while len(sizes) % parties:
        largest = max(range(len(sizes)), key=lambda index: sizes[index])
        if sizes[largest] == 1:
            raise ValueError(
                f"{len(sizes)} batches of one sample cannot be shared evenly by {parties} processes"
            )
        half = sizes[largest] // 2
        sizes[largest : largest + 1] = [sizes[largest] - half, half]
    return sizes


class TokenBudgetSampler(Sampler[list[int]]):
    """A batch sampler with a budget of tokens, padding included.

    Every sample comes once an epoch. The order depends on the seed and the epoch alone, so a run
    that is taken up again sees what it would have seen.

    Args:
        lengths: tokens of each sample.
        budget: tokens of a batch, padding included.
        seed: seed of the order.
        parties: processes that share the batches; their number is a multiple of it.
        file: what the samples were read from, for messages.
        lines: the line of each sample in it, for messages.

    Raises:
        DatasetError: a sample is longer than the budget, or the batches cannot be shared.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        budget: int,
        *,
        seed: int,
        parties: int = 1,
        file: str = "",
        lines: Sequence[int] | None = None,
    ) -> None:
        longest = max(range(len(lengths)), key=lambda index: lengths[index], default=None)
        if longest is not None and lengths[longest] > budget:
            raise DatasetError(
                f"a sample of {lengths[longest]} tokens is longer than the {budget} tokens of a "
                "batch",
                file=file,
                line=None if lines is None else lines[longest],
                hint=f"raise --tokens-per-batch, or lower --max-length to {budget}",
            )
        self.lengths = tuple(lengths)
        self.seed = seed
        self.epoch = 0
        sizes = plan_batches(sorted(lengths), budget)
        try:
            self.sizes = split_to_share(sizes, parties)
        except ValueError as error:
            raise DatasetError(
                str(error),
                file=file,
                hint="raise --tokens-per-batch, add samples, or use fewer processes",
            ) from None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches of every epoch."""
        return len(self.sizes)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of each batch."""
        order = random.Random(f"{self.seed} {self.epoch}")
        indices = list(range(len(self.lengths)))
        order.shuffle(indices)
        indices.sort(key=lambda index: self.lengths[index])
        batches = []
        start = 0
        for size in self.sizes:
            batches.append(indices[start : start + size])
            start += size
        order.shuffle(batches)
        yield from batches
