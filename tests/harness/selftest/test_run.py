"""What the self-test chooses, and that whatever goes wrong is a result of it."""

from __future__ import annotations

import pytest

from harness.registry import load_probes
from harness.selftest import run
from harness.selftest.edit import drop_tensors, edit_tensors, rename_tensors
from harness.selftest.modes import UNPLANTED
from harness.selftest.registry import load_damages, load_healthy
from mudpuppy.errors import UsageError


def test_all_are_chosen_by_default_healthy_ones_first():
    names = run.choose([])

    assert [*load_healthy(), *load_damages()] == list(names)
    assert len(load_healthy()) > 200
    assert len(load_damages()) > 200


@pytest.mark.parametrize("word", ["FM08", "fm08", "MPD203", "adapter-never-trained"])
def test_a_mode_and_a_probe_choose_their_damages(word):
    chosen = run.choose([word])

    assert "lora-b-zero" in chosen
    assert not set(chosen) & set(load_healthy())


def test_globs_and_groups_choose_names():
    assert set(load_healthy()) == set(run.choose(["healthy"]))
    assert set(load_damages()) == set(run.choose(["damages"]))
    assert set(run.choose(["peft-lor?", "lora-b-*"])) == {"peft-lora", "lora-b-zero"}


def test_an_unknown_word_is_a_usage_error_that_helps():
    with pytest.raises(UsageError, match="peft-lora"):
        run.choose(["peft-lorra"])


def test_what_cannot_be_built_is_a_result(tmp_path, monkeypatch):
    def fail(one, ward):
        raise OSError("the disk is full")

    monkeypatch.setattr(run, "examine_damage", fail)
    monkeypatch.setattr(run, "examine_healthy", fail)

    for name in ("peft-lora", "lora-b-zero"):
        found = run._examine(tmp_path, name)
        assert found.crashed == ("OSError: the disk is full",)
        assert found.is_damage == (name == "lora-b-zero")


def test_probes_of_watched_runs_are_not_measured():
    measured = {one.name for one in load_probes() if run.judges_checkpoints(one)}

    assert "adapter-never-trained" in measured
    assert not {"loss-not-the-twins", "leftover-peft-config"} & measured


def test_every_probe_of_checkpoints_has_a_damage():
    planted = {one.probe for one in load_damages().values()}
    measured = {one.name for one in load_probes() if run.judges_checkpoints(one)}

    assert sorted(UNPLANTED) == sorted(measured - planted)


def test_the_fingerprint_changes_with_what_builds(monkeypatch):
    before = run.fingerprint()
    assert before == run.fingerprint()
    monkeypatch.setattr(run.metadata, "version", lambda name: "another")

    assert before != run.fingerprint()


def test_a_damage_that_would_change_nothing_is_refused(tmp_path):
    import torch
    from safetensors.torch import save_file

    save_file({"a.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    for edit in (lambda: drop_tensors(tmp_path, "b."), lambda: rename_tensors(tmp_path, "b", "c")):
        with pytest.raises(ValueError, match="no tensor"):
            edit()
    edit_tensors(tmp_path, lambda tensors: {"c": tensors["a.weight"]})
