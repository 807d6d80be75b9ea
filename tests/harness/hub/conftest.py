"""A hub with a model and an adapter, for every test of the hub."""

from __future__ import annotations

import shutil

import pytest

from harness.selftest.ward import Recovery
from tests.harness.hub.hub_server import Hub, serve


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    return Recovery(tmp_path_factory.mktemp("ward"))


@pytest.fixture
def hub(tmp_path, ward, monkeypatch):
    """A hub with a model and an adapter, to be changed at will."""
    made = Hub()
    for name, patient in (("org/model", "transformers-llama"), ("org/lora", "peft-lora")):
        folder = tmp_path / name.replace("/", "--")
        shutil.copytree(ward.get(patient).path, folder)
        made.folders[name] = folder
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with serve(made) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        yield made
