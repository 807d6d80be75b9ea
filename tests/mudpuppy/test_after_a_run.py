"""What a run leaves to go on with: how its model is served, and curves that TensorBoard opens."""

import json
from pathlib import Path

import pytest

from mudpuppy.cli import main
from mudpuppy.errors import UsageError
from mudpuppy.tiny import resolve_model

SYSTEM = "You are an expert SNES developer."


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The output folder of a merged run with a system prompt."""
    home = tmp_path_factory.mktemp("run")
    rows = [{"instruction": f"q{i}", "input": "x", "output": "It eats worms."} for i in range(4)]
    (home / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = [resolve_model("tiny:llama"), str(home / "data.jsonl"), "--output", str(home / "out")]
    words += ["--max-steps", "2", "--batch-size", "2", "--lora-r", "2", "--precision", "fp32"]
    words += ["--device", "cpu", "--merge-lora", "--system-prompt", SYSTEM]
    assert 0 == main([*words, "--report-to", "tensorboard"])
    return home / "out"


def test_a_merged_run_says_how_its_model_is_served_with_the_system_prompt(finished):
    merged = finished / "merged"
    notes = (merged / "SERVING.md").read_text()

    assert f'SYSTEM """{SYSTEM}"""' in (merged / "Modelfile").read_text()
    for title in ("Ollama", "vLLM", "transformers"):
        assert f"## {title}" in notes
    assert f'messages = [{{"role": "system", "content": "{SYSTEM}"}}' in notes
    assert str(merged.resolve()) in notes  # the folder that stays, not the one it was made in


def test_a_merge_on_its_own_takes_the_prompt_of_the_training_or_another(finished, tmp_path):
    words = ["merge", resolve_model("tiny:llama"), str(finished)]
    assert 0 == main([*words, str(tmp_path / "plain")])
    assert not (tmp_path / "plain/Modelfile").exists()
    assert 0 == main([*words, str(tmp_path / "trained"), "--notes"])
    assert f'SYSTEM """{SYSTEM}"""' in (tmp_path / "trained/Modelfile").read_text()
    assert 0 == main([*words, str(tmp_path / "other"), "--system", "Be brief."])
    assert 'SYSTEM """Be brief."""' in (tmp_path / "other/Modelfile").read_text()


def test_tensorboard_finds_the_curves_in_the_folder_that_is_named(finished):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    found = EventMultiplexer().AddRunsFromDirectory(str(finished / "runs")).Reload()
    (run,) = found.Runs()
    assert [1, 2] == [event.step for event in found.Scalars(run, "train/loss")]


def test_the_command_for_the_curves_is_told_after_the_run(finished):
    from mudpuppy import train_command

    (line,) = train_command._curves(("tensorboard",), finished)
    assert line.endswith(f"tensorboard --logdir {finished / 'runs'}")
    assert [] == train_command._curves((), finished)


def test_notes_that_cannot_be_written_do_not_undo_the_run(monkeypatch):
    from mudpuppy import train_command
    from mudpuppy.export import serving_notes

    def refuse(*_, **__):
        raise UsageError("the system prompt cannot be quoted")

    monkeypatch.setattr(serving_notes, "write_notes", refuse)
    said = []
    train_command._write_notes(Path("merged"), "x", said.append)
    assert [
        "nothing was written on how to serve merged: the system prompt cannot be quoted"
    ] == said
