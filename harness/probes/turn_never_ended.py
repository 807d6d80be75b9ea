"""The chat template writes no end after an answer.

What it does: renders an answer, and another question after it, and looks for a token that ends the
turn: after the answer, or at the head of the next turn where that is itself a stop token. Of chats
in words alone, without any marker, it is worth a note unless the model was tuned.

Why it is bad: text that is rendered for training holds no end, so the model is never taught to
stop, and answers run to the token limit with invented turns (FM02).

Example: `{{ message.content }}` without the `{{ eos_token }}` that followed it.

What to do: end the turn of the assistant with the token that `eos_token_id` names, and train again.
"""

from __future__ import annotations

from harness.facts.chat import StopTokens
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe


@probe("MPD812", modes=["FM02"], severity=Severity.HIGH)
def check(stop_tokens: StopTokens) -> Finding | str:
    """Report answers that are followed by nothing that could end them."""
    chat = stop_tokens.chat
    if chat is None or not chat.knows_answer:
        raise NotApplicable("no template here renders an answer")
    turn = chat.next_turn
    if chat.ends:
        return f"answers end with {chat.ends[0].text[:40]!r}"
    if turn is not None and turn.number is not None and turn.number in stop_tokens.effective:
        return f"answers end where {turn.text[:40]!r} begins, which is a stop token"
    end = stop_tokens.naming.chosen.get("eos_token", "")
    severity = Severity.HIGH
    if not chat.markers:  # chats of words alone are published too, and ended by the programs
        severity = Severity.MEDIUM if stop_tokens.was_trained else Severity.NOTE
    return Finding(
        message="the chat template writes no end token after an answer, so training with it "
        "teaches none",
        evidence=(
            Evidence(what="after an answer", file=chat.file, found="nothing", expected=end[:40]),
            Evidence(what="head of the next turn", found=turn.text[:60] if turn else "no token"),
        ),
        cause="the end was left out of the template, or cut off with its last line",
        remedy=f"write {end[:40]!r} after the answer in {chat.file}, and train again",
        severity=severity,
    )
