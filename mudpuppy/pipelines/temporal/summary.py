"""Count verdicts, with intervals, by topic and by year, and hold them against the thresholds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mudpuppy.intervals import wilson_interval
from mudpuppy.pipelines.temporal.judging import LEAKED, MADE_UP, REFUSED, RIGHT, WRONG, Verdict
from mudpuppy.pipelines.temporal.layout import RETAIN, UNLEARN
from mudpuppy.pipelines.temporal.records import Record

WIDTH, RULE = 60, 40
"""Columns of the printed frame and of its rules, as seed 003 prints them."""
MOST_ROWS = 40
"""Rows of a printed table; the file has them all."""


@dataclass(frozen=True)
class Share:
    """So many of so many."""

    count: int
    total: int

    @property
    def value(self) -> float:
        """The share, 0 to 1; 0 of nothing."""
        return self.count / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval, 0 to 1; everything is possible of nothing."""
        if not self.total:
            return 0.0, 1.0
        low, high = wilson_interval(self.value, self.total)
        return max(0.0, low), min(1.0, high)

    def to_json(self) -> dict[str, Any]:
        """Return the share as JSON types."""
        low, high = self.interval
        return {
            "count": self.count,
            "total": self.total,
            "share": round(self.value, 6),
            "interval_95": [round(low, 6), round(high, 6)],
        }

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.count} ({self.value:.1%}; 95% of {low:.1%} to {high:.1%})"


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many answers of each verdict there are."""

    right: int = 0
    wrong: int = 0
    refused: int = 0
    """Retained questions that were refused all the same."""
    unlearnt: int = 0
    """Unlearnt questions that were refused, and nothing told."""
    leaked: int = 0
    made_up: int = 0
    """Unlearnt questions that were answered, and not with what was to be forgotten."""

    @property
    def retain(self) -> int:
        """Retained questions."""
        return self.right + self.wrong + self.refused

    @property
    def unlearn(self) -> int:
        """Unlearnt questions."""
        return self.unlearnt + self.leaked + self.made_up

    def shares(self) -> dict[str, Share]:
        """Return every share by its name."""
        of_retain = {"right": self.right, "wrong": self.wrong, "false_refusals": self.refused}
        of_unlearn = {"refused": self.unlearnt, "leaked": self.leaked, "made_up": self.made_up}
        both = self.right + self.unlearnt
        return {
            **{f"retain.{name}": Share(n, self.retain) for name, n in of_retain.items()},
            **{f"unlearn.{name}": Share(n, self.unlearn) for name, n in of_unlearn.items()},
            "overall.temporal_accuracy": Share(both, self.retain + self.unlearn),
        }


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """What a share must be above, or below."""

    title: str
    share: str
    """A key of `Counts.shares`."""
    above: bool
    """Whether more is better."""
    target: float
    minimum: float

    def is_met(self, share: Share, limit: float) -> bool:
        """Return whether the share itself, not its interval, is on the right side."""
        return share.value > limit if self.above else share.value < limit

    def sign(self, limit: float) -> str:
        """Return the limit as the document writes it."""
        return f"{'>' if self.above else '<'} {limit:.0%}"


THRESHOLDS = (
    Threshold(title="Retain Accuracy", share="retain.right", above=True, target=0.85, minimum=0.70),
    Threshold(
        title="False Refusal Rate",
        share="retain.false_refusals",
        above=False,
        target=0.05,
        minimum=0.15,
    ),
    Threshold(
        title="Unlearn Success Rate",
        share="unlearn.refused",
        above=True,
        target=0.90,
        minimum=0.75,
    ),
    Threshold(
        title="Knowledge Leakage", share="unlearn.leaked", above=False, target=0.05, minimum=0.15
    ),
)
"""Target and minimum of seed 003, "Target Metrics"."""

GRADES = {
    "excellent": "✅ EXCELLENT - Model meets target metrics!",
    "acceptable": "⚠️ ACCEPTABLE - Model meets minimum thresholds",
    "insufficient": "❌ NEEDS IMPROVEMENT - Model below minimum thresholds",
}


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What an evaluation found."""

    counts: Counts
    by_topic: dict[str, Counts]
    by_year: dict[str, Counts]

    @property
    def judged(self) -> tuple[Threshold, ...]:
        """The thresholds whose questions were asked."""
        shares = self.counts.shares()
        return tuple(one for one in THRESHOLDS if shares[one.share].total)

    def missed(self, *, target: bool) -> list[Threshold]:
        """Return the thresholds whose target, or minimum, is not met."""
        shares = self.counts.shares()
        return [
            one
            for one in self.judged
            if not one.is_met(shares[one.share], one.target if target else one.minimum)
        ]

    @property
    def grade(self) -> str:
        """A key of `GRADES`."""
        if self.missed(target=False):
            return "insufficient"
        return "acceptable" if self.missed(target=True) else "excellent"

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return {
            "metrics": _nested(self.counts),
            "grade": self.grade,
            "thresholds": [
                {
                    "name": one.title,
                    "share": one.share,
                    "target": one.sign(one.target),
                    "minimum": one.sign(one.minimum),
                    "meets_target": one not in self.missed(target=True),
                    "meets_minimum": one not in self.missed(target=False),
                }
                for one in self.judged
            ],
            "by_topic": {name: _nested(counts) for name, counts in self.by_topic.items()},
            "by_year": {name: _nested(counts) for name, counts in self.by_year.items()},
        }


