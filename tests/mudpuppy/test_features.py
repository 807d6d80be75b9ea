"""What surrounds the trainer changes nothing that is learnt: workers, offload, logs, compiling."""

import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file

from mudpuppy.config_check import load_config
from mudpuppy.engine import train
from mudpuppy.errors import ConfigError, UnsupportedCombination
from mudpuppy.preflight import preflight
from mudpuppy.tiny import resolve_model


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Settings, and a folder for runs."""
    home = tmp_path_factory.mktemp("features")
    path = home / "chat.jsonl"
    answers = ["It eats worms.", "No.", "At night, when the water is cold.", "In the pond."] * 2
    rows = [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": a}]}
        for i, a in enumerate(answers)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return {
        "model": resolve_model("tiny:llama"),
        "dataset": path,
        "precision": "fp32",
        "max_steps": 2,
        "batch_size": 2,
        "lora_r": 4,
        "learning_rate": 1e-3,
    }


def run(settings, output, **more):
    config = load_config({**settings, "output": output, **more})
    said, losses = [], []
    samples = preflight(config)
    record = train(
        config,
        samples=samples,
        say=said.append,
        report=lambda step, _: losses.append((step.loss, step.grad_norm)),
    )
    return losses, record, said


def weights_of(folder):
    return load_file(next(folder.glob("*model.safetensors")))


def assert_same(left, right):
    a, b = weights_of(left), weights_of(right)
    assert a.keys() == b.keys()
    assert [] == [name for name in a if not torch.equal(a[name], b[name])]


@pytest.mark.parametrize(("method", "precision"), [("full", "fp32"), ("lora", "fp16")])
def test_an_offloaded_run_equals_the_resident_one(plain, tmp_path, monkeypatch, method, precision):
    from mudpuppy.methods import keeping

    made = []
    original = keeping.OffloadedAdamW.__init__
    monkeypatch.setattr(
        keeping.OffloadedAdamW,
        "__init__",
        lambda self, *w: (made.append(self), original(self, *w))[1],
    )
    settings = {**plain, "method": method, "precision": precision}
    resident, _, _ = run(settings, tmp_path / "resident")
    offloaded, _, _ = run(settings, tmp_path / "offloaded", zero_offload=True)

    assert resident == offloaded
    assert_same(tmp_path / "resident", tmp_path / "offloaded")
    (optimizer,) = made
    assert 2 == optimizer.ledger.steps


def test_batches_of_workers_are_those_of_the_trainer(plain, tmp_path):
    alone, _, _ = run(plain, tmp_path / "alone")
    batched, _, _ = run(plain, tmp_path / "batched", num_workers=1)

    assert alone == batched
    assert_same(tmp_path / "alone", tmp_path / "batched")


@pytest.mark.distributed
def test_rows_of_several_processes_are_those_of_one_in_their_order(plain, tmp_path):
    from mudpuppy.data.parallel import render_rows
    from mudpuppy.loading import load
    from mudpuppy.runtime import choose_runtime

    config = load_config({**plain, "output": tmp_path / "out", "device": "cpu"})
    loaded = load(config.model, config, choose_runtime(config))
    samples = preflight(config)
    several = config.model_copy(update={"preprocess_workers": 2})

    assert render_rows(loaded, samples, config) == render_rows(loaded, samples, several)


def test_tensorboard_gets_every_step(plain, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    losses, _, _ = run(plain, tmp_path / "out", report_to=("tensorboard",))
    (folder,) = (tmp_path / "out" / "runs").iterdir()
    events = EventAccumulator(str(folder)).Reload()

    assert [loss for loss, _ in losses] == pytest.approx(
        [event.value for event in events.Scalars("train/loss")], rel=1e-6
    )


def test_a_log_without_its_package_is_refused_before_torch(plain, tmp_path, monkeypatch):
    from mudpuppy import logs

    monkeypatch.setattr(logs.importlib.util, "find_spec", lambda name: None)
    config = load_config({**plain, "output": tmp_path / "out", "report_to": ("wandb",)})
    with pytest.raises(ConfigError, match="wandb is not installed") as caught:
        preflight(config)
    assert "pip install wandb" == caught.value.hint


def test_wandb_stays_here_unless_the_person_says_otherwise(plain, tmp_path, monkeypatch):
    import os

    from mudpuppy.logs import settle_environment

    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_SILENT"):
        monkeypatch.setenv(name, "x")  # so that it is restored
        monkeypatch.delenv(name)
    config = load_config({**plain, "output": tmp_path / "out", "report_to": ("wandb",)})
    (said,) = settle_environment(config)
    assert "WANDB_MODE is not set" in said
    assert ("offline", str(tmp_path / "out")) == (os.environ["WANDB_MODE"], os.environ["WANDB_DIR"])
    monkeypatch.setenv("WANDB_MODE", "online")
    assert [] == settle_environment(config)
    assert "online" == os.environ["WANDB_MODE"]


def test_device_maps_on_a_host_without_gpus(plain, tmp_path):
    for kind in ("auto", "cpu"):
        _, record, _ = run(plain, tmp_path / kind, device_map=kind, device="cpu", max_steps=1)
        assert "cpu" == record.choices["device_map"].value
    with pytest.raises(ConfigError, match="--device-map pipeline needs two GPUs"):
        run(plain, tmp_path / "pipeline", device_map="pipeline", device="cpu")
    assert not (tmp_path / "pipeline").exists()


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"device_map": "auto", "stream": True, "method": "full"}, "MP-R50"),
        ({"device_map": "auto", "method": "gptq"}, "MP-R51"),
        ({"zero_offload": True, "stream": True, "method": "full"}, "MP-R52"),
        ({"zero_offload": True, "fsdp": "full_shard"}, "MP-R53"),
        ({"fsdp": "full_shard", "method": "qlora"}, "MP-R54"),
        ({"fsdp": "full_shard", "precision": "fp16"}, "MP-R55"),
        ({"compile": True, "stream": True, "method": "full"}, "MP-R56"),
        ({"fsdp": "full_shard", "save_steps": 5}, "MP-R58"),
        ({"preprocess_workers": 2, "method": "dpo"}, "MP-R59"),
    ],
)
def test_what_cannot_be_together_is_refused_by_code(plain, tmp_path, settings, code):
    with pytest.raises(UnsupportedCombination) as caught:
        load_config({**plain, "output": tmp_path, **settings})
    assert code in caught.value.codes


def test_fsdp_in_one_process_is_refused(plain, tmp_path):
    config = load_config({**plain, "output": tmp_path / "out", "fsdp": "full_shard"})
    with pytest.raises(ConfigError, match="this is one") as caught:
        preflight(config)
    assert "torchrun" in caught.value.hint


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_a_compiled_run_learns_the_same_and_saves_plain_names(plain, tmp_path):
    eager, _, _ = run(plain, tmp_path / "eager", method="full", max_steps=1)
    compiled, _, _ = run(plain, tmp_path / "compiled", method="full", max_steps=1, compile=True)

    assert [x for pair in eager for x in pair] == pytest.approx(
        [x for pair in compiled for x in pair], rel=1e-4
    )
    names = weights_of(tmp_path / "compiled").keys()
    assert weights_of(tmp_path / "eager").keys() == names
    assert not [name for name in names if "_orig_mod" in name]


def test_compiling_without_a_compiler_says_so(plain, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    config = load_config({**plain, "output": tmp_path / "out", "compile": True})
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler"):
        preflight(config)


@pytest.mark.parametrize("method", ["full", "qlora"])
def test_our_own_calls_are_of_no_deprecated_name(plain, tmp_path, method):
    """PEFT 0.21 still calls transformers' old name of activation checkpointing; that is known."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(plain, tmp_path / "out", method=method, gradient_checkpointing=True, max_steps=1)
    told = [
        f"{one.filename}:{one.lineno}: {one.message}"
        for one in caught
        if issubclass(one.category, DeprecationWarning | FutureWarning)
        and not ("/peft/" in one.filename and "checkpointing" in str(one.message))
    ]

    assert [] == told
