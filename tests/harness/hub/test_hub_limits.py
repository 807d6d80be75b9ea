"""Whatever a hub sends, the doctor reads a bounded part of it in a bounded time."""

from __future__ import annotations

import time

import pytest

from harness.doctor import diagnose
from harness.hub.client import HubClient, HubError
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
    assert time.monotonic() - begun < 3


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
