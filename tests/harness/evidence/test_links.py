"""Links out of a folder are read and named; devices and files of the system are not read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.doctor import diagnose
from harness.evidence.files.inventory import list_files, read_index
from harness.evidence.files.links import is_refused
from harness.findings import Severity, Status, Verdict
from tests.harness.checkpoints import save_base


@pytest.fixture
def folder(tmp_path):
    return save_base(tmp_path / "m")


def examine(folder: Path):
    (result,) = diagnose(folder, select=["MPD116"]).probes
    return result


def test_a_link_out_of_the_folder_is_read_and_named(folder, tmp_path):
    verdict = diagnose(folder).verdict
    assert examine(folder).status is Status.PASSED
    (folder / "model.safetensors").rename(tmp_path / "other")
    (folder / "model.safetensors").symlink_to(tmp_path / "other")
    found = examine(folder)
    assert found.status is Status.FAILED
    assert found.severity is Severity.NOTE
    assert found.message.endswith(f"is a link out of the folder, to {tmp_path / 'other'}")
    assert diagnose(folder).verdict is verdict is Verdict.HEALTHY


@pytest.mark.parametrize("target", ["/proc/self/environ", "/dev/null", "/nowhere", "ring"])
def test_what_is_no_ordinary_file_is_not_read_and_is_named(folder, target):
    path = folder / "generation_config.json"
    path.unlink()
    path.symlink_to(path if target == "ring" else target)
    assert path.name not in list_files(folder)
    found = examine(folder)
    assert found.message.startswith("generation_config.json is not read: it leads to ")
    assert found.evidence[0].what == "link that is not read"


def test_weights_that_are_a_device_are_never_healthy(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("/dev/zero")
    assert diagnose(folder).verdict is not Verdict.HEALTHY


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="a folder of Linux")
def test_files_in_memory_are_read(tmp_path):
    place = Path("/dev/shm") / f"mudpuppy-test-{os.getpid()}"
    place.write_text("{}")
    try:
        (tmp_path / "a").symlink_to(place)
        assert not is_refused(tmp_path / "a")
    finally:
        place.unlink()


def test_links_inside_a_folder_and_a_cache_are_ordinary(tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "1"
    snapshot.parent.mkdir(parents=True)
    save_base(snapshot)
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    (snapshot / "part").mkdir()
    for place in (snapshot, snapshot / "part"):
        (blobs / place.name).write_text("{}")
        (place / "extra.json").symlink_to(blobs / place.name)
    (snapshot / "same.json").symlink_to("config.json")
    assert examine(snapshot).status is Status.PASSED
    (snapshot / "part" / "config.json").write_text("{}")
    assert not [one for one in diagnose(snapshot / "part").findings if one.code == "MPD116"]


def test_shards_may_be_links_but_not_to_the_system(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "a.safetensors").symlink_to(tmp_path / "other")
    (tmp_path / "other").write_bytes(b"x")
    (tmp_path / "m" / "b.safetensors").symlink_to("/proc/self/environ")
    index = '{"weight_map": {"x": "a.safetensors", "y": "b.safetensors", "z": "../c"}}'
    (tmp_path / "m" / "model.safetensors.index.json").write_text(index)
    assert read_index(tmp_path / "m").escaping == ("../c", "b.safetensors")
