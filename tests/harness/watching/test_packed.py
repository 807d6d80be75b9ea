"""The grid of a GPTQ folder: its levels span what the base's weights span, group by group."""

import numpy as np
import pytest

from harness.watching.packed import measure_packed
from mudpuppy.engine import train
from mudpuppy.quant import gptq_matrix
from mudpuppy.tiny import resolve_model
from tests.harness.twin.runs import make_config


def reaches(folder):
    config = make_config(
        folder, "gptq", max_steps=None, learning_rate=None, gptq_group_size=32, rows=4
    )
    train(config, records_dir=folder)
    rows = folder / "rows.npz"
    np.savez(rows, first=np.arange(5, 40))
    layers = measure_packed(config.output / "gptq", resolve_model(config.model), rows)
    return [layer.reach for layer in layers]


def test_levels_span_what_the_weights_span(tmp_path):
    assert reaches(tmp_path) == pytest.approx([1.0] * 14, abs=0.01)


def test_a_grid_that_is_too_wide_shows(tmp_path, monkeypatch):
    make_grid = gptq_matrix._make_grid

    def wide(weight, config):
        return make_grid(1.2 * weight, config)

    monkeypatch.setattr(gptq_matrix, "_make_grid", wide)

    assert reaches(tmp_path) == pytest.approx([1.2] * 14, abs=0.02)
