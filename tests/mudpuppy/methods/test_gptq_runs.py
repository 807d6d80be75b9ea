"""A GPTQ run keeps what it has done, goes on to the same bits, and holds one block at a time."""

import gc
import importlib
import json
import os
import signal
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from mudpuppy.checkpoints import list_checkpoints
from mudpuppy.config_check import load_config
from mudpuppy.engine import train
from mudpuppy.errors import ConfigError, ModelError, OutputError, UsageError
from mudpuppy.methods import gptq_foreign
from mudpuppy.preflight import preflight
from mudpuppy.quant.gptq_read import load_gptq
from mudpuppy.tiny import resolve_model

ANSWERS = ["It eats worms.", "No.", "At night, when the water is cold.", "In the pond."] * 3


@pytest.fixture(scope="module")
def base() -> str:
    return resolve_model("tiny:llama")


@pytest.fixture
def configure(base, tmp_path):
    path = tmp_path / "chat.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": a}]}
        for i, a in enumerate(ANSWERS)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))

    def make(name: str, **settings):
        common = {"model": base, "dataset": path, "method": "gptq", "precision": "fp32"}
        sizes = {"gptq_group_size": 32, "calibration_samples": 8}
        return load_config({**common, **sizes, "output": tmp_path / name, **settings})

    return make


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "gptq" / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    mine, theirs = tensors_of(one), tensors_of(other)
    return mine.keys() == theirs.keys() and all(
        torch.equal(mine[n], t) and mine[n].dtype is t.dtype for n, t in theirs.items()
    )


