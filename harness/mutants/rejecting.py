"""Bugs in refusing what cannot work. Nothing here imports more than the rule table does."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

from harness.mutants.form import mutant, part, replaces


def _change_rules(change: Any) -> None:
    rules = part("rules")
    rules.RULES = tuple(made for rule in rules.RULES for made in change(rule))


@mutant("rejected-streaming", caught_by="missed-rejection")
def streaming_rejection_removed() -> None:
    """Let LoRA and streaming through, as an engine without the check did (seed 000)."""
    _change_rules(lambda rule: () if "streaming" in rule.features else (rule,))


@mutant("rejected-streaming", caught_by="wrong-rejection")
def rejected_with_another_code() -> None:
    """Refuse for a reason that is not the one."""
    _change_rules(lambda rule: (replace(rule, code="MP-R99"),))


@mutant("rejected-streaming", "rejected-merge", caught_by="failed")
def rejected_after_torch() -> None:
    """Import torch before the settings are looked at: seconds for a slip of the pen."""

    @replaces(part("config:TrainingConfig"), "decide")
    def decide(original: Any, self: Any) -> Any:
        importlib.import_module("torch")
        return original(self)


@mutant("rejected-streaming", "rejected-merge", caught_by="failed")
def rejected_after_writing() -> None:
    """Make the output folder before the settings are looked at."""

    @replaces(part("config:TrainingConfig"), "decide")
    def decide(original: Any, self: Any) -> Any:
        self.output.mkdir(parents=True, exist_ok=True)
        (self.output / "config.json").write_text("{}", encoding="utf-8")
        return original(self)


@mutant("rejected-merge", caught_by="missed-rejection")
def rejected_feature_not_seen() -> None:
    """Never look whether a merge is asked for, so that no rule about it applies."""
    config = part("config")
    config.SWITCHES = {**config.SWITCHES, "merge-lora": ("merge_lora", lambda value: False)}


@mutant("rejected-merge-precision", caught_by="missed-rejection")
def rejected_only_without_ignored() -> None:
    """Take a rule that applies in the absence of a feature for one that needs it."""
    _change_rules(lambda rule: () if rule.without else (rule,))


@mutant("lora", caught_by="wrong-rejection")
def accepted_no_more() -> None:
    """Refuse what works: a rule about one method is taken for one about all."""

    def widen(rule: Any) -> tuple[Any, ...]:
        return (replace(rule, methods=frozenset({"lora", *rule.methods}), features=frozenset()),)

    _change_rules(widen)
