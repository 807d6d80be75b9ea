"""A model hub on this machine: its API, its redirects to a store, and its bad days."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Trick = Callable[["Handler", str], bool]
"""Answers a request in place of the server; False where it leaves it to the server."""


class Hub:
    """What a server holds and what it was asked."""

    def __init__(self) -> None:
        self.folders: dict[str, Path] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.sent_bytes = 0
        self.trick: Trick = lambda handler, path: False
        self.store = ""
        """Address of the server that large files are redirected to; empty for none."""
        self.token: str | None = None
        self.siblings: list[dict[str, Any]] | None = None
        self.knows_ranges = True


class Handler(BaseHTTPRequestHandler):
    """Answers as the hub does."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *words: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer one request."""
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, self.path, dict(self.headers)))
        try:
            if self.hub.trick(self, path):
                return
            self._answer(path)
        except (BrokenPipeError, ConnectionResetError):
            return  # the client has read enough

    do_HEAD = do_GET

    def _answer(self, path: str) -> None:
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self.say(401, b"", {"X-Error-Code": "GatedRepo"})
        elif path.startswith("/api/models/"):
            self._list(path.removeprefix("/api/models/"))
        elif "/resolve/" in path:
            self._resolve(path)
        elif path.startswith("/store/"):
            self.send_file(Path(parse_qs(urlsplit(self.path).query)["file"][0]))
        else:
            self.say(404, b"")

    def _list(self, rest: str) -> None:
        name, _, revision = rest.partition("/revision/")
        folder = self.hub.folders.get(name)
        if folder is None:
            return self.say(404, b"", {"X-Error-Code": "RepoNotFound"})
        if revision not in ("", "main", "v1", "refs/pr/1", COMMIT):
            return self.say(404, b"", {"X-Error-Code": "RevisionNotFound"})
        siblings = self.hub.siblings
        if siblings is None:
            siblings = [
                {"rfilename": str(file.relative_to(folder)), "size": file.stat().st_size}
                for file in sorted(folder.rglob("*"))
                if file.is_file()
            ]
        value = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "tags": []}
        return self.say(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _resolve(self, path: str) -> None:
        name, _, rest = path.lstrip("/").partition("/resolve/")
        folder, place = self.hub.folders[name], rest.partition("/")[2]
        file = folder / place
        if not file.is_file():
            return self.say(404, b"", {"X-Error-Code": "EntryNotFound"})
        if self.hub.store and file.suffix == ".safetensors":
            where = f"{self.hub.store}/store/x?file={file}"
            etag = hashlib.sha256(file.read_bytes()).hexdigest()
            headers = {"Location": where, "X-Linked-Size": str(file.stat().st_size)}
            return self.say(302, b"", {**headers, "X-Linked-Etag": etag, "X-Repo-Commit": COMMIT})
        return self.send_file(file)

    def send_file(self, file: Path) -> None:
        """Send a file, or the part that is asked for."""
        raw = file.read_bytes()
        wanted = self.headers.get("Range", "")
        headers = {"ETag": '"x"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if not wanted or not self.hub.knows_ranges:
            return self.say(200, raw, headers)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        if int(first) >= len(raw):
            return self.say(416, b"", {"Content-Range": f"bytes */{len(raw)}"})
        part = raw[int(first) : int(last or len(raw)) + 1]
        span = f"bytes {first}-{int(first) + len(part) - 1}/{len(raw)}"
        return self.say(206, part, {**headers, "Content-Range": span})

    def say(self, code: int, raw: bytes, headers: dict[str, str] | None = None) -> None:
        """Send an answer."""
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)
            self.hub.sent_bytes += len(raw)


@contextmanager
def serve(hub: Hub) -> Iterator[str]:
    """Serve a hub until the end of the block; yields its address."""
    made = type("Bound", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), made)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def busy(times: int, header: dict[str, str]) -> Trick:
    """Answers the first times that it has no time."""
    left = [times]

    def trick(handler: Handler, path: str) -> bool:
        if left[0] and path.startswith("/api/"):
            left[0] -= 1
            handler.say(429, b"", header)
            return True
        return False

    return trick


def trickled(handler: Handler, start: bytes) -> bool:
    """Send the beginning of an answer, and then a byte now and then."""
    handler.wfile.write(start)
    for _ in range(200):
        handler.wfile.write(b"a")
        time.sleep(0.05)
    return True
