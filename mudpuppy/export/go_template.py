"""A chat template of Jinja as one of Go, for Ollama: derived from what it renders, then proved.

Ollama knows the templates of well-known models by heart and takes any other GGUF's for plain text,
which makes a fine-tuned model babble. Here conversations of marks are rendered; from what stands
between the marks a form is read: what comes before and after each role's words. The form is
believed only if it renders other conversations exactly as the template does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mudpuppy.data.timelimit import TimeLimitReached

Turns = Sequence[tuple[str, str]]
"""A conversation: roles and words."""
Render = Callable[[Turns, bool], str]
"""Renders a conversation, with or without the beginning of an answer; raises what it likes."""

MARKS = {"system": "QSYSQ", "user": "QUSERQ", "assistant": "QANSQ", "again": "QAGAINQ"}
"""Words that no template has."""
PROOFS: tuple[Turns, ...] = (
    (("user", "Hello?"),),
    (("user", 'Two\n\nlines, "quotes" & <tags>'), ("assistant", "Ω: yes."), ("user", "And?")),
    (("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4"), ("user", "5")),
)
"""Conversations that a form must render as the template does; those with a system come beside."""
SYSTEM = "Be brief.\nBe kind."


class NotDerivable(Exception):
    """Why a template has no counterpart in Go, in a few words."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """What stands around the words of a conversation."""

    start: str
    """Before the first turn, where there is no system prompt."""
    user: tuple[str, str]
    """Around what the user says."""
    assistant: tuple[str, str]
    """Around an earlier answer."""
    prompt: str
    """After the last turn: the beginning of the answer."""
    system: tuple[str, str] | None
    """Around the system prompt, from the first character on; None where none is taken."""
    is_inside: bool
    """Whether the system prompt stands in the first turn of the user."""

    def render(self, turns: Turns) -> str:
        """Return a conversation as the Go template renders it."""
        said = "".join(words for role, words in turns if role == "system")
        text = "" if said and self.system is not None else self.start
        lead = said if self.is_inside else ""
        for role, words in turns:
            if role == "system":
                before, after = self.system or ("", "")
                text += "" if self.is_inside or self.system is None else before + words + after
            elif role == "user":
                text += self._user(words, lead)
                lead = ""
            else:
                text += self.assistant[0] + words + self.assistant[1]
        return text + self.prompt

    def _user(self, words: str, lead: str) -> str:
        if lead and self.system is not None:
            return self.system[0] + lead + self.system[1] + words + self.user[1]
        return self.user[0] + words + self.user[1]

    def to_go(self) -> str:
        """Return the Go template.

        Raises:
            NotDerivable: a part of it cannot be written in a Modelfile.
        """
        user = f"{self.user[0]}{{{{ .Content }}}}{self.user[1]}"
        system = ""
        head = self.start
        if self.system is not None:
            head = f"{{{{ if not .System }}}}{self.start}{{{{ end }}}}" if self.start else ""
            before, after = self.system
            if self.is_inside:
                head += "{{ $lead := .System }}"
                user = (
                    f'{{{{ if $lead }}}}{before}{{{{ $lead }}}}{after}{{{{ $lead = "" }}}}'
                    f"{{{{ else }}}}{self.user[0]}{{{{ end }}}}{{{{ .Content }}}}{self.user[1]}"
                )
            else:
                said = f"{before}{{{{ .Content }}}}{after}"
                system = f'{{{{ else if eq .Role "system" }}}}{said}'
        answer = f"{self.assistant[0]}{{{{ .Content }}}}{self.assistant[1]}"
        self._require_plain()
        return (
            f'{head}{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}{user}'
            f'{{{{ else if eq .Role "assistant" }}}}{answer}{system}{{{{ end }}}}{{{{ end }}}}'
            f"{self.prompt}"
        )

    def _require_plain(self) -> None:
        """Refuse what Go or a Modelfile would read as something else."""
        parts = (self.start, *self.user, *self.assistant, self.prompt, *(self.system or ()))
        for part in parts:
            if "{{" in part or '"""' in part:
                raise NotDerivable("it writes braces or quotes that a Modelfile cannot hold")
            if not is_plain(part):
                raise NotDerivable("it writes characters that a Modelfile cannot hold")


def is_plain(text: str) -> bool:
    """Whether a Modelfile keeps every character of a text: it drops what cannot be printed."""
    return all(char.isprintable() or char in "\n\t" for char in text)


