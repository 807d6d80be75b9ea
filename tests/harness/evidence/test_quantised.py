"""Layers of few bits: what is unpacked here is what others packed."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.doctor import diagnose
from harness.evidence.quantised.bitstream import unpack_awq, unpack_nibbles, unpack_words
from harness.evidence.quantised.names import split_part
from harness.findings import Status
from harness.selftest.packing import pack_awq, pack_nf4, pack_words
from harness.selftest.ward import Recovery
from mudpuppy.quant.gptq_pack import pack_rows


@given(bits=st.sampled_from([2, 3, 4, 8]), seed=st.integers(0, 99))
def test_words_come_back_as_they_were_packed(bits, seed):
    levels = np.random.default_rng(seed).integers(0, 2**bits, (96, 5))
    words = pack_words(levels, bits)
    assert words.shape == (96 * bits // 32, 5)
    assert (unpack_words(words.view(np.uint32), bits) == levels).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_words_are_those_of_the_engines_own_packer(bits):
    levels = torch.randint(0, 2**bits, (64, 7))
    theirs = pack_rows(levels, bits).numpy()
    assert (pack_words(levels.numpy(), bits) == theirs).all()
    assert (unpack_words(theirs.view(np.uint32), bits) == levels.numpy()).all()


def test_awq_interleaves_eight_outputs_of_a_word():
    parts = pack_awq(np.random.default_rng(0).normal(size=(16, 32)).astype(np.float32))
    levels = unpack_awq(parts["qweight"].view(np.uint32))
    assert levels.shape == (32, 16)
    word = int(parts["qweight"].view(np.uint32)[0, 0])
    nibbles = [(word >> (4 * place)) & 15 for place in range(8)]
    assert [levels[0, output] for output in (0, 2, 4, 6, 1, 3, 5, 7)] == nibbles


def test_nf4_is_what_bitsandbytes_packs():
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(64, 128)
    levels, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    mine = pack_nf4(weight.numpy())
    assert (mine["weight"] == levels.numpy()).all()
    assert np.allclose(mine["weight.absmax"], state.absmax.numpy())
    assert np.allclose(mine["weight.quant_map"], state.code.numpy(), atol=1e-6)


def test_bitsandbytes_keeps_the_earlier_level_high():
    raw = np.array([0x1F, 0x20], np.uint8)
    assert unpack_nibbles(raw, high_first=True).tolist() == [1, 15, 2, 0]
    assert unpack_nibbles(raw, high_first=False).tolist() == [15, 1, 0, 2]


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    return Recovery(tmp_path_factory.mktemp("ward"))


ITEM = {"F32": 4, "F16": 2, "I32": 4, "U8": 1, "F8_E4M3": 1, "I64": 8}


@settings(max_examples=12, deadline=None)
@given(
    name=st.sampled_from(["gptq-v2-asymmetric", "awq-gemm", "bnb-nf4-double", "fp8-tiles"]),
    place=st.integers(0, 99),
    dtype=st.sampled_from(sorted(ITEM)),
    shape=st.lists(st.sampled_from([0, 1, 3, 8, 32, 128]), max_size=3),
)
def test_parts_of_any_type_and_shape_are_judged_without_a_crash(ward, name, place, dtype, shape):
    with ward.copy(name) as patient:
        path = patient.path / "model.safetensors"
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        header.pop("__metadata__", None)
        body = {k: raw[8 + length :][slice(*v["data_offsets"])] for k, v in header.items()}
        parts = sorted(key for key in header if "layers.1.mlp.up_proj" in key)
        chosen = parts[place % len(parts)]
        header[chosen] = {"dtype": dtype, "shape": shape}
        body[chosen] = bytes(ITEM[dtype] * math.prod(shape))
        start = 0
        for key, entry in header.items():
            entry["data_offsets"] = [start, start + len(body[key])]
            start += len(body[key])
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(body.values()))
        found = diagnose(patient.path, **patient.options)
    assert not [(r.name, r.reason) for r in found.probes if r.status is Status.CRASHED]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("model.layers.0.q_proj.qweight", ("model.layers.0.q_proj", "qweight")),
        ("a.b.scales", ("a.b", "scales")),
        ("a.weight.absmax", ("a", "weight.absmax")),
        ("a.weight.b.weight.absmax", ("a.weight.b", "weight.absmax")),
        ("a.weight.quant_state.bitsandbytes__nf4", ("a", "weight.quant_state.bitsandbytes__nf4")),
        ("experts.gate_up_proj_blocks", ("experts.gate_up_proj", "blocks")),
        ("experts.gate_up_proj_scales", ("experts.gate_up_proj", "scales")),
        ("a.weight_scale_inv", ("a", "weight_scale_inv")),
        ("a.weight", ("a.weight", "")),
        ("qweight", ("qweight", "")),
        (".weight.absmax", (".weight.absmax", "")),
        ("_blocks", ("_blocks", "")),
        ("a.absmax", ("a.absmax", "")),
        ("", ("", "")),
    ],
)
def test_names_of_parts_are_taken_apart(name, found):
    assert split_part(name) == found