def in_child(work) -> int:
    """Do the work in a forked process and return how that ended, as os.waitpid says it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


def kill_at(text: str):
    def say(line: str) -> None:
        if text in line:
            os.kill(os.getpid(), signal.SIGKILL)

    return say


class Looker:
    """Somebody who needs the whole model."""

    def on_prepared(self, model, *_):
        self.before = {n: t.clone() for n, t in model.state_dict().items()}

    def on_fitted(self, model):
        self.after = {n: t.clone() for n, t in model.state_dict().items()}


def test_a_killed_run_goes_on_at_the_next_block_to_the_same_bits(configure, tmp_path):
    whole = train(configure("whole"))
    killed = configure("killed", gptq_activation_memory=0)
    status = in_child(lambda: train(killed, say=kill_at("block 2/2, model.layers.1.mlp.up_proj")))
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
    left = {path.name for path in killed.output.iterdir()}
    assert "checkpoint-1" in left
    assert not (killed.output / "gptq").exists()
    assert any(name.startswith(".activations-") for name in left)

    with pytest.raises(OutputError, match="go on from the newest with --resume"):
        preflight(configure("killed"))
    lines: list[str] = []
    resumed = train(configure("killed", resume=True), say=lines.append)
    assert "resuming from checkpoint-1: 1 block done" in lines
    assert not any("block 1/2" in line for line in lines)
    assert same(tmp_path / "killed", tmp_path / "whole")
    assert resumed.quantisation["layers"] == whole.quantisation["layers"]
    assert resumed.quantisation["divergence"] == whole.quantisation["divergence"]
    names = {path.name for path in killed.output.iterdir()}
    assert names == {path.name for path in (tmp_path / "whole").iterdir()}


def test_a_run_killed_in_its_first_block_starts_again(configure, tmp_path):
    status = in_child(lambda: train(configure("killed"), say=kill_at("layers.0.self_attn.k_proj")))
    assert os.WIFSIGNALED(status)
    train(configure("killed"))
    train(configure("whole"))
    assert same(tmp_path / "killed", tmp_path / "whole")


def test_a_resumed_run_must_be_the_same_and_its_blocks_whole(configure):
    class Stop(BaseException):
        pass

    def stop(line: str) -> None:
        if "block 2/2" in line:
            raise Stop

    with pytest.raises(Stop):
        train(configure("out"), say=stop)
    with pytest.raises(UsageError, match="--gptq-bits was 4 and is 8"):
        preflight(configure("out", gptq_bits=8, resume=True))
    (_, folder), *_ = list_checkpoints(configure("out").output)
    path = folder / "block.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(OutputError, match=r"the content of block\.safetensors has changed"):
        train(configure("out", resume=True))


def test_a_watched_run_has_the_whole_model_and_leaves_the_same_files(configure, tmp_path):
    looker = Looker()
    train(configure("watched"), watcher=looker)
    train(configure("alone"))
    assert same(tmp_path / "watched", tmp_path / "alone")
    loaded = load_gptq(tmp_path / "alone" / "gptq", torch.float32).state_dict()
    assert loaded.keys() == looker.after.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in looker.after.items())
    moved = {n for n, t in looker.before.items() if not torch.equal(t, looker.after[n])}
    assert moved == {name for name in looker.after if name.endswith("_proj.weight")}


def test_where_hidden_states_lie_changes_no_bit(configure, tmp_path):
    memory = train(configure("memory"))
    disk = train(configure("disk", gptq_activation_memory=0))
    assert memory.quantisation["activations_on_disk_bytes"] == 0
    assert disk.quantisation["activations_on_disk_bytes"] > 0
    assert same(tmp_path / "memory", tmp_path / "disk")


def test_the_record_compares_with_rounding_on_samples_that_calibrated_nothing(configure):
    lines: list[str] = []
    record = train(configure("out"), say=lines.append)
    found = record.quantisation["divergence"]
    assert found["samples"] == len(ANSWERS) - 8
    assert 0 < found["gptq"] < found["rtn"]
    assert any(line.startswith("on 4 other samples: KL from the full model") for line in lines)
    assert all(0 < x["gptq_error"] <= x["rtn_error"] for x in record.quantisation["layers"])
    lines.clear()
    record = train(configure("all", calibration_samples=99), say=lines.append)
    assert record.quantisation["divergence"] is None
    told = next(line for line in lines if "no sample is left to compare on" in line)
    assert told.endswith(f"all {len(ANSWERS)} calibrate; --calibration-samples 11 keeps some back")


@pytest.mark.parametrize(
    ("settings", "declared"),
    [
        ({"gptq_bits": 3}, {"bits": 3, "sym": True, "desc_act": False}),
        ({"gptq_act_order": True}, {"desc_act": False, "static_groups": True}),
        (
            {"gptq_act_order": True, "gptq_static_groups": False, "gptq_asymmetric": True},
            {"desc_act": True, "static_groups": False, "sym": False},
        ),
        (
            {"gptq_clip": "mse", "gptq_damping": 0.05, "gptq_group_size": -1},
            {"damp_percent": 0.05, "group_size": -1},
        ),
    ],
)
def test_every_setting_reaches_the_files_and_their_loader(configure, tmp_path, settings, declared):
    looker = Looker()
    train(configure("out", **settings), watcher=looker)
    folder = tmp_path / "out" / "gptq"
    found = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert declared.items() <= found.items()
    assert found["meta"]["clip"] == settings.get("gptq_clip", "none")
    loaded = load_gptq(folder, torch.float32).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in looker.after.items())


def test_memory_does_not_grow_with_the_number_of_blocks(configure, tmp_path, base):
    """Whatever block is at work, no other one is in memory (mapped files aside)."""
    held, weights = {}, {}
    for layers in (2, 6):
        folder = make_llama_of(tmp_path / f"base-{layers}", base, layers)
        weights[layers] = (folder / "model.safetensors").stat().st_size
        seen: list[int] = []
        small = {"model": str(folder), "calibration_samples": 2, "gptq_group_size": -1}
        train(
            configure(f"out-{layers}", **small),
            say=lambda line, seen=seen: seen.append(live_bytes() if "down_proj" in line else 0),
        )
        held[layers] = max(seen)
    more = weights[6] - weights[2]
    assert more > 4e6
    assert 0 < held[6] < held[2] + 0.1 * more, (held, weights)


def live_bytes() -> int:
    """Bytes of all tensors on the host, without those that are pages of a file."""
    mapped = []
    for line in Path("/proc/self/maps").read_text(encoding="ascii").splitlines():
        span, *_, last = line.split()
        if last.endswith((".safetensors", ".bin")):
            mapped.append([int(end, 16) for end in span.split("-")])
    found: dict[int, int] = {}
    for one in gc.get_objects():
        if type(one) in (torch.Tensor, torch.nn.Parameter) and one.device.type == "cpu":
            storage = one.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(
        size
        for start, size in found.items()
        if not any(low <= start < high for low, high in mapped)
    )


def make_llama_of(folder: Path, base: str, layers: int) -> Path:
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": layers, "hidden_size": 128, "intermediate_size": 512}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 1024}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained(folder)
    copy_tokenizer(base, folder)
    return folder


def copy_tokenizer(base: str, folder: Path) -> None:
    for path in Path(base).glob("*token*"):
        (folder / path.name).write_bytes(path.read_bytes())


def test_a_base_that_is_not_finite_is_refused_before_anything_is_written(configure, tmp_path, base):
    folder = tmp_path / "broken"
    model = LlamaForCausalLM.from_pretrained(base)
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    model.save_pretrained(folder)
    copy_tokenizer(base, folder)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight is not finite"):
        train(configure("out", model=str(folder)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["mixtral", "phi3", "gemma3", "llama-tied"])
def test_every_kind_of_base_is_read_block_by_block(configure, tmp_path, family):
    looker = Looker()
    settings = {"model": f"tiny:{family}", "calibration_samples": 4}
    train(configure("watched", **settings), watcher=looker)
    train(configure("alone", **settings))
    assert same(tmp_path / "watched", tmp_path / "alone")
    loaded = load_gptq(tmp_path / "alone" / "gptq", torch.float32).state_dict()
    assert loaded.keys() == looker.after.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in looker.after.items())


class FakeModel:
    """What GPTQModel.load returns, as far as the engine uses it."""

    def __init__(self, path, settings):
        self.path, self.settings, self.model = path, settings, object()

    def quantize(self, rows, batch_size):
        self.rows = rows

    def save(self, folder):
        Path(folder).mkdir()
        (Path(folder) / "made.json").write_text(json.dumps([self.settings, len(self.rows)]))


def test_another_package_quantises_where_it_is_chosen(configure, tmp_path, monkeypatch, base):
    """Simulated: neither the package nor a CUDA device is here."""
    made = types.SimpleNamespace(
        QuantizeConfig=lambda **settings: settings,
        GPTQModel=types.SimpleNamespace(load=lambda path, settings, **_: FakeModel(path, settings)),
    )
    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda n: made if n == "gptqmodel" else real(n))
    monkeypatch.setattr(gptq_foreign.metadata, "version", lambda name: "7.7.0")
    config = configure("out", gptq_backend="gptqmodel", gptq_act_order=True, gptq_bits=8)
    with pytest.raises(ConfigError, match="is for CUDA hosts, and the device is cpu"):
        train(config, samples=preflight(configure("none")))
    monkeypatch.setattr(gptq_foreign, "require_device", lambda runtime: None)
    record = train(config, samples=preflight(configure("none")))
    settings, rows = json.loads((tmp_path / "out" / "gptq" / "made.json").read_text())
    assert rows == 8
    assert settings["bits"] == 8
    assert settings["act_group_aware"]
    assert not settings["desc_act"]
    assert record.quantisation["backend"] == "gptqmodel 7.7.0"
    assert (tmp_path / "out" / "gptq" / "tokenizer.json").is_file()
