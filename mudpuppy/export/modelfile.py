"""An Ollama Modelfile for an export: template, stop tokens and sampling of the very model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mudpuppy.data.timelimit import TimeLimitReached, time_limit
from mudpuppy.errors import ModelError, UsageError
from mudpuppy.export.gguf.tokenizer_source import Source, read_source
from mudpuppy.export.go_template import NotDerivable, Turns, derive, is_plain

RENDER_S = 10.0
"""Time for everything that a template renders."""
SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
"""What generation_config.json calls a setting, and what Ollama calls it."""


@dataclass(frozen=True, kw_only=True)
class Speech:
    """How a model is spoken to, as far as its folder says."""

    template: str | None = None
    """Ollama's template; None where it cannot be derived."""
    remark: str = ""
    """What is to be said of it."""
    stops: tuple[str, ...] = ()
    """Texts of the tokens that end an answer."""
    sampling: Mapping[str, float] = field(default_factory=dict)
    """Settings of sampling by Ollama's names."""


def read_speech(source: Path) -> Speech:
    """Return how the model in a folder is spoken to; what cannot be read is a remark.

    Args:
        source: folder with tokenizer, config.json and generation_config.json.
    """
    try:
        found = read_source(source)
    except ModelError as error:
        return Speech(remark=f"the tokenizer cannot be used: {_line(error.message)}")
    stops, left_out = _read_stops(found)
    template, remark = _read_template(found)
    if left_out:
        remark = f"{remark}; {left_out}" if remark else left_out
    sampling = _read_sampling(found.generation)
    return Speech(template=template, remark=remark, stops=stops, sampling=sampling)


def _read_template(source: Source) -> tuple[str | None, str]:
    """Return the Go template, where there is one, and what is to be said of it."""
    tokenizer = source.tokenizer
    if not tokenizer.chat_template:
        return "{{ .Prompt }}", "the model has no chat template: it goes on with what is said"
    if not isinstance(tokenizer.chat_template, str):
        return None, "the tokenizer has several chat templates"
    if "strftime_now" in tokenizer.chat_template:
        return None, "the chat template says today's date"

    def render(turns: Turns, prompt: bool) -> str:
        messages = [{"role": role, "content": words} for role, words in turns]
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        )

    first = source.encode("a")[:1]
    bos = tokenizer.bos_token or ""
    try:
        with time_limit(RENDER_S):
            form, trims = derive(render, bos=bos, adds_bos=first == [tokenizer.bos_token_id])
        template = form.to_go()
    except TimeLimitReached:
        return None, "the chat template does not come to an end"
    except NotDerivable as reason:
        return None, f"the chat template has no counterpart here: {reason}"
    remarks = ["tools are left out"] if "tools" in tokenizer.chat_template else []
    if trims:
        remarks.append("the original also takes off spaces around the words")
    if form.system is None:
        remarks.append("it takes no system prompt")
    return template, "; ".join(remarks)


def _read_stops(source: Source) -> tuple[tuple[str, ...], str]:
    """Return the texts of the tokens that end an answer, and a remark on those left out."""
    tokenizer = source.tokenizer
    found: list[Any] = [tokenizer.eos_token_id]
    for ids in (source.generation.get("eos_token_id"), source.model_setting("eos_token_id")):
        found += ids if isinstance(ids, list) else [ids]
    known = len(tokenizer)
    ids = list(dict.fromkeys(i for i in found if type(i) is int and 0 <= i < known))
    texts = [str(tokenizer.decode([number], skip_special_tokens=False)) for number in ids]
    usable = [text for text in texts if text.strip() and is_plain(text) and '"' not in text]
    left_out = "a stop token has a text that a Modelfile cannot hold"
    return tuple(dict.fromkeys(usable)), left_out if len(usable) < len(texts) else ""


def _read_sampling(generation: Mapping[str, Any]) -> dict[str, float]:
    """Return the settings of sampling; a model that is meant to answer greedily has none."""
    if generation.get("do_sample") is False:
        return {}
    found = {}
    for name, ours in SAMPLING.items():
        value = generation.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
            found[ours] = value
    return found


def write_modelfile(origin: str, speech: Speech, *, system: str | None = None) -> str:
    """Return the text of a Modelfile.

    Args:
        origin: what FROM names: a path relative to the Modelfile.
        speech: how the model is spoken to.
        system: the system prompt; none by default.

    Raises:
        UsageError: name or system prompt cannot be quoted in a Modelfile.
    """
    if not is_plain(origin) or "\n" in origin or '"' in origin:
        raise UsageError(
            f"{origin!r} cannot be named in a Modelfile", hint="choose a name without such signs"
        )
    lines = [f"FROM {origin}", ""]
    if speech.template is not None:
        lines += [f"# {speech.remark}"] if speech.remark else []
        lines += [f'TEMPLATE """{speech.template}"""', ""]
    else:
        lines += [
            f"# No TEMPLATE: {speech.remark}.",
            "# Ollama takes the file's own where it knows it: `ollama show --modelfile NAME` must",
            "# then print another TEMPLATE than {{ .Prompt }}. llama.cpp and LM Studio read the",
            "# file's own in any case.",
            "",
        ]
    lines += [f'PARAMETER stop "{text}"' for text in speech.stops]
    lines += [f"PARAMETER {name} {value:g}" for name, value in speech.sampling.items()]
    if system is not None:
        lines += ["", f"SYSTEM {quote_system(system)}"]
    return "\n".join(lines).rstrip() + "\n"


def _line(text: str) -> str:
    """Return a message on one line that a comment can hold."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))[:300]


def quote_system(text: str) -> str:
    """Return a system prompt as a Modelfile quotes it.

    Raises:
        UsageError: it holds three quotes in a row, or characters that Ollama would drop.
    """
    if '"""' in text:
        raise UsageError(
            "--system holds three quotes in a row, which end it in a Modelfile",
            hint="write it with single quotes or two",
        )
    if not is_plain(text):
        raise UsageError(
            "--system holds control characters, which Ollama would drop",
            hint="leave them out; lines and tabs are kept",
        )
    return f'"""{text}"""'
