"""Whole runs with layers or optimizer on the host: the bits of a resident run, resumed or not."""

import pytest
import torch

from mudpuppy.memory import offload
from mudpuppy.memory.streaming import stream_of
from mudpuppy.tiny import resolve_model
from tests.mudpuppy.test_resume import (
    Stop,
    assert_same_run,
    run,
    settings_of,
    stop_after,
    weights_of,
)

STREAMED = {"stream": True, "stream_layers": 1}


@pytest.fixture(scope="module")
def base() -> str:
    return resolve_model("tiny:llama")


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def resident(request, base, tmp_path_factory):
    """Settings of a run of three steps, accumulated and clipped, and the folder of what it left."""
    folder = tmp_path_factory.mktemp("resident")
    settings = settings_of(base, folder) | {
        "method": "full",
        "precision": request.param,
        "max_grad_norm": 0.05,
        "weight_decay": 0.1,
        "output": folder / "out",
    }
    run(settings)
    return settings


@pytest.mark.parametrize("where", [STREAMED, {"zero_offload": True}])
def test_three_steps_equal_those_of_a_resident_run(resident, where, tmp_path):
    run({**resident, **where, "output": tmp_path / "whole"})
    assert_same_run(resident["output"], tmp_path / "whole")


def test_two_streamed_steps_and_one_equal_three(resident, tmp_path):
    """The ring may have another size when the run goes on."""
    part = {**resident, **STREAMED, "save_steps": 1, "output": tmp_path / "part"}
    with pytest.raises(Stop):
        run(part, report=stop_after(2))
    run({**part, "stream_layers": 2, "resume": True})
    assert_same_run(resident["output"], tmp_path / "part")


def test_unclipped_layers_step_while_backward_goes_on(base, tmp_path, monkeypatch):
    sent = []
    send = offload.StreamedAdamW._send

    def send_and_note(self, index, scale, arrivals=()):
        sent.append((index, self._stream._in_backward))
        send(self, index, scale, arrivals)

    monkeypatch.setattr(offload.StreamedAdamW, "_send", send_and_note)
    settings = settings_of(base, tmp_path) | {"method": "full", "max_grad_norm": 0.0}
    run({**settings, "output": tmp_path / "plain"})
    run({**settings, **STREAMED, "output": tmp_path / "streamed"})

    assert_same_run(tmp_path / "plain", tmp_path / "streamed")
    assert sent == [(1, True), (0, True)] * 3


def test_a_run_leaves_no_stream_behind(base, tmp_path):
    seen = []

    class Watcher:
        def on_prepared(self, model, *_):
            seen.append(stream_of(model))

        def on_fitted(self, model):
            seen.append(model)

    from mudpuppy.config_check import load_config
    from mudpuppy.engine import train

    settings = settings_of(base, tmp_path) | {"method": "full", "max_steps": 1, "warmup_steps": 0}
    train(load_config({**settings, **STREAMED, "output": tmp_path / "o"}), watcher=Watcher())
    stream, model = seen
    assert stream is not None
    assert stream_of(model) is None
    assert stream.arena.taken == 0
    saved = weights_of(tmp_path / "o")
    assert any(torch.equal(saved["model.norm.weight"], p) for p in model.parameters())
