"""The start-up check passes here for every format and block size, and names what is wrong."""

import pytest
import torch

from mudpuppy.errors import EngineError
from mudpuppy.quant.formats import FORMATS
from mudpuppy.quant.formats.interface import Format
from mudpuppy.quant.formats.selftest import check_round_trip, error_bound

every_format = pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)


@every_format
def test_it_passes_here(form):
    error = check_round_trip(form, "cpu")
    assert 0.75 * form.gaussian_error < error < error_bound(form, form.default_block_size)


@pytest.mark.parametrize("name", ["nf4", "int4"])
@pytest.mark.parametrize("size", [1, 2, 7, 32, 128, 1000, 65536])
def test_it_passes_with_every_block_size(name, size):
    assert check_round_trip(FORMATS[name], "cpu", size) < error_bound(FORMATS[name], size)


def other(spoil):
    """Let a device pack as `spoil` does: whatever is not the first matrix comes out spoilt."""
    calls = []
    original = Format.quantise

    def quantise(self, *words):
        calls.append(self)
        packed = original(self, *words)
        return packed if len(calls) == 1 else spoil(packed)

    return quantise


@every_format
def test_levels_packed_in_another_order_are_noticed(form, monkeypatch):
    swap = other(lambda p: p._replace(qweight=(p.qweight >> 4) | (p.qweight << 4)))
    monkeypatch.setattr(Format, "quantise", swap)
    with pytest.raises(
        EngineError, match=rf"the {form.name} round trip is wrong on cpu: .* levels"
    ):
        check_round_trip(form, "cpu")


@every_format
def test_scales_of_another_row_are_noticed(form, monkeypatch):
    monkeypatch.setattr(Format, "quantise", other(lambda p: p._replace(scales=p.scales.roll(1, 0))))
    with pytest.raises(EngineError, match=r"relative error \d"):
        check_round_trip(form, "cpu")


@every_format
@pytest.mark.parametrize(("tiles", "said"), [(False, "differ from the proc"), (True, "tiles in")])
def test_values_that_come_out_otherwise_are_noticed(form, tiles, said, monkeypatch):
    original = Format.dequantise_into
    calls = []

    def dequantise_into(self, packed, out, **parts):
        calls.append(out)
        original(self, packed, out, **parts)
        if (len(calls) > 1 and not tiles) or parts.get("rows") == (0, 5):
            out[3, 0] += 1.0

    monkeypatch.setattr(Format, "dequantise_into", dequantise_into)
    with pytest.raises(EngineError, match=said):
        check_round_trip(form, "cpu")


def test_a_coarse_grid_is_noticed(monkeypatch):
    form = FORMATS["nf4"]
    levels = tuple(round(level * 2) / 2 for level in form.levels)
    monkeypatch.setattr(type(form), "levels", levels)
    with pytest.raises(EngineError, match=r"relative error 0\.3"):
        check_round_trip(form, torch.device("cpu"))
