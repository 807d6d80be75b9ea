"""The child process that holds llama.cpp: reads its settings, serves, ends when its parent does.

Run as a file, without this package on its path. A line of JSON comes on standard input; one goes
out as soon as it serves, or is refused. Whatever native code prints goes to standard error. The end
of standard input, which comes also when the parent is killed, is the end of the server.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, TextIO

SLOTS = 1
"""Conversations at once: with one, an answer does not depend on who else asks."""


def main() -> int:
    """Serve until standard input ends, and return the exit code."""
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    settings = json.loads(sys.stdin.readline())
    import xllamacpp

    try:
        server = xllamacpp.Server(_parameters(xllamacpp.CommonParams(), settings))
    except Exception as error:  # noqa: BLE001 - whatever the binding raises is told to the parent
        _tell(told, {"refused": f"{type(error).__name__}: {error}"})
        return 1
    _tell(told, {"at": server.listening_address})
    sys.stdin.read()
    told.close()
    os._exit(0)  # there is nothing to save, and a request in work would be waited for


def _parameters(given: Any, settings: dict[str, Any]) -> Any:
    given.model.path = settings["path"]
    given.model_alias = {settings["alias"]}
    given.hostnames = [settings["host"]]
    given.port = settings["port"]
    given.n_ctx = settings["ctx_size"]
    given.n_parallel = SLOTS
    given.warmup = False
    given.use_jinja = True
    given.offline = True
    given.cors_origins = ""  # pages of a browser are not to ask it behind their reader's back
    if settings["threads"] is not None:
        given.cpuparams.n_threads = given.cpuparams_batch.n_threads = settings["threads"]
    if settings["chat_template"] is not None:
        given.chat_template = settings["chat_template"]
    if settings["api_key"]:
        given.api_keys = [settings["api_key"]]
    return given


def _tell(told: TextIO, value: dict[str, Any]) -> None:
    told.write(json.dumps(value) + "\n")
    told.flush()


if __name__ == "__main__":
    sys.exit(main())
