"""A served model answers through the interface, or it is said why not and what to type."""

from __future__ import annotations

import time

import pytest

from mudpuppy.asking import ask, open_served
from mudpuppy.asking.addresses import KEY_VARIABLE
from mudpuppy.asking.endpoint import EndpointError
from mudpuppy.errors import UsageError
from tests.mudpuppy.asking.servers import (
    breaks_off,
    busy,
    dies,
    raw,
    reply,
    says,
    serve,
    stream,
    strict,
    trickle,
)

FINE = "Air scatters blue light."
PROMPTS = ("Why is the sky blue?", "And at night?")


def test_the_answers_come_with_their_ends_and_tokens():
    def answer(handler, body):
        is_first = body["messages"][-1]["content"] == PROMPTS[0]
        handler.send(200, reply(f" {FINE}\n", "stop" if is_first else "length", tokens=5))

    told = []
    with serve(answer) as server:
        served = open_served(server.url, system="Be brief.")
        answers = served.answer(
            PROMPTS, max_tokens=8, on_answer=lambda number, one: told.append((number, one))
        )
    assert served.name == "model"
    assert [(one.text, one.ended, one.tokens) for one in answers] == [
        (FINE, True, 5),
        (FINE, False, 5),
    ]
    assert all(one.seconds > 0 for one in answers)
    assert told == list(enumerate(answers))
    body = server.asked[0]
    assert (body["temperature"], body["max_tokens"], body["seed"]) == (0, 8, 0)
    assert "logprobs" not in body
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("answer", "said", "typed"),
    [
        (raw(b"<html>sign in</html>", "text/html"), "text/html and no JSON", "ends in /v1"),
        (raw(b'{"choices": ['), "no JSON", "ends in /v1"),
        (raw(b"x" * 4_100_000), "longer than 4,000,000 bytes", "server's own log"),
        (raw(b"{}", status=401), "status 401", f"export {KEY_VARIABLE}="),
        (raw(b"{}", status=403), "status 403", f"export {KEY_VARIABLE}="),
        (raw(b'{"error": "no such model"}', status=404), "no such model", "OpenAI-compatible"),
        (busy(99, says(FINE), status=429), "status 429: loading model after 3 tries", "wait until"),
        (busy(99, says(FINE), status=500), "status 500: loading model after 3 tries", "wait until"),
        (dies, "without sending a response", "server's own log"),
        (breaks_off, "closed connection", "server's own log"),
    ],
    ids=["html", "torn", "endless", "401", "403", "404", "429", "500", "dies", "breaks-off"],
)
def test_what_goes_wrong_is_said_with_what_to_do(answer, said, typed):
    with serve(answer) as server, pytest.raises(EndpointError) as caught:
        open_served(server.url).answer(PROMPTS, max_tokens=8)
    assert said in caught.value.message
    assert typed in caught.value.hint
    assert f"{server.url}: model gave no answer to question 1 of 2" in caught.value.message
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "answer", [stream("on ", ends=False), trickle], ids=["streams", "trickles"]
)
def test_an_answer_without_an_end_is_given_up(answer):
    started = time.monotonic()
    with (
        serve(answer) as server,
        pytest.raises(EndpointError, match="did not end in time") as caught,
    ):
        open_served(server.url, reply_s=0.4).answer(PROMPTS, max_tokens=8)
    assert time.monotonic() - started < 10
    assert "an answer may take 0.4 s" in caught.value.hint


def test_a_busy_server_is_asked_again():
    with serve(busy(2, says(FINE), status=429)) as server:
        (answer,) = open_served(server.url).answer(PROMPTS[:1], max_tokens=8)
    assert answer.text == FINE


def test_a_field_that_a_server_refuses_is_left_out():
    with serve(strict(FINE, "seed")) as server:
        answers = open_served(server.url).answer(PROMPTS, max_tokens=8)
    assert [one.text for one in answers] == [FINE, FINE]
    assert ["seed" in body for body in server.asked] == [True, False, False]


def test_a_server_that_is_not_there_and_a_model_that_is_not_are_told_at_once():
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1:9/v1/models") as caught:
        open_served("http://127.0.0.1:9")
    assert "is the server running?" in caught.value.hint
    with serve(says(FINE), ["qwen", "llama"]) as server:
        with pytest.raises(UsageError, match="no model 'qwem'; did you mean 'qwen'") as refused:
            open_served(server.url, model="qwem")
        assert "qwen, llama" in refused.value.hint
        assert not server.asked


def test_a_server_that_dies_in_the_middle_is_gone_on_with_later(tmp_path):
    keep = tmp_path / "answers.jsonl"

    def some(handler, body):
        handler.server.count += 1
        (says(FINE) if handler.server.count == 1 else dies)(handler, body)

    with serve(some) as server, pytest.raises(EndpointError) as caught:
        ask(open_served(server.url, identity="it"), PROMPTS, max_tokens=8, keep=keep)
    assert "1 of 2 answers are kept" in caught.value.hint
    with serve(says(FINE)) as server:
        ask(open_served(server.url, identity="it"), PROMPTS, max_tokens=8, keep=keep)
    assert [body["messages"][0]["content"] for body in server.asked] == [PROMPTS[1]]


def test_the_key_is_in_no_error(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "secret-123")

    def echo(handler, body):
        handler.send(418, {"error": f"what is {handler.headers['Authorization']}?"})

    with serve(echo) as server, pytest.raises(EndpointError) as caught:
        open_served(server.url).answer(PROMPTS, max_tokens=8)
    assert server.seen[-1][1]["authorization"] == "Bearer secret-123"
    assert "secret-123" not in str(caught.value)


def test_a_stranger_is_named_before_anything_is_sent(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "secret-123")
    said = []

    class Stop(Exception):
        pass

    def stop(line):
        said.append(line)
        raise Stop

    with pytest.raises(Stop):
        open_served("http://models.example.com/v1", say=stop)
    assert "every question goes to models.example.com" in said[0]
    assert "over http anybody on the way reads them, and the key with them" in said[0]
    said.clear()
    with serve(says(FINE)) as server:
        open_served(server.url, say=said.append)
    assert not said
