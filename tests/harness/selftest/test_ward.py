"""Healthy checkpoints are built once, whole or not at all, and copies of them are one's own."""

from __future__ import annotations

import json

import pytest

from harness.selftest import registry
from harness.selftest.registry import Healthy, Patient
from harness.selftest.ward import Recovery


@pytest.fixture
def builds(monkeypatch):
    """Two builders, the second of which needs the first, and the names that were built."""
    built = []

    def build_base(ward):
        built.append("base")
        (ward.folder / "config.json").write_text("{}")
        return Patient(path=ward.folder)

    def build_tuned(ward):
        base = ward.get("base").path
        built.append("tuned")
        (ward.folder / "out").mkdir()
        (ward.folder / "out/config.json").write_text('{"a": 1}')
        options = {"base": base, "adapter": ward.folder, "generate": True}
        return Patient(path=ward.folder / "out", options=options)

    known = {
        name: Healthy(name=name, build=build, notes=())
        for name, build in (("base", build_base), ("tuned", build_tuned))
    }
    monkeypatch.setattr("harness.selftest.ward.load_healthy", lambda: known)
    return built


def test_each_is_built_once_also_by_another_process(tmp_path, builds):
    first = Recovery(tmp_path).get("tuned")
    second = Recovery(tmp_path).get("tuned")

    assert ["base", "tuned"] == builds
    assert first == second
    assert {"base": tmp_path / "base", "adapter": tmp_path / "tuned", "generate": True} == dict(
        second.options
    )


def test_what_was_left_half_built_is_built_anew(tmp_path, builds):
    (tmp_path / "base").mkdir()
    (tmp_path / "base/stale.json").write_text("half")

    Recovery(tmp_path).get("base")

    assert ["config.json"] == [path.name for path in (tmp_path / "base").iterdir()]


def test_a_builder_that_fails_leaves_no_record(tmp_path, builds, monkeypatch):
    def fail(ward):
        (ward.folder / "config.json").write_text("{")
        raise ValueError("no")

    broken = {"base": Healthy(name="base", build=fail, notes=())}
    monkeypatch.setattr("harness.selftest.ward.load_healthy", lambda: broken)
    with pytest.raises(ValueError, match="no"):
        Recovery(tmp_path).get("base")

    assert not (tmp_path / "base.json").exists()


def test_a_copy_has_its_own_paths_and_goes_when_it_was_used(tmp_path, builds):
    ward = Recovery(tmp_path)
    with ward.copy("tuned") as patient:
        assert patient.path.name == "out"
        assert patient.options["adapter"] == patient.path.parent != tmp_path / "tuned"
        assert patient.options["base"] == tmp_path / "base"
        (patient.path / "config.json").write_text("broken")
        room = patient.path.parent

    assert not room.exists()
    assert {"a": 1} == json.loads((ward.get("tuned").path / "config.json").read_text())


def test_a_damage_of_nobody_is_refused(monkeypatch):
    registry.load_damages()  # imports, and registers where it must
    one = registry.Damage(
        name="x", patient="nobody", mode="", probe="p", also=(), apply=lambda patient: None
    )
    monkeypatch.setattr(registry, "_DAMAGES", {"x": one})
    registry.load_damages.cache_clear()
    try:
        with pytest.raises(ValueError, match="nobody builds"):
            registry.load_damages()
    finally:
        registry.load_damages.cache_clear()
