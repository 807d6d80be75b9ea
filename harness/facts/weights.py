"""What evidence says about the values of weights, beyond their extremes (standard library only)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness.facts.checkpoint import Tensor


@dataclass(frozen=True, kw_only=True)
class RowFacts:
    """Rows, columns and size of one tensor; the rows of a stack of matrices are counted through."""

    tensor: Tensor
    """The tensor."""
    rows: int
    """Rows that were looked at."""
    width: int
    """Values of a row."""
    rms: float
    """Root of the mean square; infinite where a value is not finite or too large for float32."""
    zeros: int
    """Values that are zero (negative zeros not counted)."""
    zero_rows: tuple[int, ...] = ()
    """Rows that hold nothing but zeros: the first ones, at most `KEPT`."""
    zero_row_count: int = 0
    """How many there are."""
    zero_columns: int = 0
    """Columns that hold nothing but zeros, in a tensor that is not zero as a whole."""
    repeated: int = 0
    """Rows that equal an earlier row bit by bit; rows of zeros aside."""
    complete: bool = True
    """Whether every row was looked at, not a sample."""


KEPT = 64
"""Row numbers that are kept of one tensor."""


@dataclass(frozen=True, kw_only=True)
class OddLayer:
    """A tensor whose size is far from that of its siblings, the same weight of other layers."""

    tensor: Tensor
    """The tensor."""
    rms: float
    """Its root mean square."""
    nearest: float
    """The closest one among the siblings."""
    siblings: int
    """How many siblings there are."""
    ratio: float
    """`rms / nearest`."""


@dataclass(frozen=True, kw_only=True)
class DeadRows:
    """Rows or columns of a matrix that are zero, or repeat others, where they should not."""

    tensor: Tensor
    """The matrix."""
    what: str
    """`rows of zeros`, `columns of zeros` or `repeated rows`."""
    count: int
    """How many."""
    out_of: int
    """Of how many."""
    first: int | None = None
    """The first of them, where it is known."""
    base_has_values: bool = False
    """Whether the base is known to hold values there."""


@dataclass(frozen=True, kw_only=True)
class NewToken:
    """A token that was added to a vocabulary, and what its row looks like."""

    token: str
    """Its text."""
    number: int
    """Its id."""
    tensor: str
    """The embedding, or head, in which its row is untrained."""
    reason: str
    """How one can tell: `zero`, `the mean of the other rows`, `equal to the row of ...`."""
    used: bool
    """Whether the chat template, or a role such as eos, uses it."""


@dataclass(frozen=True, kw_only=True)
class NewTokens:
    """Tokens that were added, as far as their rows can be judged."""

    judged: int
    """How many tokens were looked at."""
    untrained: tuple[NewToken, ...]
    """Those whose rows are as they were made."""
    known_by: str
    """How it is known which were added: `the base's tokenizer`, `the chat template`."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What the pass over all values found."""

    rows: Mapping[str, RowFacts]
    """By tensor name."""
    sampled: str = ""
    """With `--quick`: what a clean sample says, as a sentence; empty when all was read."""


@dataclass(frozen=True, kw_only=True)
class ExpertLineage:
    """How one matrix of one expert follows from its base and an adapter of fused experts."""

    tensor: str
    """Tensor of the merged model; with the number of the expert where all lie in one."""
    k: float
    """<merged - base, D> / <D, D> with D the adapter's change of this expert."""
    k_error: float
    """Uncertainty of k from rounding and from what else changed (one standard deviation)."""
    explained_by: str = ""
    """What explains the change instead: another expert's, or axes read in the wrong order."""

    @property
    def is_right(self) -> bool:
        """Whether k is 1, within a twentieth and four standard deviations."""
        return abs(self.k - 1) <= 0.05 + 4 * self.k_error
