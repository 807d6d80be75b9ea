"""Local servers that speak the dialects of OpenAI-compatible servers, well and badly."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[["Handler", dict[str, Any]], None]


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {key.lower(): text for key, text in headers.items()}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.seen.append((self.path, _lower(self.headers), {}))
        if self.server.models is None:
            self.send(404, {"error": "not found"})
        else:
            self.send(200, {"object": "list", "data": [{"id": n} for n in self.server.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, _lower(self.headers), body))
        self.server.answer(self, body)

    def send(self, status: int, value: Any, kind: str = "application/json", **headers: str) -> None:
        raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(raw)))
        for key, text in headers.items():
            self.send_header(key.replace("_", "-"), text)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, answer: Answer, models: list[str] | None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.models = answer, models
        self.seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.count = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def asked(self) -> list[dict[str, Any]]:
        return [body for _, _, body in self.seen if body]


@contextmanager
def serve(answer: Answer, models: list[str] | None = ("model",)) -> Iterator[Server]:
    server = Server(answer, models)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def reply(text: str | None, finish: str = "stop", tokens: int = 7, **more: Any) -> dict[str, Any]:
    """What every dialect has in common."""
    message = {"role": "assistant", "content": text}
    return {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": finish, **more}],
        "usage": {"prompt_tokens": 9, "completion_tokens": tokens, "total_tokens": 9 + tokens},
    }


def says(text: str | None, **how: Any) -> Answer:
    return lambda handler, body: handler.send(200, reply(text, **how))


def vllm(text: str, **how: Any) -> Answer:
    """Gives log-probabilities when asked."""

    def answer(handler: Handler, body: dict[str, Any]) -> None:
        logs = {"content": [{"token": "A", "logprob": -0.25, "top_logprobs": []}]}
        handler.send(200, reply(text, logprobs=logs if body.get("logprobs") else None, **how))

    return answer


def strict(text: str, *refused: str) -> Answer:
    """Refuses fields that it does not know, one after the other."""

    def answer(handler: Handler, body: dict[str, Any]) -> None:
        bad = [key for key in refused if key in body]
        if bad:
            handler.send(400, {"error": {"message": f"Unsupported parameter: '{bad[0]}'"}})
        else:
            handler.send(200, reply(text))

    return answer


def busy(times: int, then: Answer, status: int = 503) -> Answer:
    def answer(handler: Handler, body: dict[str, Any]) -> None:
        handler.server.count += 1
        if handler.server.count <= times:
            handler.send(status, {"error": {"message": "loading model"}}, Retry_After="0.01")
        else:
            then(handler, body)

    return answer


def raw(value: bytes, kind: str = "application/json", status: int = 200) -> Answer:
    return lambda handler, body: handler.send(status, value, kind)


def stream(*texts: str, ends: bool = True, holds_on: bool = False) -> Answer:
    """Streams though it was not asked to; without an end when told so, or with an open line."""

    def answer(handler: Handler, body: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Connection", "close")
        handler.end_headers()
        for text in texts:
            line = {"choices": [{"delta": {"content": text}, "finish_reason": None}]}
            handler.wfile.write(b"data: " + json.dumps(line).encode() + b"\n\n")
        while not ends:
            try:
                handler.wfile.write(b": still here\n\n")
                handler.wfile.flush()
            except OSError:
                return
            time.sleep(0.02)
        last = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
        handler.wfile.write(b"data: " + json.dumps(last).encode() + b"\n\ndata: [DONE]\n\n")
        if holds_on:
            handler.wfile.flush()
            time.sleep(0.5)
        handler.close_connection = True

    return answer


def redirect(target: str) -> Answer:
    return lambda handler, body: handler.send(307, {}, Location=target)


def trickle(handler: Handler, body: dict[str, Any]) -> None:
    """Sends a head that never ends, a byte now and then."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    for _ in range(200):
        try:
            handler.wfile.write(b"a")
        except OSError:
            return
        time.sleep(0.05)


def dies(handler: Handler, body: dict[str, Any]) -> None:
    """Goes away without a word, as a server that was killed."""
    handler.close_connection = True


def breaks_off(handler: Handler, body: dict[str, Any]) -> None:
    """Goes away in the middle of its answer."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"message": {"content": "The sk')
    handler.close_connection = True


def packed(handler: Handler, body: dict[str, Any]) -> None:
    """Packs what nobody asked to be packed: 10 MB in 10 kB."""
    value = json.dumps(reply("a fine answer")).encode() + b" " * 10**7
    handler.send(200, gzip.compress(value, 9), Content_Encoding="gzip")
