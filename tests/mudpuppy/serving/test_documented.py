"""docs/serving.md: what it says to type can be typed, from the export to the served answers."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from mudpuppy.cli import main
from mudpuppy.parser import FriendlyParser
from mudpuppy.serving.command import _settings, add_arguments
from mudpuppy.tiny import resolve_model

pytest.importorskip("xllamacpp", reason="pip install xllamacpp brings a llama.cpp server")

PAGE = (Path(__file__).parents[3] / "docs/serving.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def typed(program, command):
    text = "".join(blocks("bash"))
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    plain = [[word for word in line if not word.startswith("MUDPUPPY_")] for line in lines]
    return [line[2:] for line in plain if line[:2] == [program, command]]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder that the page speaks of: a merged model, and its GGUF file as it is made there."""
    (tmp_path / "merged").symlink_to(resolve_model("tiny"))
    shutil.copy(Path(resolve_model("tiny")) / "chat_template.jinja", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MUDPUPPY_ENDPOINT_KEY", "...")
    (words,) = typed("mud-puppy", "export")
    assert main(["export", *words]) == 0
    return tmp_path


def test_the_page_runs_from_the_export_to_the_served_answers(folder, capsys):
    (code,) = blocks("python")
    capsys.readouterr()
    exec(compile(code, "docs/serving.md", "exec"), {})
    assert capsys.readouterr().out == "[True, True]\n"
    assert len((folder / "answers.jsonl").read_text().splitlines()) == 2
    serves = typed("mud-puppy", "serve")
    assert len(serves) == 4
    for words in serves:
        parser = FriendlyParser(prog="mud-puppy serve")
        add_arguments(parser)
        assert _settings(parser.parse_args(words)).path == str(folder / "model.gguf")


def test_everything_is_told():
    parser = FriendlyParser(prog="mud-puppy serve")
    add_arguments(parser)
    flags = {flag for action in parser._actions for flag in action.option_strings}
    assert {flag for flag in flags - {"-h"} if flag not in PAGE} == {"--help"}
