"""What evidence hands to probes about forward passes: ends, entropy, likelihood, differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True, kw_only=True)
class Forward:
    """What one batched forward pass over prompts and reference answers showed of one model."""

    prompts: int
    """Prompts that were read; every tuple has one value for each of them."""
    places: tuple[int, ...]
    """Which of the prompts these are; those that are too long are left out."""
    vocabulary: int
    """Logits per position."""
    end_first: tuple[float, ...]
    """Probability of any end token where the answer begins."""
    end_last: tuple[float, ...]
    """Probability of any end token where the reference answer ends."""
    end_inside: tuple[float, ...]
    """Mean probability of any end token inside the reference answer."""
    entropy: tuple[float, ...]
    """Entropy of the first token, in nats; 0 where the logits are not finite."""
    top: tuple[int, ...]
    """Most probable first token; -1 where the logits are not finite."""
    nll: tuple[float, ...]
    """Mean negative log-likelihood of the reference answer, in nats per token."""
    text_nll: tuple[float, ...] = ()
    """The same of each neutral text."""
    nonfinite: int = 0
    """Prompts with a logit that is NaN or infinite."""

    @property
    def empty(self) -> int:
        """Prompts whose greedy answer ends with its first token."""
        return sum(token == END for token in self.top)

    @property
    def typical_first_end(self) -> float:
        """Median probability of an end where the answer begins."""
        return median(self.end_first)

    @property
    def typical_last_end(self) -> float:
        """Median probability of an end where the answer ends."""
        return median(self.end_last)


END = -2
"""Stands in `Forward.top` for any of the end tokens."""


@dataclass(frozen=True, kw_only=True)
class Forwards:
    """The forward pass of a checkpoint and of its base."""

    mine: Forward
    """The checkpoint's."""
    base: Forward | None
    """The base's; absent without a base."""
    divergence: tuple[float, ...] | None = None
    """KL divergence of each prompt from base to checkpoint, in nats per token: its first tokens."""
    from_quiz: bool = False
    """Whether prompts and reference answers are those of a quiz."""


@dataclass(frozen=True, kw_only=True)
class Gap:
    """How far two forward passes over the same tokens are apart."""

    rms: float
    """Root mean square of the differences of the logits, each position's mean taken off."""
    scale: float
    """Root mean square of the logits they are compared with, each position's mean taken off."""
    kl: float
    """Mean KL divergence, in nats."""
    flips: int
    """Positions with another most probable token."""
    positions: int
    """Positions that were compared."""
    precision: str
    """Type in which both were computed, such as `float32`."""

    @property
    def relative(self) -> float:
        """Difference as a share of the logits."""
        return self.rms / self.scale if self.scale else 0.0

    def is_fault(self, noise: Gap | None = None) -> bool:
        """Whether no rounding explains it: in fp32 differences of 1e-6 are usual, in bf16 of 0.05.

        Args:
            noise: how far the same model is from itself when it is read again.
        """
        is_exact = self.precision == "float32"
        floor = 10 * noise.relative if noise is not None else 0.0
        return self.relative > max(0.02 if is_exact else 0.3, floor) and (
            self.flips > 0 or self.kl > (0.001 if is_exact else 0.1)
        )


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """Comparisons of a checkpoint with itself, its base and what it was merged from."""

    gaps: Mapping[str, Gap]
    """By what was changed: `repeat`, `kernel`, `padding`, `neighbour`, `cache`, `reload`, `dtype`,
    and between models: `base` (checkpoint and base), `merge` (merged and base + adapter),
    `adapter` (base + adapter and base)."""
    nonfinite: Mapping[str, int] = field(default_factory=dict)
    """Prompts with logits that are not finite, by attention kernel."""
    prompts: int = 0
    """Prompts that were compared."""
    new_weights: tuple[str, ...] = ()
    """Parameters that the files do not hold, so that a loader filled them with random numbers."""
    not_compared: Mapping[str, str] = field(default_factory=dict)
    """Comparisons that could not be made, and why."""
    kind: str = "model"
    """`model`, `adapter`, `merged` or `scorer`."""
    stored: str = "float32"
    """Type that the checkpoint is loaded in, such as `bfloat16`."""
    scores: tuple[float, ...] = ()
    """What a reward model gave to unlike texts; empty for a model that generates."""

    def find(self, name: str) -> Gap | None:
        """Return a comparison, or None when it was not made."""
        return self.gaps.get(name)

    def explain(self, name: str) -> str:
        """Return why a comparison was not made."""
        return self.not_compared.get(name, "there is nothing to compare with here")


@dataclass(frozen=True, kw_only=True)
class Logits:
    """How many rows of logits are not finite, by who was asked how."""

    rows: int
    """Prompts that were asked."""
    bad: int
    """Prompts with logits that are not finite."""
    compared: int = 0
    """Rows that were read under each kernel."""
    by_kernel: Mapping[str, int] = field(default_factory=dict)
    """Of these, rows with such logits, by kernel: `default` and `eager`."""
