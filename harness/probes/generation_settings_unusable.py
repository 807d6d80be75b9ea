"""generation_config.json holds values that cannot be meant.

What it does: checks the numbers that every generation uses (temperature, top_p, top_k, penalties,
lengths, beams) against what transformers accepts, and looks for stop tokens that are suppressed.

Why it is bad: `generate` raises for every request, gives one token, or can never stop, because the
token that ends an answer is forbidden (FM03). Saving the model again raises too.

Example: `do_sample: true, temperature: 0.0`: "`temperature` (=0.0) has to be a strictly positive
float".

What to do: take the value out of generation_config.json, or copy the file from the base model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from harness.findings import Evidence, Finding, Severity
from harness.registry import probe

FILE = "generation_config.json"
_ABOVE_ZERO = ("max_new_tokens", "max_length", "num_beams", "num_return_sequences")
_NOT_BELOW_ZERO = ("min_length", "min_new_tokens", "top_k", "no_repeat_ngram_size")
_SHARES = ("top_p", "typical_p")
_FORBIDS = ("suppress_tokens", "bad_words_ids")


@probe("MPD822", modes=["FM03"], severity=Severity.HIGH)
def check(generation_settings: Mapping[str, Any]) -> Finding | str:
    """Report values that are refused or end every generation at once."""
    values = {key: value for key, value in generation_settings.items() if value is not None}
    evidence = [*_counts(values), *_numbers(values), *_forbidden(values)]
    if not evidence:
        return "the settings of generation can be used"
    first = evidence[0]
    return Finding(
        message=f"{first.what} in {FILE} is {first.found}, expected {first.expected}",
        evidence=tuple(evidence),
        cause="the file was written by hand or by another program",
        remedy=f"take {first.what} out of {FILE}, or copy the file from the base model",
    )


def _piece(what: str, value: Any, expected: str) -> Evidence:
    return Evidence(what=what, file=FILE, found=repr(value)[:80], expected=expected)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _counts(values: Mapping[str, Any]) -> Iterator[Evidence]:
    for key in _ABOVE_ZERO:
        if key in values and not (type(values[key]) is int and values[key] > 0):
            yield _piece(key, values[key], "a whole number above 0")
    for key in _NOT_BELOW_ZERO:
        if key in values and not (type(values[key]) is int and values[key] >= 0):
            yield _piece(key, values[key], "a whole number, 0 or more")
    beams, several = values.get("num_beams", 1), values.get("num_return_sequences", 1)
    whole = type(beams) is int and type(several) is int
    if whole and several > max(beams, 1) and not (values.get("do_sample") and beams == 1):
        yield _piece("num_return_sequences", several, f"at most num_beams, {beams}")
    least, most = values.get("min_new_tokens"), values.get("max_new_tokens")
    if type(least) is int and type(most) is int and least > most > 0:
        yield _piece("min_new_tokens", least, f"at most max_new_tokens, {most}")


def _numbers(values: Mapping[str, Any]) -> Iterator[Evidence]:
    heat = values.get("temperature")
    if heat is not None and not (_is_number(heat) and heat >= 0):
        yield _piece("temperature", heat, "a number above 0")
    elif heat == 0 and values.get("do_sample") is True:
        yield _piece("temperature", heat, "above 0, or do_sample false")
    for key in _SHARES:
        if key in values and not (_is_number(values[key]) and 0 <= values[key] <= 1):
            yield _piece(key, values[key], "between 0 and 1")
    for key in ("repetition_penalty", "encoder_repetition_penalty"):
        if key in values and not (_is_number(values[key]) and values[key] > 0):
            yield _piece(key, values[key], "a number above 0, usually 1.0 to 1.3")


def _forbidden(values: Mapping[str, Any]) -> Iterator[Evidence]:
    """Yield stop tokens that no generation may write."""
    ends = values.get("eos_token_id")
    stops = {one for one in (ends if isinstance(ends, list) else [ends]) if type(one) is int}
    for key in _FORBIDS:
        listed = values.get(key)
        banned = {
            one[0] if isinstance(one, list) else one
            for one in (listed if isinstance(listed, list) else [])
            if type(one) is int or (isinstance(one, list) and len(one) == 1)
        }
        if stops and stops <= {one for one in banned if type(one) is int}:
            yield _piece(key, sorted(stops), "no stop token in it")
