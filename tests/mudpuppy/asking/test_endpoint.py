"""An OpenAI-compatible server is asked whatever it does: slow, broken, hostile, or not there."""

from __future__ import annotations

import time

import pytest

from mudpuppy.asking import wire
from mudpuppy.asking.addresses import KEY_VARIABLE, clean_url, is_near
from mudpuppy.asking.endpoint import Endpoint, EndpointError
from mudpuppy.errors import UsageError
from tests.mudpuppy.asking.servers import (
    busy,
    dies,
    packed,
    raw,
    redirect,
    says,
    serve,
    stream,
    trickle,
    vllm,
)

FINE = "The sky is blue because air scatters blue light more than red light."
DEEP = b"[" * 200_000


def test_questions_are_put_as_the_interface_wants_them():
    with serve(vllm(FINE)) as server:
        reply = Endpoint(server.url).chat("model", "Hello?", 5)
    (body,) = server.asked
    assert body["messages"] == [{"role": "user", "content": "Hello?"}]
    assert (body["temperature"], body["max_tokens"], body["stream"]) == (0, 5, False)
    assert (reply.text, reply.ended, reply.tokens, reply.first_logprob) == (FINE, True, 7, -0.25)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (raw(b"<html>hello</html>", "text/html"), "no JSON"),
        (raw(b'{"choices": ['), "no JSON"),
        (raw(DEEP), "no JSON"),
        (raw(b"[1, 2]"), "no JSON object"),
        (raw(b'{"choices": []}'), "no message"),
        (raw(b'{"choices": [{"message": "text"}]}'), "no message"),
        (raw(b'{"error": {"message": "out of memory"}}'), "out of memory"),
        (raw(b"x" * (wire.MAX_BYTES + 10)), "longer than"),
        (raw(b"", status=204), "status 204"),
        (redirect("http://127.0.0.1:9/v1/chat/completions"), "status 307"),
        (busy(99, says(FINE)), "status 503: loading model after 3 tries"),
        (raw(b"{}", status=401), "MUDPUPPY_ENDPOINT_KEY"),
        (dies, "without sending a response"),
        (packed, "no JSON"),
    ],
)
def test_a_hostile_answer_is_a_problem_in_one_line(answer, said):
    with serve(answer) as server:
        reply = Endpoint(server.url).chat("model", "Hello?", 5)
    assert said in reply.problem
    assert len(reply.problem) < 400
    assert "\n" not in reply.problem


def test_a_stream_without_an_end_is_given_up():
    with serve(stream("on and on ", ends=False)) as server:
        started = time.monotonic()
        reply = Endpoint(server.url, reply_s=0.5).chat("model", "Hello?", 5)
    assert reply.problem == "the answer did not end in time"
    assert time.monotonic() - started < 10


def test_a_server_that_says_nothing_is_given_up():
    def sleep(handler, body):
        time.sleep(2)

    with serve(sleep) as server:
        reply = Endpoint(server.url, reply_s=0.3).chat("model", "Hello?", 5)
    assert "timed out" in reply.problem


def test_a_head_that_never_ends_is_given_up():
    with serve(trickle) as server:
        started = time.monotonic()
        reply = Endpoint(server.url, reply_s=0.3).chat("model", "Hello?", 5)
    assert reply.problem == "the answer did not end in time"
    assert time.monotonic() - started < 10


def test_the_key_is_sent_and_never_repeated(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "secret-123")

    def echo(handler, body):
        said = {"error": {"message": f"bad key {handler.headers['Authorization']}"}}
        handler.send(418, said)

    with serve(echo) as server:
        reply = Endpoint(server.url).chat("model", "Hello?", 5)
    assert server.seen[-1][1]["authorization"] == "Bearer secret-123"
    assert "secret-123" not in reply.problem
    assert "***" in reply.problem


