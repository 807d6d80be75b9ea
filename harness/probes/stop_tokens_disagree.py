"""The places that say where an answer ends do not agree.

What it does: takes the token with which the chat template ends an answer (rendered in a sandbox),
the tokenizer's eos_token, and `eos_token_id` of config.json and generation_config.json. `generate`
must stop on what the template writes; without a template, on the tokenizer's end. Several stop
tokens are fine, and so is an end of text beside an end of turn. Ids of ordinary words are not.

Why it is bad: the model ends its turn and nobody notices: the answer goes on in transformers and
stops in vLLM, or the reverse, because each reads another file (FM03). A word as stop id cuts
answers off at that word.

Example: the template ends turns with `<|im_end|>`, and generation_config.json still has the
`<|endoftext|>` of the base.

What to do: set the id in generation_config.json: `model.generation_config.eos_token_id = [...]`,
then `model.generation_config.save_pretrained(FOLDER)`; and the same in config.json.
"""

from __future__ import annotations

from collections.abc import Iterator

from harness.facts.chat import Marker, StopTokens
from harness.facts.tokenizers import GENERAL
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe

GENERATION, CONFIG = "generation_config.json", "config.json"


@probe("MPD808", modes=["FM03"], severity=Severity.HIGH)
def check(stop_tokens: StopTokens) -> Finding | str:
    """Compare the end of an answer with what readers stop on."""
    facts = stop_tokens
    if not facts.generates:
        raise NotApplicable("the configuration names no architecture that writes text")
    if facts.is_swapped:
        raise NotApplicable("begin and end are swapped, which another probe reports")
    found = [*_words(facts), *_turn(facts), *_end(facts), *_unnamed(facts)]
    if not found:
        return f"{len(facts.effective)} stop tokens fit tokenizer and template"
    worst = min(found, key=lambda pair: list(Severity).index(pair[0]))[0]
    first = next(evidence for severity, evidence in found if severity is worst)
    return Finding(
        message=f"{first.what}: {first.found}, expected {first.expected}",
        evidence=tuple(evidence for _, evidence in found),
        cause="tokenizer and configurations come from two models, or a template was set after "
        "the stop tokens",
        remedy=_remedy(facts),
        severity=worst,
    )


def _remedy(facts: StopTokens) -> str:
    ends = [m.number for m in facts.chat.ends if m.number is not None] if facts.chat else []
    if not ends and facts.end is not None:
        ends = [facts.end]
    known = [n for n in sorted(facts.effective) if facts.naming.is_special(n) and n not in ends]
    return f"set eos_token_id to {[*ends[:1], *known]} in {GENERATION} and {CONFIG}"


def _words(facts: StopTokens) -> Iterator[tuple[Severity, Evidence]]:
    """Yield ids of ordinary words, where the tokenizer's own end is a special token."""
    naming = facts.naming
    if facts.end is None or naming.chosen.get("eos_token") not in naming.special:
        return
    for file, ids in ((GENERATION, facts.generation), (CONFIG, facts.config)):
        for number in ids or ():
            if naming.is_special(number) or number == facts.end:
                continue
            counts = file == GENERATION or facts.generation is None
            yield (
                Severity.HIGH if counts else Severity.MEDIUM,
                Evidence(
                    what=f"eos_token_id {number} is an ordinary piece of text",
                    file=file,
                    found=naming.name(number)[:60],
                    expected=f"{naming.chosen['eos_token'][:40]!r} ({facts.end})",
                ),
            )


def _turn(facts: StopTokens) -> Iterator[tuple[Severity, Evidence]]:
    """Yield the end of a turn on which nothing stops."""
    chat = facts.chat
    if chat is None or not chat.ends or _stops(facts, (*chat.ends, chat.next_turn)):
        return
    end = chat.ends[0]
    if end.number is None:
        return  # split into pieces, which another probe reports
    elsewhere = end.number == facts.end or end.number in (facts.config or ())
    # The base models of this family carry a template that they were not trained with.
    is_base = facts.model_type.startswith("qwen") and not (elsewhere or facts.was_trained)
    severity = Severity.NOTE if is_base else Severity.HIGH
    stops = ", ".join(facts.naming.name(n) for n in sorted(facts.effective)) or "nothing"
    yield (
        severity,
        Evidence(
            what=f"the template ends an answer with {end.text[:40]!r} ({end.number}), and "
            "generate stops elsewhere",
            file=GENERATION if facts.has_generation else CONFIG,
            found=stops[:200],
            expected=end.number,
        ),
    )


def _stops(facts: StopTokens, markers: tuple[Marker | None, ...]) -> bool:
    return any(marker is not None and marker.number in facts.effective for marker in markers)


def _end(facts: StopTokens) -> Iterator[tuple[Severity, Evidence]]:
    """Yield the tokenizer's end when it is no stop token, unless the template's is reported."""
    if facts.end is None or facts.end in facts.effective:
        return
    chat = facts.chat
    works = chat is not None and bool(chat.ends) and _stops(facts, (*chat.ends, chat.next_turn))
    if works and facts.end in (facts.config or ()):
        return
    if chat is not None and chat.ends and chat.ends[0].number == facts.end:
        return
    stops = ", ".join(facts.naming.name(n) for n in sorted(facts.effective)) or "nothing"
    yield (
        Severity.MEDIUM if works else Severity.HIGH,
        Evidence(
            what=f"the tokenizer's eos_token is {facts.naming.chosen['eos_token'][:40]!r} "
            f"({facts.end}), and generate stops elsewhere",
            file=GENERATION if facts.generation else CONFIG,
            found=stops[:200],
            expected=facts.end,
        ),
    )


def _unnamed(facts: StopTokens) -> Iterator[tuple[Severity, Evidence]]:
    """Yield that a tokenizer of no class of its own names no end, where the model has one."""
    naming = facts.naming
    kind = naming.settings.get("tokenizer_class")
    if naming.chosen.get("eos_token") or kind not in GENERAL or not facts.effective:
        return
    stops = ", ".join(naming.name(number)[:40] for number in sorted(facts.effective)[:5])
    yield (
        Severity.MEDIUM,
        Evidence(what="eos_token", file="tokenizer_config.json", found="not named", expected=stops),
    )
