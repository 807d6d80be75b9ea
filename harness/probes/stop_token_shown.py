"""Answers show the tokens that should have ended them.

What it does: looks for end-of-turn markers of the known templates in the text that a server sends.

Why it is bad: the server takes the marker for text and goes on: the stop tokens of tokenizer,
generation settings and template disagree (FM03), or the template is not the trained one (FM04).
Users read `<|im_end|>` and the turns that the model then invents.

Example: 7 of 8 answers hold `<|im_end|>`.

What to do: put the marker's id into `eos_token_id` of generation_config.json and set `eos_token`;
convert GGUF files again; until then give the server the marker as a stop text.
"""

from __future__ import annotations

from harness.facts.served import Served
from harness.findings import Evidence, Finding, Severity
from harness.registry import Missing, probe

MARKERS = (
    "<|im_end|>",
    "<|im_start|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<end_of_turn>",
    "<start_of_turn>",
    "</s>",
    "[/INST]",
    "<|end|>",
    "<|assistant|>",
    "<|user|>",
    "<|start_header_id|>",
)
"""What ends or begins a turn in the templates of Llama, Qwen, Gemma, Phi, Mistral and their kin."""
SHARE = 0.25
"""Share of the answers from which on it counts: one may quote a marker."""


@probe("MPD631", modes=["FM03", "FM04"], severity=Severity.HIGH)
def check(served: Served) -> Finding | str:
    """Count answers with a marker in their text."""
    answered = [reply.text for reply in served.replies if not reply.problem]
    if not answered:
        raise Missing("no prompt was answered")
    shown = [(text, marker) for text in answered for marker in [_find(text)] if marker]
    if len(shown) < max(2, SHARE * len(answered)):
        return f"{len(shown)} of {len(answered)} answers show a marker of a turn"
    text, marker = shown[0]
    return Finding(
        message=f"{len(shown)} of {len(answered)} answers show a marker such as {marker}",
        evidence=(
            Evidence(what="answers with a marker of a turn", found=len(shown), expected=0),
            Evidence(what="one of them", found=text[:120]),
        ),
        cause="stop tokens of tokenizer, generation settings and template disagree",
        remedy=f"add the id of {marker} to eos_token_id in generation_config.json, convert again",
    )


def _find(text: str) -> str:
    return next((marker for marker in MARKERS if marker in text), "")
