"""The grid of a GPTQ folder: its levels span what the base's weights span, group by group."""

import numpy as np
import pytest

from harness.watching.packed import CalibrationWatcher, measure_packed
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
    make_grid = gptq_matrix.make_grid

    def wide(weight, config):
        return make_grid(1.2 * weight, config)

    monkeypatch.setattr(gptq_matrix, "make_grid", wide)

    assert reaches(tmp_path) == pytest.approx([1.2] * 14, abs=0.02)


@pytest.mark.parametrize(("bits", "ordered"), [(4, False), (3, True)])
def test_replaying_the_blocks_gives_the_errors_that_the_run_reports(tmp_path, bits, ordered):
    """Behind packed blocks, in the harness's own arithmetic; the second block shows the inputs."""
    more = {"gptq_bits": bits, "gptq_act_order": ordered, "gptq_static_groups": not ordered}
    config = make_config(
        tmp_path, "gptq", max_steps=None, learning_rate=None, gptq_group_size=32, rows=4, **more
    )
    rows = Calibrating()
    record = train(config, records_dir=tmp_path, watcher=rows)
    stored = tmp_path / "rows.npz"
    rows.watcher.conclude(stored)
    layers = measure_packed(config.output / "gptq", resolve_model(config.model), stored)
    reported = {one["name"]: one["gptq_error"] / 2 for one in record.quantisation["layers"]}
    assert len(layers) == len(reported) == 14
    for layer in layers:
        assert layer.replayed_error == pytest.approx(reported[layer.name], rel=3e-3), layer.name
    second = [layer for layer in layers if ".layers.1." in layer.name]
    # what the probe sees where a block was calibrated on the full model's outputs
    assert max(abs(one.error / one.replayed_error - 1) for one in second) > 0.02


class Calibrating:
    """Keeps the rows that calibrate."""

    def on_prepared(self, model, tokenizer, samples, eos_ids):
        self.watcher = CalibrationWatcher(model, len(samples))

    def on_fitted(self, model):
        pass
