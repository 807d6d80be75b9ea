"""Resuming: wherever a run is killed, it ends as if it had not been, or says why it cannot."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mudpuppy.checkpoints import (
    MANIFEST,
    Identity,
    find_resumable,
    list_checkpoints,
    require_same,
    write_manifest,
)
from mudpuppy.config_check import load_config
from mudpuppy.engine import train
from mudpuppy.errors import EngineError, OutputError, UsageError
from mudpuppy.preflight import preflight
from mudpuppy.tiny import resolve_model

ANSWERS = ["It eats worms.", "No.", "At night, when the water is cold.", "In the pond."] * 2


@pytest.fixture(scope="module")
def base() -> str:
    return resolve_model("tiny:llama")


@pytest.fixture
def settings(base, tmp_path):
    return settings_of(base, tmp_path)


def settings_of(base, tmp_path):
    """Three steps in epochs of two, the second of one batch: every counter has to be restored."""
    path = tmp_path / "chat.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": a}]}
        for i, a in enumerate(ANSWERS)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return {
        "model": base,
        "dataset": path,
        "precision": "fp32",
        "max_steps": 3,
        "batch_size": 2,
        "gradient_accumulation": 3,
        "lora_r": 4,
        "lora_dropout": 0.2,
        "learning_rate": 1e-3,
        "warmup_steps": 1,
    }


class Stop(BaseException):
    """Like Ctrl-C: nothing of the engine catches it."""


def stop_after(steps):
    """Return a report that stops the run in the step after `steps`."""

    def report(record, _):
        if record.step > steps and record.loss is not None:
            raise Stop

    return report


def run(settings, report=None, say=None):
    config = load_config(settings)
    samples = preflight(config)
    return train(config, samples=samples, report=report, say=say or (lambda _: None))


def steps_of(folder):
    kept = ("step", "epoch", "loss", "grad_norm", "learning_rate", "eval_loss")
    lines = (folder / "steps.jsonl").read_text().splitlines()
    return [{name: json.loads(line)[name] for name in kept} for line in lines]


def weights_of(folder):
    name = next(
        n for n in ("adapter_model.safetensors", "model.safetensors") if (folder / n).is_file()
    )
    return load_file(folder / name)


def assert_same_run(left, right):
    assert steps_of(left) == steps_of(right)
    a, b = weights_of(left), weights_of(right)
    assert a.keys() == b.keys()
    assert [] == [name for name in a if not torch.equal(a[name], b[name])]
    assert {p.name for p in left.iterdir()} == {p.name for p in right.iterdir()}


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_two_steps_and_one_equal_three(settings, tmp_path, method, precision):
    settings |= {"method": method, "precision": precision}
    run({**settings, "output": tmp_path / "whole"})
    parts = {**settings, "output": tmp_path / "parts", "save_steps": 2}
    with pytest.raises(Stop):
        run(parts, stop_after(2))
    assert 3 == len(steps_of(tmp_path / "parts"))

    run({**parts, "resume": True})

    assert [1, 2, 3] == [step["step"] for step in steps_of(tmp_path / "parts")]
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(
    "batches",
    [
        {"packing": True, "max_length": 64, "batch_size": 1},
        {"tokens_per_batch": 64, "max_length": 64},
    ],
)
def test_other_batches_go_on_where_they_were(settings, tmp_path, batches):
    """The step after the resumption is in the middle of a later epoch."""
    settings |= {**batches, "gradient_accumulation": 1, "max_steps": 6}
    run({**settings, "output": tmp_path / "whole"})
    parts = {**settings, "output": tmp_path / "parts", "save_steps": 5}
    with pytest.raises(Stop):
        run(parts, stop_after(5))

    run({**parts, "resume": True})

    epochs = [step["epoch"] for step in steps_of(tmp_path / "whole")]
    assert epochs[4] > 1
    assert epochs[4] % 1
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_what_is_not_restored_would_show(settings, tmp_path, monkeypatch):
    """The equality above compares something: without the random state the dropout is another."""
    from transformers import Trainer

    run({**settings, "output": tmp_path / "whole"})
    parts = {**settings, "output": tmp_path / "parts", "save_steps": 1}
    with pytest.raises(Stop):
        run(parts, stop_after(1))
    monkeypatch.setattr(Trainer, "_load_rng_state", lambda *_: None)
    run({**parts, "resume": True})

    assert steps_of(tmp_path / "whole")[-1] != steps_of(tmp_path / "parts")[-1]


def test_early_stopping_goes_on_counting_and_keeps_the_best(settings, tmp_path):
    settings |= {
        "max_steps": 30,
        "gradient_accumulation": 1,
        "learning_rate": 0.1,
        "method": "full",
        "early_stopping": 3,
        "eval_steps": 1,
        "eval_fraction": 0.25,
    }
    whole = run({**settings, "output": tmp_path / "whole"})
    assert whole.stopped_early
    assert whole.steps > 3
    for killed_after in (whole.steps - 1, whole.steps - 2):
        parts = {**settings, "output": tmp_path / f"parts-{killed_after}"}
        with pytest.raises(Stop):
            run(parts, stop_after(killed_after))
        resumed = run({**parts, "resume": True})

        assert resumed.stopped_early
        assert_same_run(tmp_path / "whole", parts["output"])


MOMENTS = {
    "the optimizer of the second checkpoint": ("Trainer._save_optimizer_and_scheduler", 2),
    "the random state of the second checkpoint": ("Trainer._save_rng_state", 2),
    "the manifest of the second checkpoint": ("mudpuppy.methods.keeping.write_manifest", 2),
    "the removal of the first": ("transformers.trainer.rotate_checkpoints", 3),
    "a step": ("Trainer.training_step", 3),
    "the save": ("mudpuppy.engine.save_adapter", 1),
    "the move into place": ("mudpuppy.saving.fsync_folder", 1),
    "the manifest of the whole": ("mudpuppy.engine.finish", 1),
    "the merge": ("mudpuppy.engine.merge_shards", 1),
    "the manifest of the merged model": ("mudpuppy.engine.finish", 2),
    "the end": ("mudpuppy.engine.remove_checkpoints", 1),
}
"""Right before which call, counted from 1, the run is killed."""


@pytest.fixture(scope="module")
def killed_runs(base, tmp_path_factory):
    """One run, and what a kill at each moment would leave of its folder on the disk."""
    home = tmp_path_factory.mktemp("killed")
    settings = settings_of(base, home)
    settings |= {"save_steps": 1, "merge_lora": True, "gradient_accumulation": 1}
    settings["output"] = home / "whole"
    with pytest.MonkeyPatch.context() as patch:
        for number, (where, turn) in enumerate(MOMENTS.values()):
            module, _, name = where.rpartition(".")
            found = importlib.import_module("transformers" if module == "Trainer" else module)
            owner = found.Trainer if module == "Trainer" else found
            copy_before(patch, owner, name, turn, settings["output"], home / str(number))
        run(settings)
    return settings, home


def copy_before(patch, owner, name, turn, source, target):
    """Copy the folder right before one call: SIGKILL leaves exactly what is on the disk."""
    original, calls = getattr(owner, name), []

    def copying(*words, **named):
        calls.append(1)
        if len(calls) == turn:
            shutil.copytree(source, target)
        return original(*words, **named)

    patch.setattr(owner, name, copying)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_that_is_killed_goes_on_to_the_same_end(killed_runs, moment):
    settings, home = killed_runs
    left = home / str(list(MOMENTS).index(moment))
    said = []
    run({**settings, "output": left, "resume": True}, say=said.append)

    assert [] == list_checkpoints(left)
    assert_same_run(home / "whole", left)
    merged = [load_file(where / "merged" / "model.safetensors") for where in (home / "whole", left)]
    assert [] == [name for name in merged[0] if not torch.equal(merged[0][name], merged[1][name])]
    if "second" in moment:
        assert any(
            line.startswith("checkpoint-2 is incomplete (")
            and line.endswith("): going on from checkpoint-1")
            for line in said
        )


def test_a_run_that_is_really_killed_can_be_resumed_from_the_command_line(settings, tmp_path):
    run({**settings, "output": tmp_path / "whole"})
    words = [str(settings["model"]), str(settings["dataset"]), "--output", str(tmp_path / "out")]
    for name in settings.keys() - {"model", "dataset"}:
        words += ["--" + name.replace("_", "-"), str(settings[name])]
    command = [sys.executable, "-m", "mudpuppy", *words, "--save-steps", "1"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in child.stdout:
        if line.startswith("step 3/3"):
            child.kill()
            break
    assert -signal.SIGKILL == child.wait()
    child.stdout.close()
    assert not (tmp_path / "out" / "mudpuppy.json").exists()

    run({**settings, "output": tmp_path / "out", "resume": True})
    assert_same_run(tmp_path / "whole", tmp_path / "out")


@pytest.fixture
def stopped(settings, tmp_path):
    """A run that was stopped after its second checkpoint of two."""
    settings |= {"output": tmp_path / "out", "save_steps": 1, "gradient_accumulation": 1}
    with pytest.raises(Stop):
        run(settings, stop_after(2))
    assert [2, 1] == [step for step, _ in list_checkpoints(tmp_path / "out")]
    return settings


@pytest.mark.parametrize("name", ["scheduler.pt", MANIFEST])
def test_a_checkpoint_that_lacks_a_file_is_skipped_by_name(stopped, name):
    (stopped["output"] / "checkpoint-2" / name).unlink()
    said = []
    run({**stopped, "resume": True}, say=said.append)

    assert any(
        line.startswith(f"checkpoint-2 is incomplete ({name}")
        and line.endswith("is missing): going on from checkpoint-1")
        for line in said
    )


def test_a_checkpoint_whose_bytes_changed_is_skipped(stopped):
    path = stopped["output"] / "checkpoint-2" / "optimizer.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    said = []
    run({**stopped, "resume": True}, say=said.append)

    assert any("(the content of optimizer.pt has changed)" in line for line in said)


def test_a_run_killed_in_its_first_checkpoint_starts_again(settings, tmp_path, monkeypatch, capsys):
    from transformers import Trainer

    from mudpuppy.train_command import say_what_is_left

    settings |= {"output": tmp_path / "out", "save_steps": 1, "max_steps": 2}

    def kill(*_):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_optimizer_and_scheduler", kill)
        with pytest.raises(Stop):
            run(settings)
    assert (tmp_path / "out" / "checkpoint-1" / "adapter_model.safetensors").is_file()
    say_what_is_left(tmp_path / "out")
    assert "--resume" not in capsys.readouterr().err
    with pytest.raises(OutputError, match="can be resumed"):
        run({**settings, "resume": True})

    run(settings)
    assert (tmp_path / "out" / "mudpuppy.json").is_file()
    assert [] == list_checkpoints(tmp_path / "out")


def test_after_a_complete_checkpoint_resume_is_advised(stopped, capsys):
    from mudpuppy.train_command import say_what_is_left

    say_what_is_left(stopped["output"])
    assert "--resume" in capsys.readouterr().err


def in_the_way(output, kind):
    if kind == "pipe":
        os.mkfifo(output / ".lock")
    elif kind == "dangling":
        (output / ".lock").symlink_to("nowhere")
    elif kind in (".lock", "steps.jsonl"):
        (output / kind).mkdir()
    elif kind == "file":
        (output / ".saving-1").touch()
    else:
        (output / ".saving-1").symlink_to(output.parent)


@pytest.mark.parametrize("kind", ["pipe", "dangling", ".lock", "steps.jsonl", "file", "link"])
def test_what_is_in_the_way_is_refused_before_training(settings, tmp_path, kind):
    (tmp_path / "out").mkdir()
    in_the_way(tmp_path / "out", kind)
    with pytest.raises(OutputError, match="is in the way: it is no"):
        preflight(load_config({**settings, "output": tmp_path / "out"}))


def test_without_resume_a_stopped_run_is_not_overwritten(stopped):
    with pytest.raises(OutputError, match="--resume"):
        run(stopped)
    assert [2, 1] == [step for step, _ in list_checkpoints(stopped["output"])]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 7}, "--seed was 42 and is 7"),
        ({"batch_size": 1}, "--batch-size was 2 and is 1"),
        ({"method": "qlora"}, "--method was 'lora' and is 'qlora'"),
        ({"max_steps": 9}, "--max-steps was 3 and is 9"),
    ],
)
def test_another_run_is_refused_before_anything_is_loaded(stopped, changed, named):
    with pytest.raises(UsageError, match=named):
        preflight(load_config({**stopped, **changed, "resume": True}))


def test_another_dataset_is_refused_and_the_same_elsewhere_is_not(stopped, tmp_path):
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(stopped["dataset"].read_bytes())
    preflight(load_config({**stopped, "dataset": moved, "resume": True}))
    moved.write_text(moved.read_text().replace("worms", "snails"))
    with pytest.raises(UsageError, match="the samples of DATASET are others"):
        preflight(load_config({**stopped, "dataset": moved, "resume": True}))


def test_what_changes_no_weight_may_differ(stopped):
    run({**stopped, "resume": True, "save_steps": 5, "merge_lora": True, "num_workers": 1})
    assert (stopped["output"] / "merged" / "model.safetensors").is_file()


def test_nothing_to_resume_is_said(settings, tmp_path):
    settings |= {"output": tmp_path / "out", "resume": True}
    with pytest.raises(OutputError, match=r"nothing to resume .* no checkpoint") as caught:
        run(settings)
    assert "--save-steps" in caught.value.hint
    assert not (tmp_path / "out").exists()
    run({**settings, "resume": False, "max_steps": 1, "warmup_steps": 0})
    with pytest.raises(OutputError, match="is finished"):
        run(settings)


def test_a_folder_of_somebody_else_is_neither_resumed_nor_removed(settings, tmp_path):
    theirs = tmp_path / "out" / "checkpoint-7"
    theirs.mkdir(parents=True)
    (theirs / "optimizer.pt").write_bytes(b"pickle")
    for resume in (True, False):
        with pytest.raises(OutputError):
            run({**settings, "output": tmp_path / "out", "resume": resume})
    assert b"pickle" == (theirs / "optimizer.pt").read_bytes()


def test_a_checkpoint_that_was_moved_with_its_folder_keeps_its_best(settings, tmp_path):
    settings |= {
        "gradient_accumulation": 1,
        "early_stopping": 5,
        "eval_steps": 1,
        "eval_fraction": 0.25,
        "learning_rate": 0.5,
        "method": "full",
    }
    run({**settings, "output": tmp_path / "whole"})
    with pytest.raises(Stop):
        run({**settings, "output": tmp_path / "before"}, stop_after(2))
    Path(tmp_path / "before").rename(tmp_path / "after")
    run({**settings, "output": tmp_path / "after", "resume": True})

    assert_same_run(tmp_path / "whole", tmp_path / "after")


def test_a_manifest_is_not_believed_when_its_form_is_another(tmp_path):
    from mudpuppy.checkpoints import find_fault

    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "trainer_state.json").write_text('{"global_step": 1}')
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors"):
        (folder / name).touch()
    same = Identity(settings={}, samples="", processes=1, versions={})
    write_manifest(folder, 1, same)
    assert "" == find_fault(folder, deep=True)
    for text in ("", "[]", "{}", '{"schema_version": 1}', '{"schema_version": 2, "files": {}}'):
        (folder / MANIFEST).write_text(text)
        assert MANIFEST in find_fault(folder, deep=False)


def rewrite(folder, change):
    """Change a manifest as somebody would who keeps its hashes right."""
    path = folder / MANIFEST
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def forget(name):
    def change(manifest):
        del manifest["files"][name]

    return change


DAMAGES = {
    "no files": lambda m: m.update(files={}),
    "a text as entry": lambda m: m["files"].update({"optimizer.pt": "x"}),
    "a file elsewhere": lambda m: m["files"].update({"../x": {"bytes": 0, "sha256": ""}}),
    "no identity": lambda m: m.update(identity={}),
    "no versions": lambda m: m["identity"].pop("versions"),
    "no base": lambda m: m["identity"].pop("base"),
    "settings": lambda m: m["identity"].update(settings=[]),
    "no scaler": lambda m: m["identity"]["settings"].update(precision="fp16"),
    **{
        name: forget(name)
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors")
    },
}


def test_a_manifest_that_was_tampered_with_is_skipped(stopped):
    newest = stopped["output"] / "checkpoint-2"
    whole = (newest / MANIFEST).read_text()
    for name, change in DAMAGES.items():
        (newest / MANIFEST).write_text(whole)
        rewrite(newest, change)
        assert find_resumable(stopped["output"]).step == 1, name
    (newest / MANIFEST).write_text("[" * 100_000)
    assert 1 == find_resumable(stopped["output"]).step
    (newest / MANIFEST).write_text(whole)
    assert 2 == find_resumable(stopped["output"]).step


@pytest.fixture
def manifested(stopped):
    """Return a function that replaces a file of the newest checkpoint and keeps its hash right."""
    newest = stopped["output"] / "checkpoint-2"

    def put(name, content):
        (newest / name).write_bytes(content)
        found = Identity(**json.loads((newest / MANIFEST).read_text())["identity"])
        write_manifest(newest, 2, found)

    return put


def test_a_trainer_state_that_was_tampered_with_is_skipped(stopped, manifested):
    for text in (b"[]", b"{}", b"", b"null", b"[" * 100_000):
        manifested("trainer_state.json", text)
        assert 1 == find_resumable(stopped["output"]).step


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors"]
)
def test_a_file_that_cannot_be_loaded_is_a_mistake_and_no_crash(stopped, manifested, name):
    manifested(name, b"garbage")
    with pytest.raises(OutputError, match="checkpoint-2 cannot be resumed from") as caught:
        run({**stopped, "resume": True})
    assert "rm -r" in caught.value.hint


def test_other_processes_and_another_base_are_refused(stopped):
    found = find_resumable(stopped["output"])
    same = Identity(**found.identity)
    require_same(found, same)
    with pytest.raises(UsageError, match="1 processes trained, and now there are 2"):
        require_same(found, replace(same, processes=2))
    with pytest.raises(UsageError, match="the base model has other weights"):
        require_same(found, replace(same, base="another"))
    require_same(found, replace(same, base=None))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gradient_that_is_not_finite_stops_the_run_before_it_is_saved(
    settings, tmp_path, monkeypatch, precision
):
    """With the weights it ruined in a checkpoint, every resumption would diverge again."""
    from transformers import Trainer

    settings |= {"gradient_accumulation": 1, "save_steps": 1, "precision": precision}
    settings["output"] = tmp_path / "out"
    step, turns = Trainer.training_step, []

    def poisoned(trainer, model, *words, **named):
        loss = step(trainer, model, *words, **named)
        turns.append(1)
        if len(turns) == 2:
            next(p for p in model.parameters() if p.grad is not None).grad.fill_(float("nan"))
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", poisoned)
        with pytest.raises(EngineError, match="grad_norm is nan at step 2: the run diverged"):
            run(settings)

    assert [1] == [step for step, _ in list_checkpoints(settings["output"])]
