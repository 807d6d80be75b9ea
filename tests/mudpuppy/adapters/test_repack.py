"""Merging back into few bits: equal to quantising the exact merge, and honest about the loss."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import mudpuppy.adapters.fold as folding
from mudpuppy.adapters.command import choose_packing
from mudpuppy.adapters.merge_plan import Packing
from mudpuppy.adapters.repack import Loss
from mudpuppy.adapters.shard_merge import merge_shards
from mudpuppy.cli import main
from mudpuppy.config_check import load_config
from mudpuppy.engine import train
from mudpuppy.errors import EngineError, ModelError, UsageError
from mudpuppy.quant.formats import FORMATS
from mudpuppy.quant.linear4bit import find_4bit
from mudpuppy.quant.opening import open_model
from mudpuppy.quant.registered import FourBitConfig
from mudpuppy.tiny import resolve_model
from reports.commands.doctor import main as doctor
from tests.mudpuppy.adapters.test_packed_base import save_adapter, save_base
from tests.mudpuppy.quant.tiny_llama import make_ids, make_llama

pytestmark = pytest.mark.filterwarnings("ignore:::peft", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Let a weight be several blocks."""
    monkeypatch.setattr(folding, "BLOCK_BYTES", 40 * 4 * 8)
    monkeypatch.setattr(folding, "ALIGN", 8)


def save_plain(folder: Path) -> Path:
    make_llama(dtype=torch.bfloat16, hidden_size=40, intermediate_size=75).save_pretrained(
        folder, max_shard_size="20KB"
    )
    return folder


def packing_of(name: str, search: int = 0) -> Packing:
    return Packing(format=name, block_size=FORMATS[name].default_block_size, search=search)


@pytest.mark.parametrize(
    ("name", "search"),
    [("nf4", 0), ("nf4", 8), ("int4", 0), ("int4", 8), ("mxfp4", 0), ("int8", 0)],
)
def test_a_plain_base_becomes_what_quantising_the_exact_merge_makes(name, search, tmp_path):
    """Bit for bit the levels and scales that transformers and FourBitConfig make of it."""
    base = save_plain(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter")
    packing = packing_of(name, search)
    report = merge_shards(base, adapter, tmp_path / "packed", packing=packing)
    merge_shards(base, adapter, tmp_path / "exact", precision="fp32")

    config = FourBitConfig(format=name, search=search)
    wanted = find_4bit(
        AutoModelForCausalLM.from_pretrained(tmp_path / "exact", quantization_config=config)
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    made = find_4bit(model)
    assert made.keys() == wanted.keys()
    assert len(made) == 14
    for module, layer in made.items():
        assert torch.equal(layer.packed.qweight, wanted[module].packed.qweight), module
        assert torch.equal(layer.packed.scales, wanted[module].packed.scales), module
    assert report.precision == f"BF16 {name}"
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=make_ids()).logits).all()


