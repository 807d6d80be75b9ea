"""Ask, keep and go on: prompts answered once each, by whoever is opened here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from mudpuppy.asking.answers import Answer, Answerer, OnAnswer
from mudpuppy.asking.endpoint import REPLY_S
from mudpuppy.asking.kept import Kept, key_of, open_kept
from mudpuppy.errors import MudpuppyError, UsageError

CHECKED = 5
"""Kept answers that are asked for again where an identity does not tell one model from another."""


def ask(
    answerer: Answerer,
    prompts: Sequence[str],
    *,
    max_tokens: int,
    keep: Path | None = None,
    on_answer: OnAnswer | None = None,
) -> list[Answer]:
    """Return the answer to every prompt; the same prompt is asked once.

    Args:
        answerer: who is asked.
        prompts: what the user says.
        max_tokens: most new tokens of an answer.
        keep: file that answers are kept in while they come; those it holds are not asked again.
        on_answer: told every answer as soon as it is known, also one that was kept.

    Raises:
        UsageError: `keep` cannot be used, or holds the answers of another served model.
        MudpuppyError: an answer cannot be had; those before it are kept.
    """
    places: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        places.setdefault(prompt, []).append(place)
    keys = {prompt: key_of(answerer.identity, prompt, max_tokens) for prompt in places}
    known: dict[str, Answer] = {}

    def take(prompt: str, answer: Answer) -> None:
        known[prompt] = answer
        if on_answer is not None:
            for place in places[prompt]:
                on_answer(place, answer)

    with nullcontext() if keep is None else open_kept(keep) as kept:
        said = {} if kept is None else {p: a for p, key in keys.items() if (a := kept.get(key))}
        if kept is not None and not getattr(answerer, "is_recognised", True):
            _check_kept(answerer, said, max_tokens, kept.path)
        for prompt, answer in said.items():
            take(prompt, answer)
        unasked = [prompt for prompt in keys if prompt not in said]

        def receive(number: int, answer: Answer) -> None:
            prompt = unasked[number]
            if kept is not None:
                kept.add(keys[prompt], prompt, answer)
            take(prompt, answer)

        try:
            if unasked:
                answerer.answer(unasked, max_tokens=max_tokens, on_answer=receive)
        except MudpuppyError as error:
            _say_what_is_kept(error, kept, len(known), len(places))
            raise
    return [known[prompt] for prompt in prompts]


def _check_kept(
    answerer: Answerer, said: Mapping[str, Answer], max_tokens: int, path: Path
) -> None:
    """Ask some prompts again, spread over what is kept: behind one address models change.

    Raises:
        UsageError: one of them is answered otherwise now.
    """
    step = max(1, len(said) // CHECKED)
    prompts = list(said)[::step][:CHECKED]
    answers = answerer.answer(prompts, max_tokens=max_tokens) if prompts else []
    for prompt, answer in zip(prompts, answers, strict=True):
        if answer.text != said[prompt].text:
            raise UsageError(
                f"{path} holds the answers of another model than {answerer.name} is now: it "
                f"answers {prompt[:60]!r} otherwise",
                hint=f"remove {path} to ask everything again, or name another file",
            )


def _say_what_is_kept(error: MudpuppyError, kept: Kept | None, done: int, total: int) -> None:
    if kept is None or not done:
        return
    said = f"{done} of {total} answers are kept in {kept.path}: the same command goes on from there"
    error.hint = f"{error.hint}; {said}" if error.hint else said


def open_local(
    model: str | Path,
    *,
    base: str | Path | None = None,
    system: str | None = None,
    precision: str | None = None,
) -> Answerer:
    """Open a model that lies on this machine.

    Args:
        model: a folder of whole weights, plain or quantised; a folder of an adapter; or an
            embedded model's name.
        base: the base of an adapter; by default the one that its settings name.
        system: what the system says before every prompt; nothing by default.
        precision: type of the computation, `fp32`, `bf16` or `fp16`; by default as it is stored.

    Raises:
        ModelError: it cannot be opened.
    """
    from mudpuppy.asking.local import open_folder

    return open_folder(model, base=base, system=system, precision=precision)


def open_served(
    url: str,
    *,
    model: str | None = None,
    system: str | None = None,
    identity: str | None = None,
    reply_s: float = REPLY_S,
    flags: tuple[str, str] = ("--endpoint", "--endpoint-model"),
    say: Callable[[str], None] = print,
) -> Answerer:
    """Open a model that an OpenAI-compatible server serves, after seeing that it is there.

    Args:
        url: address of the server.
        model: its name there; by default the only one.
        system: what the system says before every prompt; nothing by default.
        identity: what tells this model from others in a file of kept answers, such as the hash of
            its file. Without one its address stands for it, and some prompts whose answers are
            kept are asked again.
        reply_s: time for one answer, in seconds.
        flags: how a person names address and model, for messages.
        say: told of a server that is neither on this machine nor on a private network, before
            anything is sent.

    Raises:
        UsageError: the address or the model's name is not usable, or the client not installed.
        EndpointError: the server cannot be asked.
    """
    from mudpuppy.asking.served import connect

    return connect(
        url, model=model, system=system, identity=identity, reply_s=reply_s, flags=flags, say=say
    )
