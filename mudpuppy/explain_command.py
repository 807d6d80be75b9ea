"""The command `mud-puppy explain`: what the rule table says of a combination, or of all."""

from __future__ import annotations

from collections.abc import Sequence

from mudpuppy.config_check import check_values, flag_of
from mudpuppy.errors import UsageError, near_names
from mudpuppy.features import METHODS, PRECISIONS
from mudpuppy.flags import add_training_flags, typed_settings
from mudpuppy.parser import FriendlyParser, wide_help
from mudpuppy.ruleform import Rule
from mudpuppy.rules import RULES, describe, every_single_feature


def run(words: list[str]) -> int:
    """Print what the rule table says; torch is never imported."""
    parser = FriendlyParser(
        prog="mud-puppy explain",
        description="Say whether a method, a precision and features work together, and why not.",
        allow_abbrev=False,
        formatter_class=wide_help,
    )
    parser.add_argument("code", nargs="?", help="a rule to explain, such as MP-R07")
    parser.add_argument("--all", action="store_true", help="list every single combination")
    parser.add_argument("--rules", action="store_true", help="list every rule with its code")
    add_training_flags(parser, skip=("output",))
    arguments = parser.parse_args(words)
    if arguments.rules or arguments.code:
        for rule in _rules_named(arguments.code):
            print(
                f"{rule.code} {rule.name}\n  why      {rule.every_reason}\n  instead  {rule.hint}"
            )
        return 0
    if arguments.all:
        return _print_all()
    placeholder = {"model": "tiny", "dataset": "data.jsonl", "output": "out"}
    typed = {**placeholder, **typed_settings(arguments)}
    values = {flag_of(name): str(value) for name, value in typed.items()}
    print(describe(check_values(typed, name=flag_of).decide(), values))
    return 0


def _rules_named(code: str | None) -> Sequence[Rule]:
    """Return the rule of a code, or all of them.

    Raises:
        UsageError: there is none of that code.
    """
    found = [rule for rule in RULES if code in (None, rule.code, rule.name)]
    if not found:
        near = near_names(str(code).upper(), [rule.code for rule in RULES])
        raise UsageError(f"there is no rule {code}{near}", hint="mud-puppy explain --rules")
    return found


def _print_all() -> int:
    """Print method, precision, feature and verdict of every single-feature combination."""
    for decision in every_single_feature():
        feature = decision.features[0] if decision.features else "-"
        print(f"{decision.method:10} {decision.precision:5} {feature:24} {decision.word}")
    print(f"{len(METHODS)} methods, {len(PRECISIONS)} precisions; `--rules` says why")
    return 0
