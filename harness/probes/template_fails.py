"""The chat template raises, leaves messages out, or mixes them up.

What it does: renders the template in a sandboxed child process, with limits, for a question, an
answer, a second question and a system message, and looks for the words of every message, their
order, and heads that tell question from answer.

Why it is bad: a template that raises stops the first conversation; one that leaves the question out
lets the model answer something else; one that forgets earlier answers has no conversation (FM04).
Leaving out the system message is common among published models and worth a note.

Example: `{{ message.text }}` where messages have `content`: every turn is empty.

What to do: copy chat_template.jinja from the base model, or mend the line; then look at
`tokenizer.apply_chat_template(messages, tokenize=False)`.
"""

from __future__ import annotations

from harness.facts.chat import Chat
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe

_WORDS = {
    "user": "what the user says",
    "assistant": "what the assistant said before",
    "earlier messages": "the messages before the last",
    "order": "the order of the messages",
    "speakers": "who speaks: questions and answers have the same head",
    "system": "the system message",
}


@probe("MPD810", modes=["FM04"], severity=Severity.HIGH)
def check(chat: Chat) -> Finding | str:
    """Report what the template does to a plain conversation."""
    if chat.problem.startswith("it does not end"):
        return _find(chat, f"cannot be rendered: {chat.problem}", chat.problem, Severity.HIGH)
    if chat.problem:
        raise NotApplicable(f"the template wants another conversation: {chat.problem[:150]}")
    if chat.raised.startswith("TemplateSyntaxError"):
        raise NotApplicable("the template does not parse, which is another probe's")
    if chat.raised:
        return _find(chat, f"raises for a plain question: {chat.raised}", chat.raised, None)
    if not chat.lost:
        return "the template writes every message of a short conversation"
    grave = {"user": Severity.CRITICAL, "assistant": Severity.HIGH, "order": Severity.HIGH}
    grave |= {"speakers": Severity.HIGH}
    severity = grave.get(chat.lost[0], Severity.MEDIUM)
    if chat.lost == ("system",):
        severity = Severity.NOTE
    first = chat.lost[0]
    what = "writes a message twice" if first == "once" else f"leaves out {_WORDS[first]}"
    return _find(chat, what, ", ".join(chat.lost), severity)


def _find(chat: Chat, what: str, found: str, severity: Severity | None) -> Finding:
    return Finding(
        message=f"the chat template in {chat.file} {what}",
        evidence=(Evidence(what="rendered", file=chat.file, found=found),),
        cause="the template was edited, cut off, or written for messages of another form",
        remedy=f"copy {chat.file} from the base model, and look at "
        "tokenizer.apply_chat_template(messages, tokenize=False)",
        severity=severity,
    )
