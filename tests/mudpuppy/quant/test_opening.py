"""Models of bitsandbytes open without it, value by value; and what is damaged does not."""

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from mudpuppy.errors import ModelError
from mudpuppy.quant.layer_files import find_layers
from mudpuppy.quant.linear4bit import Linear4bit
from mudpuppy.quant.opening import open_model, read_base, require_use
from mudpuppy.quant.registered import FourBitConfig
from mudpuppy.safefile import checkpoint_tensors
from mudpuppy.stored import Reader
from tests.mudpuppy.quant.tiny_llama import make_ids, make_llama

NF4 = """-1 -.6961928009986877 -.5250730514526367 -.39491748809814453 -.28444138169288635
    -.18477343022823334 -.09105003625154495 0 .07958029955625534 .16093020141124725
    .24611230194568634 .33791524171829224 .44070982933044434 .5626170039176941
    .7229568362236023 1"""
FP4 = [sign * size / 12 for sign in (1, -1) for size in (0, 0.0625, 8, 12, 4, 6, 2, 3)]
TABLES = {
    "nf4": np.array(NF4.split(), np.float32),
    "fp4": np.array(FP4, np.float32),
}
DECLARED = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}


def text(value: Any) -> torch.Tensor:
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


def pack(
    shape: tuple[int, int], kind: str = "nf4", block: int = 64, nested: bool = False, seed: int = 0
) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """Return a layer as bitsandbytes stores it, and its float32 values, made here in numpy."""
    chance = np.random.default_rng(seed)
    count = shape[0] * shape[1]
    levels = chance.integers(0, 16, count).astype(np.uint8)
    blocks = -(-count // block)
    state = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": list(shape)}
    padded = np.pad(levels, (0, count % 2))
    parts = {
        "weight": torch.from_numpy((padded[0::2] << 4) | padded[1::2])[:, None],
        "weight.quant_map": torch.tensor(TABLES[kind]),
    }
    absmax = (chance.random(blocks) + 0.5).astype(np.float32)
    stored = torch.from_numpy(absmax)
    if nested:
        table = np.sort(chance.uniform(-1, 1, 256)).astype(np.float32)
        outer = (chance.random(-(-blocks // 256)) * 0.1).astype(np.float32)
        places, offset = chance.integers(0, 256, blocks).astype(np.uint8), np.float32(0.7)
        absmax = table[places] * outer[np.arange(blocks) // 256] + offset
        stored = torch.from_numpy(places)
        parts["weight.nested_absmax"] = torch.from_numpy(outer)
        parts["weight.nested_quant_map"] = torch.from_numpy(table)
        state |= {"nested_blocksize": 256, "nested_offset": float(offset)}
        state |= {"nested_dtype": "float32"}
    parts["weight.absmax"] = stored
    parts[f"weight.quant_state.bitsandbytes__{kind}"] = text(state)
    values = TABLES[kind][levels] * np.repeat(absmax, block)[:count]
    return parts, values.reshape(shape)


def write_layer(folder: Path, parts: dict[str, torch.Tensor], name: str = "layer") -> Path:
    folder.mkdir(exist_ok=True)
    tensors = {f"{name}.{part}": value.contiguous() for part, value in parts.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def read_layers(folder: Path):
    return find_layers(folder, checkpoint_tensors(folder), DECLARED, Reader())


@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 150),
    kind=st.sampled_from(["nf4", "fp4"]),
    block=st.sampled_from([32, 64, 4096]),
    nested=st.booleans(),
    start=st.integers(0, 8),
    seed=st.integers(0, 3),
)
def test_any_rows_of_any_layer_have_the_stored_values(
    tmp_path_factory, rows, columns, kind, block, nested, start, seed
):
    """Odd widths, blocks that reach into the next row, rows that share a byte: all bits equal."""
    parts, values = pack((rows, columns), kind, block, nested, seed)
    folder = write_layer(tmp_path_factory.getbasetemp() / "any", parts)
    layer = read_layers(folder)["layer"]
    start = min(start, rows - 1)
    packed = layer.read(Reader(), start)
    found = layer.format.dequantise(packed, torch.float32).numpy()
    assert found.dtype == np.float32
    assert np.array_equal(found, values[start:])


def bnb_model(folder: Path, **words: Any) -> tuple[Path, dict[str, np.ndarray]]:
    """Write a Llama whose linear layers bitsandbytes quantised, and return their values."""
    model = make_llama(dtype=torch.bfloat16, hidden_size=40, intermediate_size=76)
    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    state, values = load_file(path), {}
    for number, name in enumerate([name for name in state if name.endswith("_proj.weight")]):
        module = name.removesuffix(".weight")
        parts, values[module] = pack(tuple(state.pop(name).shape), seed=number, **words)
        values[module] = values[module] / 8
        parts["weight.absmax"] = parts["weight.absmax"] / 8
        state |= {f"{module}.{part}": value for part, value in parts.items()}
    save_file(state, path, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = DECLARED
    (folder / "config.json").write_text(json.dumps(config))
    return folder, values


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=make_ids()).logits


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_a_model_opens_with_the_values_and_saves_as_ours(kind, tmp_path):
    folder, values = bnb_model(tmp_path / "bnb", kind=kind)
    plain = make_llama(dtype=torch.bfloat16, hidden_size=40, intermediate_size=76)
    for name, value in values.items():
        plain.get_submodule(name).weight.data = torch.from_numpy(value).bfloat16()
    found = open_model(folder, torch.bfloat16)
    layers = [m for m in found.modules() if isinstance(m, Linear4bit)]
    assert len(layers) == 14
    assert {layer.block_size for layer in layers} == {4}  # 40 and 76 columns, blocks of 64
    assert torch.equal(logits(found), logits(plain))
    assert found.config._name_or_path == found.name_or_path == str(folder)
    found.save_pretrained(tmp_path / "ours")
    said = json.loads((tmp_path / "ours/config.json").read_text())["quantization_config"]
    assert (said["quant_method"], said["format"]) == ("mudpuppy", f"bnb-{kind}")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert torch.equal(logits(again), logits(found))


def test_levels_in_other_numbers_are_the_same_bytes(tmp_path):
    """bitsandbytes stores them as bf16 where FSDP is to shard them."""
    parts, values = pack((8, 64))
    parts["weight"] = parts["weight"].flatten().view(torch.bfloat16)[:, None]
    layer = read_layers(write_layer(tmp_path, parts))["layer"]
    assert np.array_equal(layer.format.dequantise(layer.read(Reader())).numpy(), values)


def test_int8_opens_as_plain_layers(tmp_path):
    model = make_llama(dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    name = "model.layers.0.mlp.down_proj"
    weight = state[f"{name}.weight"].float().numpy()
    scale = np.abs(weight).max(1)
    levels = np.round(weight * (127 / scale[:, None])).astype(np.int8)
    state[f"{name}.weight"], state[f"{name}.SCB"] = (
        torch.from_numpy(levels),
        torch.from_numpy(scale),
    )
    state[f"{name}.weight_format"] = torch.tensor(0, dtype=torch.uint8)
    save_file(state, path, {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {**DECLARED, "load_in_4bit": False, "load_in_8bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = open_model(tmp_path, torch.float32)
    layer = found.get_submodule(name)
    wanted = levels.astype(np.float32) * scale[:, None] * np.float32(1 / 127)
    assert type(layer) is torch.nn.Linear
    assert np.array_equal(layer.weight.detach().numpy(), wanted)
    packed = open_model(tmp_path, torch.float32, fourbit=FourBitConfig())
    assert isinstance(packed.get_submodule(name), Linear4bit)
    assert torch.isfinite(logits(packed)).all()


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_the_real_one_has_the_same_values_and_logits(kind, nested, tmp_path):
    """On the CPU: values in fp32, bf16 and fp16, and logits in bf16, bit for bit."""
    import bitsandbytes.functional

    make_llama(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=nested,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    words = {"dtype": torch.bfloat16, "device_map": {"": "cpu"}}
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", quantization_config=settings, **words
    )
    theirs.save_pretrained(tmp_path / "bnb")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "bnb", **words).train()
    ours = open_model(tmp_path / "bnb", torch.bfloat16)
    layers = {n: m for n, m in ours.named_modules() if isinstance(m, Linear4bit)}
    assert len(layers) == 14
    for name, layer in layers.items():
        weight = theirs.get_submodule(name).weight
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            weight.quant_state.dtype = dtype
            wanted = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
            assert torch.equal(layer.format.dequantise(layer.packed, dtype), wanted)
        weight.quant_state.dtype = torch.bfloat16
    assert torch.equal(logits(ours), logits(theirs))


# --- damage


def change_state(parts, **changes):
    key = next(part for part in parts if "quant_state" in part)
    parts[key] = text({**json.loads(bytes(parts[key].tolist())), **changes})


def drop(part):
    return lambda parts: parts.pop(part)


def spoil(part, value):
    def change(parts):
        parts[part].view(-1)[0] = value

    return change


DAMAGES = [
    (drop("weight"), "MP-Q02", "the part weight is missing"),
    (drop("weight.absmax"), "MP-Q02", "the part weight.absmax is missing"),
    (drop("weight.quant_map"), "MP-Q02", "the part weight.quant_map is missing"),
    (drop("weight.nested_absmax"), "MP-Q02", "the part weight.nested_absmax is missing"),
    (drop("weight.quant_state.bitsandbytes__nf4"), "MP-Q02", "quant_state is missing"),
    (
        lambda p: change_state(p, blocksize=128),
        "MP-Q03",
        r"absmax has the shape \[24\], and \[12\]",
    ),
    (lambda p: change_state(p, blocksize=0), "MP-Q03", "names the block size 0"),
    (lambda p: change_state(p, blocksize="64"), "MP-Q03", "names the block size '64'"),
    (lambda p: change_state(p, shape=[12, 120]), "MP-Q03", r"weight has the shape \[750, 1\]"),
    (lambda p: change_state(p, shape=[12, -1]), "MP-Q03", "names the shape"),
    (lambda p: change_state(p, shape=[12, 125, 1]), "MP-Q03", "names the shape"),
    (lambda p: change_state(p, blocksize=65), "MP-Q03", "names the block size 65, none of"),
    (lambda p: change_state(p, quant_type="fp4"), "MP-Q01", "of nf4 names the type 'fp4'"),
    *(
        (
            lambda p, size=size: change_state(p, nested_blocksize=size),
            "MP-Q03",
            f"nested block size {size} is none",
        )
        for size in (0, 16, 128, True)
    ),
    (lambda p: change_state(p, nested_offset=True), "MP-Q04", "nested offset True is no number"),
    (
        lambda p: change_state(p, nested_offset=10**400),
        "MP-Q04",
        "nested offset a number of 1329 bits",
    ),
    (lambda p: change_state(p, nested_offset=math.nan), "MP-Q04", "nested offset nan"),
    (lambda p: change_state(p, nested_offset="x"), "MP-Q04", "nested offset 'x' is no number"),
    (spoil("weight.nested_absmax", float("nan")), "MP-Q04", "1 of 1 nested absmax are NaN"),
    (spoil("weight.nested_absmax", -1.0), "MP-Q04", "nested absmax are below zero"),
    (spoil("weight.quant_map", -0.9), "MP-Q01", "quant_map says -0.9 for level 0"),
    (spoil("weight.quant_map", float("nan")), "MP-Q01", "quant_map says nan for level 0"),
]


@pytest.mark.parametrize(("change", "code", "message"), DAMAGES)
def test_a_damaged_layer_is_refused_by_code(change, code, message, tmp_path):
    parts, _ = pack((12, 125), nested=True)
    change(parts)
    folder = write_layer(tmp_path, parts)
    with pytest.raises(ModelError, match=message) as caught:
        [layer.read(Reader()) for layer in read_layers(folder).values()]
    assert caught.value.code == code
    assert "layer" in caught.value.message


def test_a_state_that_is_no_json_is_refused(tmp_path):
    parts, _ = pack((4, 64))
    parts["weight.quant_state.bitsandbytes__nf4"] = torch.zeros(9, dtype=torch.uint8)
    with pytest.raises(ModelError, match=r"MP-Q03.*quant_state is no JSON"):
        read_layers(write_layer(tmp_path, parts))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_plain_absmax_that_no_writer_makes_are_refused(value, tmp_path):
    parts, _ = pack((4, 64))
    parts["weight.absmax"][2] = value
    layer = read_layers(write_layer(tmp_path, parts))["layer"]
    with pytest.raises(ModelError, match=r"MP-Q04.*1 of 4 absmax"):
        layer.read(Reader())


def test_a_model_of_another_shape_is_refused(tmp_path):
    folder, _ = bnb_model(tmp_path)
    path = folder / "model.safetensors"
    state = load_file(path)
    name = "model.layers.1.mlp.up_proj"
    state = {key: value for key, value in state.items() if not key.startswith(name)}
    parts, _ = pack((40, 76))
    save_file(state | {f"{name}.{part}": v for part, v in parts.items()}, path, {"format": "pt"})
    with pytest.raises(ModelError, match=r"MP-Q03.*up_proj: .*\[40, 76\], the model's \[76, 40\]"):
        open_model(folder)


def test_an_unpacked_model_that_declares_bitsandbytes_is_refused(tmp_path):
    make_llama().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = DECLARED
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"MP-Q01.*no layer is packed"):
        open_model(tmp_path)


def declare_as(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] = {**config["quantization_config"], **changes}
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("fourbit", [None, FourBitConfig()])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"load_in_8bit": True}, "MP-Q01.*both load_in_4bit and load_in_8bit are true"),
        ({"load_in_8bit": "no"}, "MP-Q01.*load_in_8bit is 'no', not true or false"),
        ({"load_in_8bit": True, "load_in_4bit": False}, "MP-Q03.*weight is of the type U8"),
        ({"quant_method": None}, "MP-Q03.*weight is of the type U8.*lost its quantization_config"),
    ],
)
def test_an_edited_declaration_is_refused(changes, message, fourbit, tmp_path):
    folder, _ = bnb_model(tmp_path)
    declare_as(folder, **changes)
    with pytest.raises(ModelError, match=message):
        open_model(folder, fourbit=fourbit)


@pytest.mark.parametrize(("scale", "dtype"), [(1e6, torch.float16), (3e38, torch.float32)])
def test_scales_beyond_the_compute_type_are_refused_with_the_folder(scale, dtype, tmp_path):
    folder, _ = bnb_model(tmp_path)
    path = folder / "model.safetensors"
    state = load_file(path)
    name = "model.layers.1.mlp.up_proj"
    state[f"{name}.weight.absmax"][3] = scale
    save_file(state, path, {"format": "pt"})
    kind = str(dtype)[6:]
    with pytest.raises(ModelError, match=rf"MP-Q04: {folder}: {name}: scales up to .*{kind}"):
        open_model(folder, dtype)


def test_a_base_in_4_bits_is_for_qlora(tmp_path):
    folder, _ = bnb_model(tmp_path)
    base = read_base(folder)
    require_use(base, method="qlora", quant=None)
    with pytest.raises(ModelError, match=r"MP-Q06.*--method lora needs a plain one") as caught:
        require_use(base, method="lora", quant=None)
    assert "--method qlora" in caught.value.hint
    with pytest.raises(ModelError, match=r"MP-Q06.*--quant says int4"):
        require_use(base, method="qlora", quant="int4")
