"""Runs whose rounding remembers earlier steps: resumed they end bit for bit as if never stopped."""

import pytest
import torch
from safetensors.torch import load_file

from mudpuppy.checkpoint_form import FP8_HISTORY_FILE
from mudpuppy.config_check import load_config, unread_settings
from mudpuppy.engine import train
from mudpuppy.errors import OutputError, UnsupportedCombination
from mudpuppy.methods.keeping import EngineTrainer
from mudpuppy.quant.fp8 import Fp8Linear
from mudpuppy.tiny import resolve_model
from tests.mudpuppy.methods.runs import write_chat

RUNS = {
    "qat": {
        "method": "qat",
        "qat_activations": "tensor",
        "qat_ranges": "learned",
        "qat_warmup": 0.2,
        "qat_freeze": 0.7,
        "learning_rate": 1e-3,
    },
    "qat observed": {"method": "qat", "qat_activations": "tensor", "learning_rate": 1e-3},
    "fp8": {"method": "full", "precision": "fp8", "learning_rate": 1e-3},
    # a checkpoint of an adapter holds no tensor of the base, whose layers have the histories
    "fp8 adapter": {"method": "lora", "precision": "fp8", "lora_r": 4, "learning_rate": 1e-2},
}
DELAYED = {"fp8_scaling": "delayed", "fp8_window": 2}


class Stop(BaseException):
    """Like Ctrl-C: nothing of the engine catches it."""


@pytest.fixture(scope="module")
def base() -> str:
    return resolve_model("tiny:llama")


def go(base, output, kind, *, stop_after=None, **more):
    output.parent.mkdir(parents=True, exist_ok=True)
    delayed = DELAYED if kind.startswith("fp8") else {}
    given = {"model": base, "dataset": write_chat(output.parent), "output": output, "max_steps": 5}
    settings = {"precision": "fp32", "batch_size": 2, "gradient_accumulation": 2}
    losses = []

    def report(step, _):
        losses.append((step.step, step.loss, step.grad_norm))
        if stop_after is not None and step.step > stop_after:
            raise Stop

    config = load_config({**given, **settings, **RUNS[kind], **delayed, **more})
    record = train(config, report=report)
    return losses, record


def tensors_of(output):
    return {
        f"{path.parent.name}/{name}": tensor
        for path in sorted(output.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


@pytest.mark.parametrize("kind", RUNS)
def test_a_resumed_run_is_the_run_that_was_not_stopped(base, tmp_path, kind):
    whole, _ = go(base, tmp_path / "a" / "out", kind)
    parts = tmp_path / "b" / "out"
    with pytest.raises(Stop):
        go(base, parts, kind, stop_after=3, save_steps=3)
    assert (parts / "checkpoint-3" / FP8_HISTORY_FILE).exists() == kind.startswith("fp8")
    rest, _ = go(base, parts, kind, save_steps=3, resume=True)
    assert rest == whole[3:]
    a, b = tensors_of(tmp_path / "a" / "out"), tensors_of(parts)
    assert a.keys() == b.keys()
    assert [] == [name for name in a if not torch.equal(a[name], b[name])]


@pytest.mark.parametrize("kind", ["qat observed", "fp8 adapter"])
def test_a_state_that_is_not_restored_shows(base, tmp_path, kind, monkeypatch):
    """The equality above compares something: with empty ranges the rest is another run."""
    import mudpuppy.methods.keeping as keeping

    whole, _ = go(base, tmp_path / "a" / "out", kind)
    parts = tmp_path / "b" / "out"
    with pytest.raises(Stop):
        go(base, parts, kind, stop_after=3, save_steps=3)
    monkeypatch.setattr(keeping, "load_histories", lambda *_: None)
    original = EngineTrainer._load_from_checkpoint

    def forget(self, checkpoint, *words, **named):
        original(self, checkpoint, *words, **named)
        for name, tensor in self.model.named_buffers():
            if name.endswith("input_peak"):
                tensor.zero_()

    monkeypatch.setattr(EngineTrainer, "_load_from_checkpoint", forget)
    rest, _ = go(base, parts, kind, save_steps=3, resume=True)
    assert rest != whole[3:]


def test_a_checkpoint_without_its_history_is_not_continued(base, tmp_path):
    with pytest.raises(Stop):
        go(base, tmp_path / "out", "fp8 adapter", stop_after=3, save_steps=3)
    (tmp_path / "out" / "checkpoint-3" / FP8_HISTORY_FILE).unlink()
    with pytest.raises(OutputError, match=FP8_HISTORY_FILE):
        go(base, tmp_path / "out", "fp8 adapter", save_steps=3, resume=True)


def test_delayed_scaling_follows_current_scaling_and_tells_what_it_clipped(base, tmp_path):
    class Spy:
        def on_prepared(self, model, *_):
            self.layers = [m for m in model.modules() if isinstance(m, Fp8Linear)]
            self.states = [set(m._modules) for m in self.layers]

        def on_fitted(self, model):
            self.model = model

    found, records, spies = [], [], []
    for name, more in (("current", {"fp8_scaling": "current"}), ("delayed", DELAYED)):
        spies.append(Spy())
        (tmp_path / name).mkdir()
        config = load_config(
            {
                "model": base,
                "dataset": write_chat(tmp_path / name),
                "output": tmp_path / name / "out",
                "max_steps": 8,
                "batch_size": 8,
                "learning_rate": 3e-3,
                "method": "full",
                "precision": "fp8",
                **more,
            }
        )
        losses = []
        report = lambda step, _, losses=losses: losses.append(step.loss)  # noqa: E731
        records.append(train(config, watcher=spies[-1], report=report))
        found.append(losses)
    assert [spy.states[0] for spy in spies] == [set(), {"fp8_history"}]
    assert not any("fp8_history" in name for name, _ in spies[1].model.named_modules())
    assert found[0][0] == found[1][0]
    assert found[0] != found[1]
    assert found[1] == pytest.approx(found[0], rel=0.02)
    assert "fp8_clipped" not in records[0].choices
    assert "were beyond" in records[1].choices["fp8_clipped"].reason


def test_delayed_scaling_without_fp8_is_refused(base, tmp_path):
    with pytest.raises(UnsupportedCombination, match="MP-R34"):
        go(base, tmp_path / "out", "qat", **DELAYED)


@pytest.mark.parametrize(
    ("settings", "unread"),
    [
        ({"method": "lora", "qat_momentum": 0.5}, ("qat_momentum",)),
        ({"method": "qat", "qat_momentum": 0.5}, ("qat_momentum",)),
        ({"method": "qat", "qat_momentum": 0.5, "qat_activations": "tensor"}, ()),
        ({"method": "lora", "fp8_window": 4}, ("fp8_window",)),
        ({"method": "lora", "precision": "fp8", "fp8_window": 4}, ("fp8_window",)),
        ({"method": "lora", "precision": "fp8", **DELAYED}, ()),
    ],
)
def test_a_setting_that_nothing_reads_is_told(tmp_path, settings, unread):
    config = load_config(
        {"model": "tiny", "dataset": tmp_path / "x", "output": tmp_path / "out", **settings}
    )
    assert unread_settings(config) == unread
