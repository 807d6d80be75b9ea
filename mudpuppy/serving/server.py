"""Start llama.cpp's server on a GGUF file, wait until it serves, and end it again."""

from __future__ import annotations

import errno
import importlib.util
import json
import select
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mudpuppy.errors import EngineError, ModelError, UsageError
from mudpuppy.serving import child
from mudpuppy.serving.reasons import explain_end, explain_log
from mudpuppy.serving.tail import Tail
from mudpuppy.tiny.names import is_tiny_name

START_S = 600.0
"""Time to load a model: 40 GB from a slow disk."""
END_S = 5.0
"""Time to end before the process is killed."""
CTX_SIZE = 4096
"""Tokens of a conversation; llama.cpp takes no more than the model was trained with."""
LOG_BYTES = 200_000
"""Bytes at the end of the log that are looked through for a reason."""
MAGIC = b"GGUF"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a file is served."""

    path: str
    """The GGUF file."""
    alias: str
    """What clients call the model."""
    host: str = "127.0.0.1"
    """Address that is listened on."""
    port: int = 0
    """Its port; 0 for a free one."""
    ctx_size: int = CTX_SIZE
    """Tokens of a conversation, with its answers; 0 for as many as the model was trained with."""
    threads: int | None = None
    """Threads; llama.cpp's choice by default."""
    chat_template: str | None = None
    """Jinja text in place of the file's own template."""
    api_key: str = ""
    """What clients must send; nothing by default."""