def derive(render: Render, *, bos: str, adds_bos: bool) -> tuple[Form, bool]:
    """Derive the form of a chat template.

    Args:
        render: the template.
        bos: text of the token that begins a sequence; empty where there is none.
        adds_bos: whether whoever reads the text puts that token before it.

    Returns:
        The form, and whether the template takes off spaces around the words, which Go's does not.

    Raises:
        NotDerivable: it does more than to put texts around words.
        TimeLimitReached: it is called inside `time_limit`, and the time is over.
    """
    plain = _read_plain(render)
    system, is_inside = _read_system(render, plain["user"])
    form = Form(
        start=plain["start"],
        user=(plain["user"], plain["user_end"]),
        assistant=(plain["assistant"], plain["assistant_end"]),
        prompt=plain["prompt"],
        system=system,
        is_inside=is_inside,
    )
    _prove(form, render)
    return _without_bos(form, bos, adds_bos), _trims(render)


def _read_plain(render: Render) -> Mapping[str, str]:
    """Return what stands around the words of user and assistant."""
    user, answer, again = MARKS["user"], MARKS["assistant"], MARKS["again"]
    whole = _call(render, (("user", user), ("assistant", answer), ("user", again)), True)
    before, middle, between, after = _split(whole, user, answer, again)
    (_, user_end) = _split(_call(render, (("user", user),), False), user)
    closed = _call(render, (("user", user), ("assistant", answer)), False)
    (_, assistant_end) = _split(closed, answer)
    lead = _after(between, assistant_end)
    return {
        "start": _before(before, lead),
        "user": lead,
        "user_end": user_end,
        "assistant": _after(middle, user_end),
        "assistant_end": assistant_end,
        "prompt": _after(after, user_end),
    }


def _read_system(render: Render, user: str) -> tuple[tuple[str, str] | None, bool]:
    """Return what stands around a system prompt, and whether it is inside the user's turn."""
    turns = (("system", MARKS["system"]), ("user", MARKS["user"]))
    try:
        whole = render(turns, True)
    except TimeLimitReached:
        raise
    except Exception:  # noqa: BLE001 - a template may raise what it likes to refuse a system prompt
        return None, False
    if MARKS["system"] not in whole:
        return None, False
    before, between, _ = _split(whole, MARKS["system"], MARKS["user"])
    if between.endswith(user):
        return (before, _before(between, user)), False
    if before.endswith(user):
        return (before, between), True
    raise NotDerivable("its system prompt is neither a turn nor a part of the user's first one")


def _prove(form: Form, render: Render) -> None:
    """Refuse a form that renders anything else than the template does."""
    systems: tuple[Turns, ...] = ((), (("system", SYSTEM),)) if form.system else ((),)
    for lead in systems:
        for turns in PROOFS:
            if form.render((*lead, *turns)) != _call(render, (*lead, *turns), True):
                raise NotDerivable("it does more than to put texts around the words")


def _without_bos(form: Form, bos: str, adds_bos: bool) -> Form:
    """Return the form without the token that whoever reads the text adds.

    Raises:
        NotDerivable: every turn begins with it, so that the first would have two.
    """
    if not (bos and adds_bos):
        return form
    if form.user[0].startswith(bos):
        raise NotDerivable("it begins every turn as the whole text begins")
    system = form.system
    if system is not None:
        system = (system[0].removeprefix(bos), system[1])
    return Form(
        start=form.start.removeprefix(bos),
        user=form.user,
        assistant=form.assistant,
        prompt=form.prompt,
        system=system,
        is_inside=form.is_inside,
    )


def _trims(render: Render) -> bool:
    """Whether the template takes off spaces around the words."""
    return "  x  " not in _call(render, (("user", "  x  "),), True)


def _call(render: Render, turns: Turns, prompt: bool) -> str:
    try:
        return render(turns, prompt)
    except TimeLimitReached:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:100]
        raise NotDerivable(f"it refuses a plain conversation ({said})") from error


def _split(text: str, *marks: str) -> list[str]:
    """Return what stands around marks, each of which must be there once, in this order."""
    parts = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found or mark in text:
            raise NotDerivable("it leaves out words, or says them twice")
        parts.append(before)
    return [*parts, text]


def _after(text: str, beginning: str) -> str:
    if not text.startswith(beginning):
        raise NotDerivable("what it writes around a turn depends on the turns beside it")
    return text[len(beginning) :]


def _before(text: str, end: str) -> str:
    if not text.endswith(end):
        raise NotDerivable("what it writes around a turn depends on the turns beside it")
    return text[: len(text) - len(end)]