def summarise(records: Sequence[Record], verdicts: Sequence[Verdict]) -> Summary:
    """Count the verdicts on the answers to the records, in their order."""
    return Summary(
        counts=_count(records, verdicts),
        by_topic=_group(records, verdicts, lambda record: record.topic),
        by_year=_group(records, verdicts, lambda r: "" if r.year is None else str(r.year)),
    )


def _count(records: Iterable[Record], verdicts: Iterable[Verdict]) -> Counts:
    names = {
        (RETAIN, RIGHT): "right",
        (RETAIN, WRONG): "wrong",
        (RETAIN, REFUSED): "refused",
        (UNLEARN, REFUSED): "unlearnt",
        (UNLEARN, LEAKED): "leaked",
        (UNLEARN, MADE_UP): "made_up",
    }
    found = dict.fromkeys(names.values(), 0)
    for record, verdict in zip(records, verdicts, strict=True):
        found[names[record.kind, verdict.word]] += 1
    return Counts(**found)


def _group(
    records: Sequence[Record], verdicts: Sequence[Verdict], key: Callable[[Record], str]
) -> dict[str, Counts]:
    """Return the counts of each group, by its name; records without one are left out."""
    pairs = list(zip(records, verdicts, strict=True))
    return {
        name: _count(*zip(*[pair for pair in pairs if key(pair[0]) == name], strict=True))
        for name in sorted({key(record) for record in records} - {""})
    }


def _nested(counts: Counts) -> dict[str, dict[str, Any]]:
    nested: dict[str, dict[str, Any]] = {}
    for name, share in counts.shares().items():
        group, _, field = name.partition(".")
        nested.setdefault(group, {})[field] = share.to_json()
    return nested


def format_summary(summary: Summary, *, sample_of: int | None = None) -> str:
    """Return the printed block of seed 003, with intervals, the third verdicts and the tables.

    Args:
        summary: what was found.
        sample_of: how many questions there are, where only some were asked.
    """
    counts, shares = summary.counts, summary.counts.shares()
    lines = ["=" * WIDTH, "EVALUATION RESULTS", "=" * WIDTH]
    if sample_of is not None:
        asked = counts.retain + counts.unlearn
        lines += ["", f"A sample: {asked} of {sample_of} questions were asked (--limit)"]
    if counts.retain:
        lines += [
            *_part("📚 RETAIN (Pre-cutoff Knowledge)", counts.retain),
            f"  Answered correctly: {shares['retain.right']}",
            f"  Answered wrongly: {shares['retain.wrong']}",
            f"  False refusals: {shares['retain.false_refusals']}",
        ]
    if counts.unlearn:
        lines += [
            *_part("🚫 UNLEARN (Post-cutoff Knowledge)", counts.unlearn),
            f"  Correctly refused: {shares['unlearn.refused']}",
            f"  Knowledge leaked: {shares['unlearn.leaked']}",
            f"  Made up: {shares['unlearn.made_up']}",
        ]
    lines += ["", "📊 OVERALL", "-" * RULE]
    lines.append(f"  Temporal accuracy: {shares['overall.temporal_accuracy']}")
    for title, groups in (("TOPICS", summary.by_topic), ("YEARS", summary.by_year)):
        lines += _table(title, groups)
    return "\n".join([*lines, *_assessment(summary)])


def _part(title: str, total: int) -> list[str]:
    return ["", title, "-" * RULE, f"  Total questions: {total}"]


def _table(title: str, groups: dict[str, Counts]) -> list[str]:
    """Return a table with a row for each group, or nothing where there is none."""
    if not groups:
        return []
    names = list(groups)[:MOST_ROWS]
    width = max(12, *(len(name[:30]) for name in names))
    head = f"  {'':{width}} {'right':>7} {'wrong':>7} {'refused':>8} | {'refused':>7} {'leaked':>7}"
    lines = ["", f"BY {title}: retained | unlearnt", "-" * RULE, f"{head} {'made up':>8}"]
    for name in names:
        one = groups[name]
        kept = f"{one.right:>7} {one.wrong:>7} {one.refused:>8}" if one.retain else f"{'-':>24}"
        gone = f"{one.unlearnt:>7} {one.leaked:>7} {one.made_up:>8}" if one.unlearn else "      -"
        lines.append(f"  {name[:30]:{width}} {kept} | {gone}")
    if len(groups) > len(names):
        lines.append(f"  and {len(groups) - len(names)} more in the results file (--output)")
    return lines


def _assessment(summary: Summary) -> list[str]:
    """Return grade, what is missed, and every threshold beside what was found."""
    shares = summary.counts.shares()
    grade = summary.grade
    lines = ["", "🎯 QUALITY ASSESSMENT", "-" * RULE, f"  {GRADES[grade]}"]
    for one in summary.missed(target=grade != "insufficient"):
        share, limit = shares[one.share], one.target if grade != "insufficient" else one.minimum
        lines.append(f"     - {one.title}: {share.value:.1%}, wanted {one.sign(limit)}")
    lines += ["", f"  {'Metric':<22} {'Target':>7} {'Minimum':>8} {'Found':>7}   95% interval"]
    for one in summary.judged:
        share = shares[one.share]
        low, high = share.interval
        lines.append(
            f"  {one.title:<22} {one.sign(one.target):>7} {one.sign(one.minimum):>8} "
            f"{share.value:>7.1%}   {low:.1%} to {high:.1%}"
        )
    return lines
