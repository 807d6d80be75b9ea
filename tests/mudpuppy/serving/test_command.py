"""`mud-puppy serve`: what it prints can be typed, and Ctrl-C ends it cleanly."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mudpuppy.cli import main
from mudpuppy.serving.command import reachable
from tests.mudpuppy.serving.tiny_gguf import write_gguf

pytest.importorskip("xllamacpp", reason="pip install xllamacpp brings a llama.cpp server")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny model.gguf"
    write_gguf(path)
    return path


def start(*words, **more):
    command = [sys.executable, "-m", "mudpuppy", "serve", *map(str, words), "--threads", "1"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_says_how_to_ask_and_ends(tiny, number):
    with start(tiny, "--port", "0", "--alias", "frog") as process:
        assert process.stdout.readline() == f"loading {tiny}\n"
        lines = [process.stdout.readline() for _ in range(5)]
        assert lines[0].startswith(f"serving {tiny} as 'frog' at http://127.0.0.1:")
        url = lines[0].split()[-1]
        asked = lines[1].split(maxsplit=1)[1]
        curl = shlex.split(asked)
        assert json.loads(curl[curl.index("-d") + 1])["temperature"] == 0
        assert curl[:2] == ["curl", f"{url}/chat/completions"]
        said = subprocess.run([*curl, "--silent"], capture_output=True, text=True, check=True)
        assert '"content":"' in said.stdout.replace(" ", "")
        assert f"mudpuppy-doctor --endpoint {url}" in lines[2]
        assert f"--endpoint {url} --test_file" in lines[3]
        process.send_signal(number)
        rest, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert f"{url} is no longer served" in rest
    assert not errors


def test_a_crash_of_the_server_ends_the_command_with_3(tiny):
    with start(tiny, "--port", "0") as process:
        while "serving" not in process.stdout.readline():
            pass
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        (child,) = map(int, children.read_text().split())
        os.kill(child, signal.SIGABRT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 3
    assert "its process was ended by SIGABRT" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", "70000"], "--port 70000 is not between 0 and 65535"),
        (["--ctx-size", "-1"], "--ctx-size -1 is not between"),
        (["--threads", "0"], "--threads 0 is not between"),
        (["--chat-template", "/nowhere"], "--chat-template /nowhere cannot be read"),
        (["--require-key"], "MUDPUPPY_ENDPOINT_KEY is empty"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(tiny, capsys, monkeypatch, words, said):
    monkeypatch.delenv("MUDPUPPY_ENDPOINT_KEY", raising=False)
    assert main(["serve", str(tiny), *words]) == 2
    assert said in capsys.readouterr().err


def test_a_template_that_is_none_is_refused(tiny, tmp_path, capsys):
    (tmp_path / "bad.jinja").write_text("fine\n{% for m in %}")
    assert main(["serve", str(tiny), "--chat-template", str(tmp_path / "bad.jinja")]) == 2
    assert "llama.cpp refuses it: it cannot use the chat template" in capsys.readouterr().err


def test_a_folder_is_refused_with_the_line_to_type(tmp_path, capsys):
    assert main(["serve", str(tmp_path)]) == 2
    errors = capsys.readouterr().err
    assert f"mud-puppy export gguf {tmp_path} {tmp_path}.gguf, then mud-puppy serve" in errors


def test_the_embedded_model_is_exported_first(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["serve", "tiny"]) == 2
    assert "mud-puppy export gguf tiny tiny.gguf" in capsys.readouterr().err


def test_everybody_who_can_reach_it_is_told_of(tiny, capsys, monkeypatch):
    class Stopped(KeyboardInterrupt):
        pass

    def wait(server):
        raise Stopped

    monkeypatch.setattr("mudpuppy.serving.server.Server.wait", wait)
    assert main(["serve", str(tiny), "--host", "0.0.0.0", "--port", "0", "--threads", "1"]) == 0
    said = capsys.readouterr().out
    assert "warning: 0.0.0.0 can be reached by everybody" in said
    assert "needs no key" in said
    assert "at http://127.0.0.1:" in said
    monkeypatch.setenv("MUDPUPPY_ENDPOINT_KEY", "secret-123")
    words = ["--host", "0.0.0.0", "--port", "0", "--threads", "1", "--require-key"]
    assert main(["serve", str(tiny), *words]) == 0
    said = capsys.readouterr().out
    assert "needs no key" not in said
    assert "secret-123" not in said
    assert "$MUDPUPPY_ENDPOINT_KEY" in said


def test_an_address_that_means_everywhere_is_printed_as_one_that_can_be_asked():
    assert reachable("http://0.0.0.0:80/v1") == "http://127.0.0.1:80/v1"
    assert reachable("http://[::]:80/v1") == "http://[::1]:80/v1"
    assert reachable("http://10.0.0.7:80/v1") == "http://10.0.0.7:80/v1"


def test_the_help_has_examples(capsys):
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    said = capsys.readouterr().out
    assert "mud-puppy serve model.gguf --port 8080" in said
    assert "--ctx-size" in said
