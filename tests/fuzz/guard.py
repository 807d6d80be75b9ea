"""What the doctor may do while it looks at a hostile checkpoint: read, and nothing else."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = frozenset(
    (
        *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink"),
        *("os.truncate", "os.chmod", "os.chown"),
        *("shutil.rmtree", "shutil.copyfile", "shutil.move"),
    )
)
ACTIONS = frozenset(
    (
        *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn"),
        *("os.fork", "os.forkpty", "socket.connect", "socket.bind", "socket.getaddrinfo"),
        *("pickle.find_class", "ctypes.dlopen", "webbrowser.open", "urllib.Request"),
    )
)


class Guard:
    """Listens to the interpreter's audit events between `start` and `stop`."""

    def __init__(self, allowed_writes: tuple[Path, ...], allowed_actions: frozenset[str]) -> None:
        """Install the hook; it cannot be taken out again."""
        self.seen: list[str] = []
        self._allowed = tuple(str(path) for path in allowed_writes)
        self._actions = ACTIONS - allowed_actions
        self._is_on = False
        sys.addaudithook(self._hear)

    def start(self) -> None:
        """Begin to listen."""
        self.seen.clear()
        self._is_on = True

    def stop(self) -> list[str]:
        """Return what was done that should not have been."""
        self._is_on = False
        return list(self.seen)

    def _hear(self, event: str, given: tuple[Any, ...]) -> None:
        if not self._is_on:
            return
        if event == "open":
            path, mode, flags = given
            writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (flags or 0) & WRITES
            if writes and not self._is_allowed(path):
                self.seen.append(f"opens {path!r} to write")
        elif event in CHANGES and not self._is_allowed(given[0]):
            self.seen.append(f"{event} {given[:2]!r}"[:300])
        elif event in self._actions:
            self.seen.append(f"{event} {given!r}"[:300])

    def _is_allowed(self, path: Any) -> bool:
        text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        return text in (os.devnull,) or text.startswith(self._allowed)
