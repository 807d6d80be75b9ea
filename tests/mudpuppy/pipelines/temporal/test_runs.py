"""Folders of runs: their names, what is published, and what a kill in between leaves."""

from __future__ import annotations

import json
from datetime import datetime

import pytest

from mudpuppy.errors import OutputError
from mudpuppy.pipelines.temporal import runs

NOW = datetime(2025, 12, 26, 21, 13, 25)


@pytest.mark.parametrize(
    ("model", "is_dev", "name"),
    [
        (
            "Qwen/Qwen2.5-1.5B-Instruct",
            False,
            "temporal-qwen2.5-1.5b-instruct-full-20251226_211325",
        ),
        ("tiny", True, "temporal-tiny-dev-20251226_211325"),
        ("tiny:llama", True, "temporal-tiny-llama-dev-20251226_211325"),
        ("/models/My Model/", False, "temporal-my-model-full-20251226_211325"),
        ("///", False, "temporal-model-full-20251226_211325"),
    ],
)
def test_a_run_is_named_after_model_mode_and_time(model, is_dev, name):
    assert runs.run_name(model, is_dev=is_dev, now=NOW) == name


def test_the_newest_run_with_a_checkpoint_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match=r"no run .*temporal-tiny-full-"):
        runs.newest_run("tiny", is_dev=False)
    for name in (
        "temporal-tiny-full-20250101_000000/checkpoint-5",
        "temporal-tiny-full-20250102_000000/checkpoint-5",
        "temporal-tiny-full-20250103_000000",  # has none
        "temporal-tiny-dev-20250104_000000/checkpoint-5",
        "temporal-tiny-full-of-something/checkpoint-5",
    ):
        (tmp_path / "output" / name).mkdir(parents=True)
    assert runs.newest_run("tiny", is_dev=False).name == "temporal-tiny-full-20250102_000000"
    assert runs.newest_run("tiny", is_dev=True).name == "temporal-tiny-dev-20250104_000000"


METRICS = {
    "epoch": 1.0,
    "train_loss": 0.5,
    "train_runtime": 2.0,
    "total_flos": 10.0,
    "eval_loss": 0.4,
    "eval_runtime": 0.1,
}
ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md")


def finished(run):
    """Write what the engine leaves."""
    (run / "checkpoint-2").mkdir(parents=True)
    for name in ADAPTER:
        (run / name).write_text(name)
    (run / "templates").mkdir()
    (run / "templates/one.jinja").write_text("x")
    (run / "steps.jsonl").write_text("{}\n")
    (run / "run.json").write_text(json.dumps({"metrics": METRICS}))
    (run / "mudpuppy.json").write_text("{}")
    return run


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_adapter_goes_to_final_and_the_figures_into_files(tmp_path):
    run = finished(tmp_path / "run")
    assert runs.is_unpublished(run)
    results = runs.publish(run)

    assert names(run / "final") == sorted([*ADAPTER, "mudpuppy.json", "templates"])
    left = ["checkpoint-2", "eval_results.json", "final", "run.json", "steps.jsonl"]
    assert names(run) == [*left, "train_results.json"]
    assert results["train"] == json.loads((run / "train_results.json").read_text())
    assert list(results["train"]) == ["epoch", "total_flos", "train_loss", "train_runtime"]
    assert list(results["eval"]) == ["epoch", "eval_loss", "eval_runtime"]
    assert runs.is_finished(run)
    assert not runs.is_unpublished(run)


@pytest.mark.parametrize("dies_at", range(10))
def test_a_kill_while_publishing_is_mended_by_the_next_call(tmp_path, monkeypatch, dies_at):
    """The manifest goes last: until then the run counts as not published."""
    run = finished(tmp_path / "run")
    calls = []

    class Killed(BaseException):
        pass

    def dying(original):
        def call(*words, **named):
            if len(calls) == dies_at:
                raise Killed
            calls.append(1)
            return original(*words, **named)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(runs.shutil, "copy2", dying(runs.shutil.copy2))
        patched.setattr(runs.shutil, "copytree", dying(runs.shutil.copytree))
        patched.setattr(runs, "write_json_atomic", dying(runs.write_json_atomic))
        patched.setattr(runs.shutil, "rmtree", dying(runs.shutil.rmtree))
        patched.setattr(runs.Path, "unlink", dying(runs.Path.unlink))
        with pytest.raises(Killed):
            runs.publish(run)
    assert runs.is_unpublished(run), "else finetune --resume_latest would call it finished"
    if dies_at < 6:
        assert not (run / "final").exists()
    runs.publish(run)
    assert names(run / "final") == sorted([*ADAPTER, "mudpuppy.json", "templates"])
    assert (run / "train_results.json").is_file()
    assert (run / "eval_results.json").is_file()


def test_only_a_checkpoint_can_be_gone_on_from(tmp_path):
    with pytest.raises(OutputError, match="is no checkpoint"):
        runs.go_on_from(tmp_path / "checkpoint-5")
    (tmp_path / "checkpoint-5").mkdir()
    with pytest.raises(OutputError, match=r"is incomplete.*\n.*--resume_latest"):
        runs.go_on_from(tmp_path / "checkpoint-5")
    with pytest.raises(OutputError, match="checkpoint-5"):
        runs.go_on_from(tmp_path / "final")
