"""Why llama.cpp did not serve a file, in our words: from what it logs, or how its process ended."""

from __future__ import annotations

import re
from collections.abc import Callable

from mudpuppy.errors import printable
from mudpuppy.exits import describe_exit

MAX_REASON = 300
"""Characters of llama.cpp's words that are repeated."""
_TAG = re.compile(r"^(?:[\d.]+ [A-Z] )?(?:\w+ {2}.{12}: )?(?:\w+: )*")
"""Time, level and function that llama.cpp puts before a line."""
_LOADING = re.compile(r"error loading model(?: \w+)?: (.+)")
_ERROR = re.compile(r"error|failed|couldn't|GGML_ASSERT|terminate called|what\(\)", re.IGNORECASE)
_EMPTY = ("failed to load model", "exiting due to", "cleaning up", "common_init_from_params")
"""Lines that only say that there was an error."""

_Say = Callable[[re.Match[str]], tuple[str, str]]
_KNOWN: tuple[tuple[str, _Say], ...] = (
    (
        r"unknown model architecture: '([^']*)'",
        lambda m: (
            f"it knows no architecture '{m[1]}'",
            "pip install -U xllamacpp brings a newer llama.cpp",
        ),
    ),
    (
        r"unknown pre-tokenizer type: '([^']*)'",
        lambda m: (
            f"it knows no pre-tokenizer '{m[1]}', so it would cut texts in other places",
            "export the model again with mud-puppy export gguf",
        ),
    ),
    (
        r"invalid magic characters?:? ?(.*)",
        lambda m: ("it is no GGUF file: it begins with other characters", ""),
    ),
    (
        r"(?:data is not within the file bounds|corrupted or incomplete|unexpectedly reached end)",
        lambda m: (
            "the file ends before its tensors do: it was copied or written in part",
            "copy it again, and compare the sizes",
        ),
    ),
    (
        r"missing tensor '([^']*)'|tensor '([^']*)' not found",
        lambda m: (f"the tensor {m[1] or m[2]} is missing", "see mudpuppy-doctor FILE"),
    ),
    (
        r"tensor '([^']*)' has wrong shape; expected (.*?), got (.*)",
        lambda m: (
            f"the tensor {m[1]} has the shape {m[3].strip()}, and the settings ask for {m[2]}",
            "see mudpuppy-doctor FILE",
        ),
    ),
    (
        r"key not found in model: (\S+)",
        lambda m: (f"the setting {m[1]} is missing", "see mudpuppy-doctor FILE"),
    ),
    (
        r"(?:cannot find tokenizer|tokenizer.*not found)",
        lambda m: ("there is no tokenizer in it", "see mudpuppy-doctor FILE"),
    ),
    (
        r"failed to initialize chat template|chat template parsing error",
        lambda m: (
            "it cannot use the chat template",
            "give another one: --chat-template FILE.jinja",
        ),
    ),
    (
        r"couldn't bind HTTP server socket, hostname: (\S+), port: (\d+)",
        lambda m: (f"{m[1]} port {m[2]} cannot be listened on", "choose another --port"),
    ),
    (
        r"(?:unable to allocate|failed to allocate|alloc_buffer|out of memory)",
        lambda m: ("there is not enough memory for it", "a smaller --ctx-size, or another --quant"),
    ),
)
"""What llama.cpp says, and what that means: reason and hint."""


def explain_log(log: str) -> tuple[str, str]:
    """Return the reason that a log gives, and what to do about it; empty texts for none."""
    lines = [_clean(line) for line in log.splitlines()]
    telling = [line for line in lines if _ERROR.search(line)]
    for pattern, say in _KNOWN:
        for line in telling:
            if match := re.search(pattern, line):
                return say(match)
    for line in reversed(telling):
        if match := _LOADING.search(line):
            return match[1][:MAX_REASON], ""
    last = next((one for one in telling if not any(word in one for word in _EMPTY)), "")
    return last[:MAX_REASON], ""


def explain_end(code: int) -> tuple[str, str]:
    """Return how a process ended that should not have, and what to do about it."""
    if code >= 0:
        return f"it ended with the {describe_exit(code)}", ""
    name = describe_exit(code)
    hints = {
        "SIGILL": "this build of xllamacpp needs instructions that the CPU has not; build it from "
        "source, or use another machine",
        "SIGKILL": "the system killed it, mostly for memory: a smaller --ctx-size or another "
        "--quant needs less",
        "SIGSEGV": "see mudpuppy-doctor FILE; a damaged file can do that",
        "SIGABRT": "see mudpuppy-doctor FILE; a damaged file can do that",
    }
    return f"its process was ended by {name}", hints.get(name, "")


def _clean(line: str) -> str:
    return printable(_TAG.sub("", line.strip()).strip())
