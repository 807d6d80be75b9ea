"""A resumed run is the same bit for bit, and whatever it forgets is found."""

import pytest
import transformers

from harness.twin.trial import _differences
from mudpuppy.engine import train
from mudpuppy.methods import fitting
from mudpuppy.methods.keeping import EngineTrainer
from tests.harness.twin.runs import make_config

SETTINGS = {"save_steps": 1, "max_steps": 3}


class Killed(Exception):
    """Stands in for SIGKILL: nothing behind it runs."""


def resume(folder, plant=lambda: None, **settings):
    """Train whole, then again with a stop in the second step, and resume; return what differs."""
    whole = make_config(folder / "whole", "lora", **SETTINGS, **settings)
    train(whole, records_dir=folder / "whole")
    update = {"output": folder / "again/checkpoint"}
    again = whole.model_copy(update=update)

    def kill(step, _):
        if step.step > SETTINGS["save_steps"]:
            raise Killed

    with pytest.raises(Killed):
        train(again, records_dir=folder / "again", report=kill)
    plant()
    train(again.model_copy(update={"resume": True}), records_dir=folder / "again")
    return _differences(folder / "whole", folder / "again")


def test_a_resumed_run_differs_in_nothing(tmp_path):
    assert not resume(tmp_path, rows=6, batch_size=2)


def test_a_forgotten_optimizer_state_is_found(tmp_path, monkeypatch):
    forget = lambda self, checkpoint: None  # noqa: E731
    found = resume(
        tmp_path,
        lambda: monkeypatch.setattr(EngineTrainer, "_load_optimizer_and_scheduler", forget),
    )

    assert {"learning_rate", "bytes of the weights"} == {one.what for one in found}


def test_a_lost_place_in_the_data_is_found(tmp_path, monkeypatch):
    original = fitting.shared_arguments
    found = resume(
        tmp_path,
        lambda: monkeypatch.setattr(
            fitting,
            "shared_arguments",
            lambda *w, **named: {**original(*w, **named), "ignore_data_skip": True},
        ),
    )

    assert ("loss", 2) == (found[0].what, found[0].step)


def test_lost_weights_are_found(tmp_path, monkeypatch):
    found = resume(
        tmp_path,
        lambda: monkeypatch.setattr(
            transformers.Trainer, "_load_from_checkpoint", lambda self, *words, **named: None
        ),
    )

    assert "loss" == found[0].what
