"""Begin and end of a text are swapped.

What it does: looks whether `bos_token_id` of the configurations is the tokenizer's end while
`eos_token_id` is its begin, and whether eos_token has the text of a begin token, such as `<s>`.

Why it is bad: generation stops on a token that never comes and does not stop on the one that does;
training with it teaches the model to begin where it should end (FM03).

Example: `bos_token_id: 2, eos_token_id: 1` for a tokenizer with `<s>` 1 and `</s>` 2.

What to do: exchange the two in config.json, generation_config.json or tokenizer_config.json; the
file of the base model shows which is right.
"""

from __future__ import annotations

from collections.abc import Iterator

from harness.facts.chat import BEGINS, StopTokens
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe


@probe("MPD809", modes=["FM03"], severity=Severity.HIGH)
def check(stop_tokens: StopTokens) -> Finding | str:
    """Report swapped ids and swapped texts."""
    if stop_tokens.end is None:
        raise NotApplicable("the tokenizer names no end token that it has")
    if not stop_tokens.is_swapped:
        return "begin and end are told apart"
    evidence = [*_texts(stop_tokens), *_ids(stop_tokens)]
    first = evidence[0]
    return Finding(
        message=f"{first.what} is {first.found}, expected {first.expected}: begin and end are "
        "swapped",
        evidence=tuple(evidence),
        cause="the two were exchanged by hand or by a converter",
        remedy="exchange bos and eos again, as the base model's files have them",
    )


def _texts(facts: StopTokens) -> Iterator[Evidence]:
    for file, roles in facts.naming.by_file.items():
        text = roles.get("eos_token", "")
        if text in BEGINS and roles.get("bos_token") != text:
            yield Evidence(
                what="eos_token", file=file, found=repr(text), expected="a token that ends texts"
            )


def _ids(facts: StopTokens) -> Iterator[Evidence]:
    """Yield files whose only stop id is that of the begin token."""
    naming, begin = facts.naming, facts.naming.find_id("bos_token")
    for file, ids in (("generation_config.json", facts.generation), ("config.json", facts.config)):
        if begin is not None and begin != facts.end and ids == (begin,):
            yield Evidence(
                what="eos_token_id",
                file=file,
                found=f"{begin}, {naming.name(begin)[:40]}",
                expected=f"{facts.end}, {naming.chosen['eos_token'][:40]!r}",
            )
