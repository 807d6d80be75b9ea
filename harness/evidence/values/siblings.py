"""Tensors against their siblings, the same weight of other layers: sizes, dead and repeated rows.

Nothing is judged by an absolute number: families differ by powers of ten, and layers of one model
by small factors. Where a base is known, it judges in place of the siblings.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from statistics import median

from harness.evidence.source import CheckpointEvidence, Depth, provides
from harness.evidence.values.numbers import scan_rows
from harness.facts.checkpoint import Base, Numbers
from harness.facts.weights import DeadRows, OddLayer, RowFacts, Scan
from harness.registry import NotApplicable

FLOATS = ("F64", "F32", "F16", "BF16")
"""Types whose values are the weights themselves; fp8 has a scale beside it."""
_OTHER = re.compile(
    r"scale|zero|absmax|g_idx|qweight|quant|norm|bias|position|rotary|mask|lambda|A_log|dt_|"
    r"lora_|relative_attention|conv1d|time_|router\.|buffer"
)
"""Names of tensors that follow no pattern over the layers, or hold constants."""
_VOCABULARY = re.compile(r"embed|wte|wpe|lm_head|score|classifier|word_|tok_|token")
_SHARED_HEADS = re.compile(r"(k_proj|v_proj|key|value|kv_proj|Wqkv|qkv|query_key_value|wk|wv)\b")
"""Weights whose rows are repeated when few heads are turned into many."""
FP16_MAX, FEW_MAX = 65504.0, 1e6
"""Between these a single large value is that of half-precision-overflow."""
FACTOR = 6.0
"""Ratio of a layer to the middle of its siblings that counts: the first and last layers of healthy
models differ from the others by up to three."""
GAP = 4.0
"""Ratio to the closest layer that is not odd: a wide, gapless spread is no outlier."""
SPREADS = 6.0
"""Deviations (by the median of distances) that count."""
MOST_ODD = 1 / 3
"""Share of a group that may be odd; where more are, they are a kind of their own."""
LEAST_GROUP = 3
"""Layers that a group must have."""
RUN_SHARE = 0.005
"""Share of rows in one run that counts where siblings have none: a piece of a copy."""
SCATTERED_SHARE = 0.05
"""Share of scattered rows that counts: single neurons do die in training."""
REPEATED_SHARE = 0.25
"""Share of repeated rows that counts."""
TAIL_SHARE = 0.05
"""Share of zeros at the end from which they are the finding of weights-all-zero."""


@provides("odd_layers", Depth.WEIGHTS)
def find_odd_layers(evidence: CheckpointEvidence) -> tuple[tuple[OddLayer, ...], int]:
    """Return the tensors whose size is far from that of their siblings, and how many were judged.

    Raises:
        NotApplicable: a base is known, which judges better; or there are too few layers.
    """
    scan: Scan = evidence.get("rows")
    numbers: Mapping[str, Numbers] = evidence.get("numbers")
    if evidence.find("drifts") is not None:
        raise NotApplicable("the base is known, and weights-exploded compares with it")
    judged = 0
    found: list[OddLayer] = []
    for group in _group(scan.rows.values(), numbers):
        if len(group) >= LEAST_GROUP:
            judged += len(group)
            found += _compare_sizes(group)
    if not judged:
        raise NotApplicable("no weight occurs in three layers or more")
    return tuple(found), judged


def _group(rows: Iterable[RowFacts], numbers: Mapping[str, Numbers]) -> Iterator[list[RowFacts]]:
    """Yield the matrices that are the same weight of different layers."""
    groups: defaultdict[tuple[str, tuple[int, ...]], list[RowFacts]] = defaultdict(list)
    for one in rows:
        name, shape = one.tensor.name, one.tensor.shape
        mine = numbers[name]
        if not _is_matrix(one) or mine.nonfinite or not one.rms or mine.constant is not None:
            continue
        if FP16_MAX < mine.abs_max < FEW_MAX and mine.abs_max**2 > one.tensor.elements * (
            one.rms**2 / 2
        ):
            continue  # a single value, and half-precision-overflow names it
        groups[re.sub(r"(?<=\.)\d+(?=\.)", "*", name), shape].append(one)
    yield from groups.values()


def _is_matrix(one: RowFacts) -> bool:
    shape, name = one.tensor.shape, one.tensor.name
    is_matrix = len(shape) >= 2 and min(shape[0], shape[-1]) > 1 and one.width >= 8
    return is_matrix and one.tensor.dtype in FLOATS and _OTHER.search(name) is None


def _compare_sizes(group: list[RowFacts]) -> Iterator[OddLayer]:
    logs = [math.log(min(one.rms, 1e300)) for one in group]
    middle = median(logs)
    spread = 1.4826 * median(abs(one - middle) for one in logs)
    least = max(math.log(FACTOR), SPREADS * spread)
    odd = [abs(one - middle) > least for one in logs]
    if not any(odd) or sum(odd) > MOST_ODD * len(group):
        return
    plain = [one for one, is_odd in zip(logs, odd, strict=True) if not is_odd]
    for one, size, is_odd in zip(group, logs, odd, strict=True):
        nearest = min(plain, key=lambda other: abs(other - size))
        if size < middle and ".experts." in one.tensor.name:
            continue  # an expert that is hardly ever chosen shrinks
        if is_odd and abs(size - nearest) > math.log(GAP):
            yield OddLayer(
                tensor=one.tensor,
                rms=one.rms,
                nearest=math.exp(nearest),
                siblings=len(group) - 1,
                ratio=math.exp(min(size - nearest, 700.0)),
            )


@provides("dead_rows", Depth.WEIGHTS)
def find_dead_rows(evidence: CheckpointEvidence) -> tuple[tuple[DeadRows, ...], int]:
    """Return matrices with rows or columns that are zero or repeated, and how many were judged."""
    scan: Scan = evidence.get("rows")
    numbers: Mapping[str, Numbers] = evidence.get("numbers")
    base: Base | None = evidence.find("base")
    judged = [one for one in scan.rows.values() if _is_judged(one, numbers)]
    if not judged:
        raise NotApplicable("the folder holds no matrices of floating-point weights")
    found: list[DeadRows] = []
    for what, count_of, out_of in _KINDS:
        shares: defaultdict[str, list[float]] = defaultdict(list)
        for one in judged:
            shares[_kind(one)].append(count_of(one) / out_of(one))
        for one in judged:
            count = count_of(one)
            if not count:
                continue
            others = sorted(shares[_kind(one)])
            others.remove(count / out_of(one))
            if (dead := _judge(one, what, count, out_of(one), others, base)) is not None:
                found.append(dead)
    return tuple(found), len(judged)


_KINDS: tuple[tuple[str, Callable[[RowFacts], int], Callable[[RowFacts], int]], ...] = (
    ("rows of zeros", lambda one: one.zero_row_count, lambda one: one.rows),
    ("columns of zeros", lambda one: one.zero_columns, lambda one: one.width),
    ("repeated rows", lambda one: one.repeated, lambda one: one.rows),
)
"""What is counted, how often it occurs and how often it could."""


def _is_judged(one: RowFacts, numbers: Mapping[str, Numbers]) -> bool:
    mine = numbers[one.tensor.name]
    # Zeros, constants and rows of NaN have probes of their own.
    is_told = mine.is_zero or mine.constant is not None or mine.nonfinite > one.width
    tail = mine.trailing_zeros >= max(2 * one.width, TAIL_SHARE * one.tensor.elements)
    return _is_matrix(one) and one.complete and not is_told and not tail and one.rows > 3


def _kind(one: RowFacts) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", one.tensor.name)


def _judge(
    one: RowFacts, what: str, count: int, out_of: int, others: list[float], base: Base | None
) -> DeadRows | None:
    """Return what is dead in one matrix, or None where that is in order."""
    name, share = one.tensor.name, count / out_of
    first = one.zero_rows[0] if what == "rows of zeros" and one.zero_rows else None
    dead = DeadRows(tensor=one.tensor, what=what, count=count, out_of=out_of, first=first)
    old = None if base is None else base.tensors.get(name)
    if base is not None and old is not None and old.shape == one.tensor.shape:
        then = scan_rows(Path(base.root), old)
        if then is not None:
            known = next(of(then) for kind, of, _ in _KINDS if kind == what)
            least = 4 if _VOCABULARY.search(name) else 2  # rows of pad tokens are zero
            is_new = count >= known + max(least, RUN_SHARE * out_of) and known < count / 2
            return DeadRows(**{**vars(dead), "base_has_values": True}) if is_new else None
    if _VOCABULARY.search(name):
        return dead if share >= REPEATED_SHARE and what == "rows of zeros" else None
    if others and max(others) > share / 4:
        return None  # pruned, or made so
    if what == "repeated rows":
        told = share >= REPEATED_SHARE and _SHARED_HEADS.search(name) is None
    else:
        in_a_row = what == "rows of zeros" and _longest_run(one.zero_rows) * 2 >= min(
            count, len(one.zero_rows)
        )
        share_needed = RUN_SHARE if in_a_row and len(others) >= 2 else SCATTERED_SHARE
        told = count >= max(2, share_needed * out_of)
    return dead if told else None


def _longest_run(rows: tuple[int, ...]) -> int:
    longest = run = 0
    before = -2
    for row in rows:
        run = run + 1 if row == before + 1 else 1
        longest, before = max(longest, run), row
    return longest
