"""The token that ends an answer of a GGUF model is none that can.

What it does: looks up the text and the kind of `tokenizer.ggml.eos_token_id`: it must be a special
token, and one whose text ends something (`</s>`, `<|im_end|>`, `<eos>`), not one that begins a turn
or pads. Where a chat template is stored, the token that ends its turns must be known: as the end of
text, as `eot_token_id`, or by a name that llama.cpp looks for.

Why it is bad: programs stop at this token and at no other. With another they never stop, and go on
with the user's next question, or stop in the middle of a word (FM03).

Example: `eos_token_id` 151644, `<|im_start|>`, where every turn ends with `<|im_end|>`, 151645.

What to do: `gguf-set-metadata FILE tokenizer.ggml.eos_token_id NUMBER`, or set eos_token in
tokenizer_config.json and generation_config.json and convert again.
"""

from __future__ import annotations

import re

from harness.facts.gguf import Gguf
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, NotApplicable, probe

EOS = "tokenizer.ggml.eos_token_id"
DEFAULTS = {"llama": 2, "gpt2": 11, "t5": 1, "plamo2": 2}
"""The end of text that llama.cpp takes where none is stored, by tokenizer."""
BEGINS = re.compile(r"(?i)(start|begin|bos\b|<s>$|\bunk\b|\bpad\b|mask)")
"""Texts of tokens that cannot end an answer."""
ENDS = re.compile(r"(?i)(end|eos|eot|eom|</s>|stop|turn|return|call|finish|done)")
"""Texts of tokens that can."""
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|eot|>", "<turn|>")
"""Ends of turns that llama.cpp finds by name, whatever is stored."""
NORMAL, CONTROL = 1, 3
"""Kinds of tokens; a vocabulary that marks none as special says nothing by them."""


@probe("MPD842", modes=["FM03"], severity=Severity.HIGH)
def check(gguf: Gguf) -> Finding | str:
    """Look up the token that ends an answer."""
    tokens = gguf.array("tokenizer.ggml.tokens", "string")
    kinds = gguf.array("tokenizer.ggml.token_type", "int32")
    model = gguf.text("tokenizer.ggml.model")
    if not gguf.is_model or not model or model in ("bert", "no_vocab", "none"):
        raise NotApplicable("the file is no model that answers")
    if tokens is None or not tokens.values:
        raise Missing("there is no vocabulary to look the token up in")
    stored = gguf.number(EOS)
    number = DEFAULTS.get(model) if stored is None else stored
    if not isinstance(number, int) or not 0 <= number < tokens.length:
        raise NotApplicable("no end of text is named, or gguf-vocabulary-disagrees reports it")
    text = str(tokens.values[number])
    kind = kinds.values[number] if kinds and number < len(kinds.values) else None
    marked = kinds is not None and CONTROL in kinds.values
    said = _object(text, kind if marked else None, stored is None)
    if not said:
        return f"answers end with {text[:40]!r} ({number})"
    wanted = _wanted(gguf, tokens.values)
    known = "" if not wanted else f"{wanted} ({tokens.values.index(wanted)})"
    return Finding(
        message=f"the end of text is token {number}, {text[:40]!r}, {said}"
        + (f"; the template ends turns with {wanted}" if wanted else ""),
        evidence=(
            Evidence(
                what=EOS,
                found="absent" if stored is None else number,
                expected=known or "a special token that ends answers",
            ),
        ),
        cause="the tokenizer named another end, or none, when the model was converted",
        remedy=f"gguf-set-metadata FILE {EOS} "
        + (str(tokens.values.index(wanted)) if wanted else "NUMBER"),
    )


def _object(text: str, kind: int | None, is_default: bool) -> str:
    """Return what speaks against a token as the end of answers; empty when nothing does."""
    if ENDS.search(text) and not re.search(r"(?i)start|begin", text):
        return ""
    if BEGINS.search(text):
        return "which begins, pads or separates"
    if kind == NORMAL:
        why = "which llama.cpp takes because none is stored" if is_default else "a part of words"
        return f"{why}, no special token"
    return ""


def _wanted(gguf: Gguf, tokens: tuple[str, ...]) -> str:
    """Return the token with which the stored template ends turns."""
    template = gguf.text("tokenizer.chat_template")
    return next((one for one in TURN_ENDS if one in template and one in tokens), "")