class Server:
    """A running server; `with` ends it.

    Args:
        settings: how a file is served.

    Raises:
        UsageError: xllamacpp is not installed, or the address cannot be listened on.
        ModelError: llama.cpp refuses the file.
        EngineError: it crashed, or did not come to serve in time.
    """

    def __init__(self, settings: Settings, *, start_s: float = START_S) -> None:
        self.settings = settings
        require_package()
        _require_free(settings.host, settings.port)
        self._process = subprocess.Popen(
            [sys.executable, "-P", child.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is ours to pass on
        )
        assert self._process.stderr is not None
        self._log = Tail(self._process.stderr, LOG_BYTES)
        try:
            self.url = self._wait_until_ready(time.monotonic() + start_s, start_s) + "/v1"
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The process that holds llama.cpp."""
        return self._process.pid

    def wait(self) -> None:
        """Wait until the server ends, which it does not do by itself.

        Raises:
            EngineError: it did.
        """
        code = self._process.wait()
        raise self._crashed(code, "ended while it served")

    def close(self) -> None:
        """End the server; it may have ended before."""
        stdin = self._process.stdin
        if stdin is not None and not stdin.closed:
            with suppress(BrokenPipeError):  # it is gone, and has not read its settings
                stdin.close()
        try:
            self._process.wait(END_S if self._is_ready else 0.1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close(END_S)

    _is_ready = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _wait_until_ready(self, ends: float, start_s: float) -> str:
        """Return the address, once the model is loaded."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(asdict(self.settings)).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise self._crashed(process.wait(), "ended before it served") from None
        if not select.select([process.stdout], [], [], max(0.0, ends - time.monotonic()))[0]:
            raise EngineError(
                f"{self.settings.path}: llama.cpp did not serve within {start_s:g} s",
                hint="is the disk slow, or the model larger than the memory?",
            )
        line = process.stdout.readline()
        if not line:
            raise self._crashed(process.wait(), "ended while it loaded the model")
        told: dict[str, Any] = json.loads(line)
        if "at" not in told:
            raise self._refused(str(told.get("refused")))
        self._is_ready = True
        return str(told["at"]).rstrip("/")

    def _refused(self, said: str) -> ModelError:
        with suppress(subprocess.TimeoutExpired):  # a thread of llama.cpp may still write the log
            self._process.wait(END_S)
        reason, hint = explain_log(self._log.text(END_S))
        path = self.settings.path
        return ModelError(
            f"{path}: llama.cpp refuses it: {reason or said}", hint=hint.replace("FILE", path)
        )

    def _crashed(self, code: int, when: str) -> EngineError:
        how, hint = explain_end(code)
        said, _ = explain_log(self._log.text(END_S))
        last = f"; its last words: {said}" if said else ""
        path = self.settings.path
        return EngineError(
            f"{path}: llama.cpp {when}: {how}{last}", hint=hint.replace("FILE", path)
        )


@contextmanager
def serving(
    path: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    ctx_size: int = CTX_SIZE,
    threads: int | None = None,
    alias: str | None = None,
) -> Iterator[str]:
    """Serve a GGUF file inside the block.

    Args:
        path: the file.
        host: address that is listened on.
        port: its port; 0 for a free one.
        ctx_size: tokens of a conversation.
        threads: llama.cpp's choice by default.
        alias: what clients call the model; by default the file's name without its ending.

    Yields:
        The address of the server, up to `/v1`.

    Raises:
        UsageError: xllamacpp is not installed, or the address cannot be listened on.
        ModelError: there is no such file, or llama.cpp refuses it.
        EngineError: llama.cpp crashed, or did not come to serve in time.
    """
    file = require_gguf(Path(path))
    settings = Settings(
        path=str(file),
        alias=alias or file.stem,
        host=host,
        port=port,
        ctx_size=ctx_size,
        threads=threads,
    )
    with Server(settings) as server:
        yield server.url


def require_package() -> None:
    """Refuse to go on without the wheel that brings llama.cpp.

    Raises:
        UsageError: it is not installed.
    """
    if importlib.util.find_spec("xllamacpp") is None:
        raise UsageError(
            "serving needs the package xllamacpp, which brings llama.cpp and is not installed",
            hint="pip install 'mudpuppy[serve]'",
        )


def require_gguf(path: Path) -> Path:
    """Return a GGUF file's absolute path.

    Raises:
        ModelError: there is no such file, or it is something else; the hint says how to make one.
    """
    if path.is_dir():
        raise ModelError(f"{path} is a folder, and llama.cpp serves GGUF files", hint=_how(path))
    try:
        with path.open("rb") as handle:
            begin = handle.read(len(MAGIC))
    except OSError as error:
        hint = "name the file that mud-puppy export gguf has written"
        if is_tiny_name(str(path)):
            hint = f"mud-puppy export gguf {path} tiny.gguf, then mud-puppy serve tiny.gguf"
        raise ModelError(f"{path} cannot be read: {error.strerror}", hint=hint) from error
    if begin != MAGIC:
        raise ModelError(
            f"{path} is no GGUF file: it begins with {begin!r}, not with {MAGIC!r}",
            hint="mud-puppy export gguf MODEL OUT.gguf makes one of a model's folder",
        )
    return path.resolve()


def _how(folder: Path) -> str:
    """Return the commands that make a GGUF file of a folder."""
    name = shlex.quote(str(folder))
    inside = sorted(folder.glob("*.gguf"))
    if inside:
        return f"name the file: mud-puppy serve {shlex.quote(str(inside[0]))}"
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        return f"mud-puppy merge BASE {name} MERGED, then mud-puppy export gguf MERGED OUT.gguf"
    made = shlex.quote(str(folder.with_name(f"{folder.name}.gguf")))
    return f"mud-puppy export gguf {name} {made}, then mud-puppy serve {made}"


def _require_free(host: str, port: int) -> None:
    """Refuse an address that cannot be listened on.

    llama.cpp would share a port with another server of the same person, and take every second call.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, number) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror as error:
        raise UsageError(f"--host {host} is no address: {error.strerror}") from error
    except (OSError, OverflowError) as error:
        why = error.errno if isinstance(error, OSError) else None
        reasons = {
            errno.EADDRINUSE: f"port {port} on {host} is taken by another program",
            errno.EADDRNOTAVAIL: f"{host} is no address of this machine",
            errno.EACCES: f"port {port} is not for everybody (those below 1024 are not)",
        }
        raise UsageError(
            reasons.get(why or 0, f"{host} port {port} cannot be listened on: {error}"),
            hint="choose another --port; --port 0 takes a free one",
        ) from error
