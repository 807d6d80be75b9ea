"""What a row of the rule table looks like (standard library only)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mudpuppy.features import METHODS, PRECISIONS


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One row of the table: with any of `methods`, `features` together do not work."""

    code: str
    """Stable code; never reused for something else."""
    name: str
    """What is combined, as a short phrase with dashes."""
    methods: frozenset[str]
    """Methods the rule is about."""
    features: frozenset[str]
    """Features that must all be on for the rule to apply."""
    any_of: frozenset[str] = frozenset()
    """Features of which one must be on, where the rule names some."""
    without: frozenset[str] = frozenset()
    """Features that must all be off for the rule to apply."""
    precisions: frozenset[str] = frozenset(PRECISIONS)
    """Precisions the rule is about."""
    reason: str
    """Why it cannot work, or is not promised to."""
    own_reasons: Mapping[str, str] = field(default_factory=dict)
    """The same for methods of which something else is true."""
    hint: str
    """What to type instead."""

    def reason_for(self, method: str) -> str:
        """Return why it cannot work with one of the methods."""
        return self.own_reasons.get(method, self.reason)

    @property
    def every_reason(self) -> str:
        """The reason, and after it those of single methods."""
        own: dict[str, list[str]] = {}
        for method, reason in self.own_reasons.items():
            own.setdefault(reason, []).append(method)
        return "; ".join([self.reason, *(f"{', '.join(m)}: {r}" for r, m in own.items())])

    def applies(self, method: str, precision: str, features: Iterable[str]) -> bool:
        """Return whether the rule rejects this combination."""
        on = frozenset(features)
        return (
            method in self.methods
            and precision in self.precisions
            and self.features <= on
            and (not self.any_of or bool(self.any_of & on))
            and not self.without & on
        )


@dataclass(frozen=True, kw_only=True)
class Need:
    """Something that a combination needs of the machine: without it, it is not run."""

    feature: str
    """The feature that needs it."""
    what: str
    """What is needed, such as `two processes`."""


def make_rule(
    code: str,
    name: str,
    methods: str,
    features: str,
    *,
    any_of: str = "",
    without: str = "",
    precisions: str = " ".join(PRECISIONS),
    reason: str,
    hint: str,
    own_reasons: Mapping[str, str] | None = None,
) -> Rule:
    """Make a rule from words; `*` stands for every method.

    The keys of `own_reasons` are methods too, with blanks between them.
    """
    return Rule(
        code=code,
        name=name,
        methods=frozenset(METHODS if methods == "*" else methods.split()),
        features=frozenset(features.split()),
        any_of=frozenset(any_of.split()),
        without=frozenset(without.split()),
        precisions=frozenset(precisions.split()),
        reason=reason,
        own_reasons={
            method: own for words, own in (own_reasons or {}).items() for method in words.split()
        },
        hint=hint,
    )