@torch.no_grad()
def test_what_it_says_it_lost_is_what_it_lost(tmp_path):
    base = save_plain(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter")
    said: list[str] = []
    merge_shards(base, adapter, tmp_path / "nf4", packing=packing_of("nf4"), say=said.append)
    merge_shards(base, adapter, tmp_path / "exact", precision="fp32")

    told = json.loads((tmp_path / "nf4/mudpuppy.json").read_text())["merge"]["quantisation"]
    exact = AutoModelForCausalLM.from_pretrained(tmp_path / "exact", dtype=torch.float64)
    before = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    layers = find_4bit(AutoModelForCausalLM.from_pretrained(tmp_path / "nf4"))
    assert told["losses"].keys() == layers.keys()
    for name, layer in layers.items():
        rounded = layer.format.dequantise(layer.packed, torch.float32).double()
        merged, old = exact.get_submodule(name).weight, before.get_submodule(name).weight
        change = merged - old
        loss = told["losses"][name]
        noise = (rounded - merged).norm()
        assert loss["error"] == pytest.approx(float(noise / merged.norm()), abs=2e-6)
        if "q_proj" not in name and "down_proj" not in name:
            assert loss["survived"] is None
            continue
        survived = float(((rounded - old) * change).sum() / (change * change).sum())
        assert loss["survived"] == pytest.approx(survived, abs=1e-4)
        assert loss["change"] == pytest.approx(float(change.norm() / noise), rel=1e-4)
    assert any("off the exact merge" in line for line in said)
    assert any("of the adapter's change is left" in line for line in said)


@pytest.mark.parametrize("kind", ["nf4", "int4", "mxfp4", "bnb-nf4"])
def test_a_packed_base_keeps_the_levels_of_layers_that_do_not_change(kind, tmp_path):
    base = save_base(tmp_path / "base", kind)
    adapter = save_adapter(base, tmp_path / "adapter")
    name = kind.removeprefix("bnb-")
    merge_shards(base, adapter, tmp_path / "merged", packing=packing_of(name))
    merge_shards(base, adapter, tmp_path / "exact", precision="fp32")
    old, new = find_4bit(open_model(base)), find_4bit(open_model(tmp_path / "merged"))
    exact = AutoModelForCausalLM.from_pretrained(tmp_path / "exact")
    assert old.keys() == new.keys()
    for module, layer in new.items():
        form = layer.format
        if "q_proj" in module or "down_proj" in module:
            wanted = form.quantise(exact.get_submodule(module).weight)
            assert torch.equal(layer.packed.qweight, wanted.qweight), module
            assert torch.equal(layer.packed.scales, wanted.scales), module
        elif not kind.startswith("bnb-"):
            assert torch.equal(layer.packed.qweight, old[module].packed.qweight), module
            assert torch.equal(layer.packed.scales, old[module].packed.scales), module
        else:
            wanted = form.quantise(exact.get_submodule(module).weight)
            assert torch.equal(layer.packed.scales, wanted.scales), module


def test_an_adapter_too_small_for_the_levels_is_warned_of(tmp_path):
    """On a packed base a small change falls back onto the levels, or scales move farther."""
    base = save_base(tmp_path / "base", "nf4")
    adapter = save_adapter(base, tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    save_file({name: value * 1e-2 for name, value in load_file(file).items()}, file)
    said: list[str] = []
    merge_shards(base, adapter, tmp_path / "merged", packing=packing_of("nf4"), say=said.append)
    warnings = [line for line in said if line.startswith("warning: in ")]
    assert len(warnings) == 2, said
    assert "smaller than the rounding" in warnings[0]
    assert "what is left of the adapter's change" in warnings[1]


def test_rounding_to_the_base_leaves_nothing_and_to_the_merge_everything():
    seen, change = torch.randn(4, 8), torch.randn(4, 8)
    for rounded, left in ((seen, 0.0), (seen + change, 1.0), (seen + change / 2, 0.5)):
        loss = Loss("x")
        loss.add(seen[:2], (seen + change)[:2], rounded[:2])
        loss.add(seen[2:], (seen + change)[2:], rounded[2:])
        assert loss.survived == pytest.approx(left, abs=1e-5)


def test_files_may_be_divided_and_the_index_names_every_part(tmp_path):
    base = save_plain(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter")
    words = {"packing": packing_of("int4"), "max_shard_bytes": 5000}
    report = merge_shards(base, adapter, tmp_path / "merged", **words)
    index = json.loads((tmp_path / "merged/model.safetensors.index.json").read_text())
    held = {}
    for file in (tmp_path / "merged").glob("*.safetensors"):
        held |= dict.fromkeys(load_file(file), file.name)
    assert index["weight_map"] == held
    assert report.shards > 3
    assert index["metadata"]["total_size"] == report.bytes


def test_a_merge_that_is_not_finite_is_refused(tmp_path):
    base = save_plain(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    save_file({name: value * float("inf") for name, value in load_file(file).items()}, file)
    with pytest.raises(EngineError, match="not finite"):
        merge_shards(base, adapter, tmp_path / "merged", packing=packing_of("nf4"))
    assert not (tmp_path / "merged").exists()


def test_a_model_that_transformers_does_not_have_is_refused(tmp_path):
    base = save_plain(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"model_type": "newt"}))
    with pytest.raises(ModelError, match="newt"):
        merge_shards(base, adapter, tmp_path / "merged", packing=packing_of("nf4"))


@pytest.mark.parametrize(
    ("quant", "size", "search"),
    [
        *((None, 64, 0), (None, None, 4), ("mxfp4", 64, 0), ("nf4", 0, 0), ("int8", None, 4)),
        *(("nf4", None, -1), ("nf4", None, 257)),
    ],
)
def test_flags_that_contradict_each_other_are_refused(quant, size, search):
    with pytest.raises(UsageError):
        choose_packing(quant, size, search)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    """Adapters of the engine: on a plain base, on one packed while loading, on a 4-bit folder."""
    folder = tmp_path_factory.mktemp("trained")
    plain = Path(resolve_model("tiny:llama"))
    packed = folder / "packed"
    model = AutoModelForCausalLM.from_pretrained(plain, quantization_config=FourBitConfig("nf4"))
    model.save_pretrained(packed)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (plain / name).is_file():
            shutil.copy(plain / name, packed / name)
    turns = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}]
    (folder / "chat.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 8)
    found = {"plain": plain, "packed": packed}
    for name, base, method in (
        ("lora", plain, "lora"),
        ("qlora", plain, "qlora"),
        ("on-4-bit", packed, "qlora"),
    ):
        config = {"model": str(base), "dataset": folder / "chat.jsonl", "output": folder / name}
        options = {"precision": "fp32", "max_steps": 2, "lora_r": 4, "learning_rate": 5e-2}
        train(load_config(config | options | {"method": method}))
        found[name] = folder / name
    config |= {"output": folder / "continued", "adapter": folder / "on-4-bit"}
    train(load_config(config | options | {"method": "qlora"}))
    return found | {"continued": folder / "continued"}


@pytest.mark.parametrize(
    ("adapter", "base", "flags"),
    [
        ("lora", "plain", ["--quant", "int8"]),
        ("lora", "plain", ["--quant", "nf4", "--quant-search", "4"]),
        ("qlora", "plain", ["--quant", "nf4", "--precision", "fp32"]),
        ("on-4-bit", "packed", ["--quant", "nf4"]),
        ("on-4-bit", "packed", ["--quant", "mxfp4"]),
        ("on-4-bit", "packed", []),
        ("continued", "packed", ["--quant", "nf4"]),
    ],
    ids=lambda value: "".join(value),
)
def test_the_command_verifies_and_the_doctor_finds_nothing(
    adapter, base, flags, trained, tmp_path, capsys
):
    out = tmp_path / "out"
    words = map(str, (trained[base], trained[adapter], out))
    assert 0 == main(["merge", *words, "--verify", *flags])
    said = capsys.readouterr().out
    assert "verify: logits differ by" in said
    assert ("rounding to few bits moves" in said) == bool(flags)
    assert 0 == doctor([str(out), "--base", str(trained[base])]), capsys.readouterr().out


def test_a_wrong_level_is_not_published(trained, tmp_path, monkeypatch, capsys):
    import mudpuppy.adapters.repack as repack

    whole = repack._quantise
    monkeypatch.setattr(
        repack, "_quantise", lambda form, merged, *rest: whole(form, merged.roll(1, 1), *rest)
    )
    words = [str(trained["plain"]), str(trained["lora"]), str(tmp_path / "out")]
    assert 3 == main(["merge", *words, "--verify", "--quant", "int8"])
    assert "nothing was published" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
