"""Resuming and stepping on the host, for the methods and the precision that round on their way."""

import json
from pathlib import Path

import pytest
from PIL import Image

from mudpuppy.tiny import resolve_model
from tests.mudpuppy.methods.runs import QUESTIONS, write_chat
from tests.mudpuppy.test_resume import Stop, assert_same_run, run, stop_after

CELLS = pytest.mark.parametrize(
    ("method", "precision"),
    [("qat", "bf16"), ("full", "fp8"), ("lora", "fp8"), ("multimodal", "fp32")],
)


def write_pictures(folder: Path) -> Path:
    """Write a small set of questions about pictures, one of them without."""
    rows = []
    for index, (question, answer) in enumerate(QUESTIONS):
        name = f"{index}.png"
        Image.new("RGB", (20, 20), (30 * index, 90, 10)).save(folder / name)
        content = [{"type": "image"}, {"type": "text", "text": question}]
        has_image = index != 2
        rows.append(
            {
                "images": [name] if has_image else [],
                "messages": [
                    {"role": "user", "content": content[0 if has_image else 1 :]},
                    {"role": "assistant", "content": [{"type": "text", "text": answer}]},
                ],
            }
        )
    path = folder / "pictures.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def settings(tmp_path):
    def make(method: str, precision: str, name: str, **more):
        sees = method == "multimodal"
        return {
            "model": resolve_model("tiny:llava" if sees else "tiny:llama"),
            "dataset": (write_pictures if sees else write_chat)(tmp_path),
            "output": tmp_path / name,
            "method": method,
            "precision": precision,
            "max_steps": 3,
            "batch_size": 2,
            "lora_r": 4,
            "lora_dropout": 0.2,
            "learning_rate": 1e-3,
            **more,
        }

    return make


@CELLS
def test_two_steps_and_one_equal_three(settings, tmp_path, method, precision):
    run(settings(method, precision, "whole"))
    parts = settings(method, precision, "parts", save_steps=2)
    with pytest.raises(Stop):
        run(parts, stop_after(2))
    run({**parts, "resume": True})
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@CELLS
def test_stepping_on_the_host_changes_nothing(settings, tmp_path, method, precision):
    run(settings(method, precision, "plain"))
    run(settings(method, precision, "offloaded", zero_offload=True))
    assert_same_run(tmp_path / "plain", tmp_path / "offloaded")
