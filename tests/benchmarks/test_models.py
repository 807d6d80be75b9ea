"""The models that are measured with train, and the runs for an accelerator run anywhere."""

from pathlib import Path

import pytest

from benchmarks.frame import NotRun, Plan
from benchmarks.models import Shape, build_model, write_chats
from benchmarks.rows import accelerator

SHAPE = Shape(width=32, layers=2, heads=2, positions=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("measured")
    build_model(made / "model", SHAPE, "bf16")
    write_chats(made / "chats.jsonl", 8, 32)
    return made


def test_a_shape_counts_the_weights_that_its_model_has(folder: Path):
    from safetensors import safe_open

    with safe_open(folder / "model/model.safetensors", "pt") as file:
        total = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118

    assert SHAPE.parameters == total


@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_bare_steps_with_an_adapter(folder: Path, kind: str):
    found = accelerator.train_adapter(str(folder), kind, 32, "cpu")

    assert 0 < found["loss"] < 10
    assert found["wall_s"] > 0


@pytest.mark.parametrize("kind", accelerator.ALL_WEIGHTS)
def test_all_weights_with_the_engine(folder: Path, kind: str):
    found = accelerator.train_all(str(folder), kind, 32, "cpu", f"out-{kind}")

    assert found["wall_s"] > 0
    assert {"wall_s", "cpu_s", "held_mb"} == found.keys()


def test_without_an_accelerator_nothing_is_measured(tmp_path: Path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(NotRun, match="no GPU here"):
        accelerator.measure(Plan(folder=tmp_path))


def test_what_does_not_fit_is_not_tried(tmp_path: Path):
    works = accelerator._works(tmp_path, parameters=7_000_000_000, room=24 * 2**30)

    assert isinstance(works["full"], NotRun)
    assert not isinstance(accelerator._works(tmp_path, 10**9, 24 * 2**30)["full"], NotRun)
