"""The packed tensors have the standard layout, and nothing is lost in them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.selftest.packing import pack_words
from mudpuppy.quant.gptq_pack import (
    dequantise_gptq,
    levels_per_unit,
    pack_matrix,
    pack_rows,
    unpack_rows,
)

SIZES = st.tuples(st.sampled_from([2, 3, 4, 8]), st.integers(1, 4), st.integers(1, 9))


@settings(max_examples=50, deadline=None)
@given(SIZES, st.integers(0, 2**31))
def test_packed_levels_come_back(sizes, seed):
    bits, units, columns = sizes
    rows = units * levels_per_unit(bits)
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 2**bits, (rows, columns), generator=generator)
    packed = pack_rows(levels, bits)
    assert packed.dtype == torch.int32
    assert packed.shape == (rows * bits // 32, columns)
    assert torch.equal(unpack_rows(packed, bits).long(), levels)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_words_are_one_stream_of_bits_the_lowest_first(bits):
    generator = torch.Generator().manual_seed(bits)
    levels = torch.randint(0, 2**bits, (64, 5), generator=generator)
    assert pack_rows(levels, bits).numpy().tolist() == pack_words(levels.numpy(), bits).tolist()


def test_levels_of_three_bits_cross_words_as_the_reference_packs_them():
    """Level 10 has two bits in the first word, level 21 one in the second (AutoGPTQ's packing)."""
    levels = torch.zeros(32, 1, dtype=torch.long)
    levels[10], levels[21] = 7, 5
    first, second, third = (word & 0xFFFFFFFF for word in pack_rows(levels, 3).flatten().tolist())
    assert first == 0b11 << 30
    assert second == 1 | (5 & 1) << 31
    assert third == 5 >> 1


@settings(max_examples=30, deadline=None)
@given(SIZES, st.integers(1, 20), st.booleans(), st.integers(0, 2**31))
def test_a_packed_matrix_dequantises_to_its_definition(sizes, group_size, shuffled, seed):
    bits, in_words, out_words = sizes
    rows, columns = (count * levels_per_unit(bits) for count in (out_words, in_words))
    generator = torch.Generator().manual_seed(seed)
    g_idx = torch.arange(columns) // group_size
    if shuffled:
        g_idx = g_idx[torch.randperm(columns, generator=generator)]
    groups = int(g_idx.max()) + 1
    levels = torch.randint(0, 2**bits, (rows, columns), generator=generator)
    zeros = torch.randint(1, 2**bits, (groups, rows), generator=generator)
    scales = torch.rand(groups, rows, generator=generator).half()
    tensors = pack_matrix(levels, scales, zeros, g_idx, bits)
    expected = torch.empty(rows, columns)
    for j in range(columns):
        group = int(g_idx[j])
        expected[:, j] = (levels[:, j] - zeros[group]).float() * scales[group].float()
    assert torch.equal(dequantise_gptq(tensors, bits, torch.float32), expected)
    assert tensors.qweight.shape == (columns * bits // 32, rows)
    assert tensors.qzeros.shape == (groups, rows * bits // 32)


def test_the_symmetric_zero_is_stored_as_sevens():
    """The value that other readers of version 1 expect for a 4-bit symmetric zero of 8."""
    levels, zeros = torch.zeros(8, 8), torch.full((1, 8), 8)
    tensors = pack_matrix(levels, torch.ones(1, 8).half(), zeros, torch.zeros(8), 4)
    assert tensors.qzeros.tolist() == [[0x77777777]]


def test_the_first_input_is_the_lowest_nibble():
    levels = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 15]]).T
    assert pack_rows(levels, 4).item() == 0xF7654321 - 2**32


@pytest.mark.parametrize(
    ("levels", "bits", "message"),
    [
        (torch.zeros(7, 2), 4, "7 rows do not fill words: 8 levels do"),
        (torch.zeros(16, 2), 3, "16 rows do not fill words: 32 levels do"),
        (torch.full((8, 2), 16), 4, "levels outside 0..15"),
        (torch.full((8, 2), -1), 4, "levels outside 0..15"),
        (torch.zeros(8, 2), 5, "bits must be one of"),
    ],
)
def test_what_does_not_fit_is_refused(levels, bits, message):
    with pytest.raises(ValueError, match=message):
        pack_rows(levels, bits)
