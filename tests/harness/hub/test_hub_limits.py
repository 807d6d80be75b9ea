"""Whatever a hub sends, the doctor reads a bounded part of it in a bounded time."""

from __future__ import annotations

import email
import io
import time
import urllib.request
import urllib.response

import pytest

from harness.doctor import diagnose
from harness.hub.client import HubClient, HubError
from harness.hub.mirror import open_mirror
from harness.hub.names import parse_hub_name
from tests.harness.hub.hub_server import Handler, busy, trickled


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 200 OK\r\nX-Slow: ",
        b"HTTP/1.1 302 Found\r\nLocation: /other\r\nX-Slow: ",
        b"HTTP/1.1 503 Busy\r\nRetry-After: 0",
    ],
    ids=["answer", "redirect", "refusal"],
)
def test_a_head_that_never_ends_is_given_up_in_time(hub, start):
    hub.trick = lambda handler, path: trickled(handler, start)
    client = HubClient(budget_s=0.5, socket_s=0.3)
    begun = time.monotonic()
    with pytest.raises(HubError, match="took more than"):
        client.get_json("/api/models/org/model/revision/main", 10_000, "it")
    assert time.monotonic() - begun < 10


def test_the_body_of_a_redirect_is_not_read(hub):
    def trick(handler: Handler, path: str) -> bool:
        if path == "/other":
            handler.say(200, b"{}")
            return True
        head = b"HTTP/1.1 302 Found\r\nLocation: /other\r\nContent-Length: 999999999\r\n\r\n"
        return trickled(handler, head)

    hub.trick = trick
    assert HubClient(budget_s=3).get_json("/first", 10_000, "it") == {}


@pytest.mark.parametrize("digits", [400, 5000])
def test_a_pause_of_many_digits_is_too_long_and_no_crash(hub, digits):
    hub.trick = busy(99, {"Retry-After": "9" * digits})
    with pytest.raises(HubError, match="answers 429"):
        diagnose("hf://org/model")
    assert len(hub.asked) == 1


def test_a_listing_without_a_name_is_not_taken_for_an_empty_repository(hub):
    hub.siblings = [[]] * 100
    with pytest.raises(HubError, match="lists 100 things"):
        diagnose("hf://org/model")


def test_a_hub_over_https_may_not_lead_to_http(monkeypatch):
    asked: list[str] = []

    def redirect(handler: object, request: urllib.request.Request) -> urllib.response.addinfourl:
        asked.append(request.full_url)
        headers = email.message_from_string("Location: http://plain.example/file\n\n")
        answer = urllib.response.addinfourl(io.BytesIO(), headers, request.full_url, 302)
        answer.msg = "Found"
        return answer

    monkeypatch.setattr(urllib.request.HTTPSHandler, "https_open", redirect)
    monkeypatch.setattr(urllib.request.HTTPHandler, "http_open", redirect)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example")
    monkeypatch.setenv("HF_TOKEN", "secret-token")
    with pytest.raises(HubError, match=r"leads to http://plain\.example, which is not safe"):
        HubClient().get_json("/first", 1000, "it")
    assert asked == ["https://hub.example/first"]


@pytest.mark.parametrize("code", [200, 206])
def test_a_part_that_comes_packed_is_refused(hub, code):
    headers = {"Content-Encoding": "gzip", "Content-Range": "bytes 0-9/10"}
    hub.trick = lambda handler, path: (handler.say(code, b"x" * 10, headers), True)[1]
    with pytest.raises(HubError, match="compressed"):
        HubClient().read("/file", 0, 10, "it")


def laid_out(word: str = "hf://org/model") -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the sizes of what a mirror holds, and what it left out."""
    with open_mirror(parse_hub_name(word), lambda text: None) as mirror:
        files = {path.name: path.stat().st_size for path in mirror.path.iterdir()}
        return files, mirror.left_out


def test_no_more_files_are_looked_at_than_the_limit(hub, monkeypatch):
    monkeypatch.setattr("harness.hub.mirror.FILE_LIMIT", 3)
    for number in range(5):
        (hub.folders["org/model"] / f"0{number}.json").write_text("{}")
    files, left_out = laid_out()
    held = len(list(hub.folders["org/model"].iterdir()))
    assert sorted(files) == ["00.json", "01.json", "02.json"]
    assert left_out == (f"{held - 3} files beyond the 3th",)


def test_no_more_bytes_are_fetched_than_the_limit(hub, monkeypatch):
    monkeypatch.setattr("harness.hub.mirror.TOTAL_LIMIT_BYTES", 50_000)
    for number in range(5):
        (hub.folders["org/model"] / f"0{number}.json").write_text(" " * 20_000)
    with pytest.raises(HubError, match="more than 0 MB of headers and settings"):
        laid_out()
    assert hub.sent_bytes < 70_000


def test_the_size_of_a_large_file_is_the_one_that_is_kept_elsewhere(hub):
    weights = hub.folders["org/model"] / "model.safetensors"
    size = weights.stat().st_size
    hub.siblings = [
        # What lies in the repository itself is a pointer of some 130 bytes.
        {"rfilename": "model.safetensors", "size": 134, "lfs": {"size": size}},
    ]
    whole = weights.read_bytes()

    def trick(handler: Handler, path: str) -> bool:
        if not path.endswith(".safetensors"):
            return False
        end = 8 + int.from_bytes(whole[:8], "little")
        handler.say(206, whole[:end], {"Content-Range": f"bytes 0-{end - 1}/*"})
        return True

    hub.trick = trick
    assert laid_out()[0] == {"model.safetensors": size}
