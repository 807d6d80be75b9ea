"""The command `mud-puppy serve`: a GGUF file behind llama.cpp's OpenAI-compatible server."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from pathlib import Path
from urllib.parse import urlsplit

from mudpuppy.asking.addresses import KEY_VARIABLE, is_local
from mudpuppy.errors import UsageError
from mudpuppy.interruption import describe
from mudpuppy.serving.server import CTX_SIZE, Server, Settings, require_gguf
from mudpuppy.telling import say

DESCRIPTION = """\
Serve a GGUF file with llama.cpp's OpenAI-compatible server, on this machine alone unless --host
says otherwise. It prints the address when the model is loaded; Ctrl-C ends it.

examples:
  mud-puppy serve model.gguf
  mud-puppy serve model.gguf --port 8080 --ctx-size 8192 --alias my-model
  mud-puppy serve model.gguf --host 0.0.0.0 --require-key
"""
PORT = 1234
"""LM Studio's port, which clients written for it ask by default."""
MAX_TEMPLATE_BYTES = 1_000_000
EVERYWHERE = ("0.0.0.0", "::")
"""Hosts that listen on every network the machine is in."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the arguments of the command."""
    parser.add_argument("file", type=Path, help="GGUF file, as mud-puppy export gguf writes it")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine alone)"
    )
    parser.add_argument("--port", type=int, default=PORT, help=f"port ({PORT}); 0 for a free one")
    parser.add_argument(
        "--ctx-size",
        type=int,
        default=CTX_SIZE,
        metavar="TOKENS",
        help=f"tokens of a conversation with its answers ({CTX_SIZE}); 0 for all the model has",
    )
    parser.add_argument("--threads", type=int, help="threads; llama.cpp's choice by default")
    parser.add_argument("--alias", help="what clients call the model; by default the file's name")
    parser.add_argument(
        "--chat-template",
        type=Path,
        metavar="FILE",
        help="Jinja file in place of the template in the GGUF file",
    )
    parser.add_argument(
        "--require-key",
        action="store_true",
        help=f"answer those alone who send the key in {KEY_VARIABLE}",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the parsed command and return its exit code.

    Raises:
        UsageError: an argument cannot be used, or the port is taken.
        ModelError: the file is none that llama.cpp serves.
        EngineError: llama.cpp crashed.
    """
    settings = _settings(arguments)
    if arguments.host in EVERYWHERE or not is_local(f"http://{_bracketed(arguments.host)}"):
        unless = "" if settings.api_key else ", who needs no key (--require-key asks for one)"
        say(f"warning: {arguments.host} can be reached by everybody on its networks{unless}")
    say(f"loading {settings.path}")
    with Server(settings) as server:
        try:
            for line in _greet(server):
                say(line)
            server.wait()
        except KeyboardInterrupt as error:
            word, _ = describe(error)
            say(f"{word}; {server.url} is no longer served")
    return 0


def _settings(arguments: argparse.Namespace) -> Settings:
    """Return how the file is to be served.

    Raises:
        UsageError: a number is out of range, a file cannot be read, or there is no key.
        ModelError: the file is no GGUF file.
    """
    for flag, value, least, most in (
        ("--port", arguments.port, 0, 65535),
        ("--ctx-size", arguments.ctx_size, 0, 1 << 24),
        ("--threads", arguments.threads, 1, 4096),
    ):
        if value is not None and not least <= value <= most:
            raise UsageError(
                f"{flag} {value} is not between {least} and {most}",
                hint=f"choose one, or leave {flag} out",
            )
    key = os.environ.get(KEY_VARIABLE, "") if arguments.require_key else ""
    if arguments.require_key and not key:
        raise UsageError(f"--require-key: {KEY_VARIABLE} is empty", hint=f"export {KEY_VARIABLE}=")
    file = require_gguf(arguments.file)
    return Settings(
        path=str(file),
        alias=arguments.alias or file.stem,
        host=arguments.host,
        port=arguments.port,
        ctx_size=arguments.ctx_size,
        threads=arguments.threads,
        chat_template=_read_template(arguments.chat_template),
        api_key=key,
    )


def _read_template(path: Path | None) -> str | None:
    """Return a chat template; whether it is one, llama.cpp says.

    Raises:
        UsageError: it cannot be read.
    """
    if path is None:
        return None
    try:
        if path.stat().st_size > MAX_TEMPLATE_BYTES:
            raise UsageError(
                f"--chat-template {path} is longer than any template",
                hint=f"a Jinja file has at most {MAX_TEMPLATE_BYTES:,} bytes: is it the right one?",
            )
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--chat-template {path} cannot be read: {error}",
            hint="name a Jinja file in UTF-8, or leave it out for the one in the GGUF file",
        ) from error


def _greet(server: Server) -> list[str]:
    """Return what is printed once the model can be asked."""
    url, alias = reachable(server.url), server.settings.alias
    messages = [{"role": "user", "content": "Who lives in the pond?"}]
    body = {"model": alias, "messages": messages, "temperature": 0}
    key = f" -H 'Authorization: Bearer '\"${KEY_VARIABLE}\"" if server.settings.api_key else ""
    typed = f"-H 'Content-Type: application/json'{key} -d {shlex.quote(json.dumps(body))}"
    return [
        f"serving {server.settings.path} as '{alias}' at {url}",
        f"  ask      curl {url}/chat/completions {typed}",
        f"  check    mudpuppy-doctor --endpoint {url} --quiz FILE",
        f"  evaluate mud-puppy temporal evaluate --endpoint {url} --test_file dev_subset.jsonl",
        "  end      Ctrl-C",
    ]


def reachable(url: str) -> str:
    """Return the address by which this machine reaches a server that listens everywhere."""
    parts = urlsplit(url)
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(parts.hostname or "")
    return url if host is None else f"{parts.scheme}://{host}:{parts.port}{parts.path}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