def test_the_model_is_chosen_or_asked_for():
    with serve(says(FINE), ["text-embedding-nomic", "qwen"]) as server:
        assert Endpoint(server.url).choose_model(None) == "qwen"
        with pytest.raises(UsageError, match="no model 'qwem'"):
            Endpoint(server.url).choose_model("qwem")
    with serve(says(FINE), ["a", "b"]) as server, pytest.raises(UsageError, match="lists 2 models"):
        Endpoint(server.url).choose_model(None)
    with serve(says(FINE), ["llama3:latest"]) as server:
        assert Endpoint(server.url).choose_model("llama3") == "llama3"
    with serve(says(FINE), None) as server:
        assert Endpoint(server.url).choose_model("any") == "any"
        with pytest.raises(EndpointError, match="status 404"):
            Endpoint(server.url).choose_model(None)


def test_a_server_that_is_not_there_is_named():
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1:9/v1/models"):
        Endpoint("http://127.0.0.1:9").choose_model("any")


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://127.0.0.1:1234", "http://127.0.0.1:1234/v1"),
        ("http://localhost:8000/v1/", "http://localhost:8000/v1"),
        ("https://host/api/v1/chat/completions", "https://host/api/v1"),
        ("http://[::1]:8080/v1", "http://[::1]:8080/v1"),
    ],
)
def test_an_address_is_taken_as_people_write_it(given, url):
    assert clean_url(given) == url


@pytest.mark.parametrize(
    "given",
    ["", "localhost:1234", "ftp://host", "http://", "http://a:b@host", "http://h:x", "file:///"],
)
def test_what_is_no_address_is_refused(given):
    with pytest.raises(UsageError, match="--endpoint"):
        clean_url(given)


def test_what_the_environment_says_of_an_account_elsewhere_is_sent_nowhere(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "secret-123")
    with serve(says(FINE)) as server:
        endpoint = Endpoint(server.url)
        endpoint.choose_model(None)
        assert endpoint.chat("model", "Hello?", 5).text == FINE
    for _, headers, _ in server.seen:
        assert "authorization" not in headers
        assert not [value for value in headers.values() if "secret" in value]


def test_a_stream_ends_with_its_last_event_and_not_with_the_line():
    with serve(stream("on ", "and on", holds_on=True)) as server:
        started = time.monotonic()
        reply = Endpoint(server.url).chat("model", "Hello?", 5)
    assert (reply.text, reply.ended) == ("on and on", True)
    assert time.monotonic() - started < 5


def test_a_system_prompt_comes_first():
    with serve(says(FINE)) as server:
        Endpoint(server.url).chat("model", "Hello?", 5, system="Be brief.")
    (body,) = server.asked
    assert [one["role"] for one in body["messages"]] == ["system", "user"]


def test_messages_name_the_flags_that_were_typed():
    flags = ("--lmstudio_url", "--lmstudio_model")
    with pytest.raises(UsageError, match="--lmstudio_url"):
        Endpoint("nonsense", flags=flags)
    with serve(says(FINE), ["a", "b"]) as server, pytest.raises(UsageError) as caught:
        Endpoint(server.url, flags=flags).choose_model(None)
    assert "--lmstudio_model NAME" in caught.value.hint


@pytest.mark.parametrize(
    ("url", "near"),
    [
        ("http://127.0.0.1:1234/v1", True),
        ("http://localhost/v1", True),
        ("http://192.168.1.7:1234/v1", True),
        ("http://10.0.0.2/v1", True),
        ("http://[::1]/v1", True),
        ("http://[fe80::1]/v1", True),
        ("http://gpuhost:8000/v1", True),
        ("http://gpuhost.local:8000/v1", True),
        ("https://api.example.com/v1", False),
        ("http://8.8.8.8/v1", False),
        ("http://127.0.0.1.example.com/v1", False),
    ],
)
def test_what_is_near_needs_no_warning(url, near):
    assert is_near(url) is near


def test_a_message_in_parts_is_read_as_its_texts():
    from mudpuppy.asking.reply import read_reply

    parts = [
        {"type": "text", "text": "Pa"},
        {"type": "image_url"},
        3,
        {"type": "text", "text": "ris"},
    ]
    value = {"choices": [{"message": {"content": parts}, "finish_reason": "stop"}]}
    assert read_reply(value).text == "Paris"
    assert read_reply({"choices": [{"message": {"content": [{"text": 4}]}}]}).text == ""
