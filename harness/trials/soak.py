"""Train again and again in one process, and measure what each cycle leaves behind.

A cycle is load, attach, train, save, merge and unload. Cycles go on until every slope is known well
enough to say whether it lies above its bound, or until their number is used up.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import psutil
from pydantic import BaseModel, ConfigDict, Field

from harness.facts.trials import Growth, Soak
from harness.observations import Observations
from harness.phases import run_phase
from harness.trials.order import Order
from harness.trials.slope import LEAST, fit_slope
from mudpuppy.config_check import load_config
from mudpuppy.files import write_json_atomic
from mudpuppy.preflight import preflight

SOAK_FILE = "soak.json"
"""What the phase measured so far, for the leader; also what is left when the phase dies."""


class SoakOptions(BaseModel):
    """Settings of the trial, as a scenario's `options` give them."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    cycles: int = Field(default=16, ge=LEAST)
    """Cycles after the warm-up, at least."""
    max_cycles: int = Field(default=64, ge=LEAST)
    """Cycles after the warm-up, at most."""
    warmup: int = Field(default=6, ge=0)
    """First cycles that do not count: caches and pools fill."""
    bytes_per_cycle: float = Field(default=128 * 1024, gt=0)
    """Growth of host or device memory per cycle that is not yet a finding: caches of Python and of
    the libraries grow by 50 to 75 kB a run (measured), a tiny model that is kept by 1.8 MB."""
    handles_per_cycle: float = Field(default=0.1, gt=0)
    """The same for open files and for threads."""
    keep_models: bool = False
    """Plants a leak: a list keeps every model, so that the trial is seen to find one."""


def perform(order: Order) -> Observations:
    """Run the cycles in one phase.

    Raises:
        UsageError: the engine refuses the settings.
        PhaseEnded: the phase died; the cycles until then are in `soak.json`.
    """
    options = SoakOptions.model_validate(order.options)
    preflight(load_config({**order.config, "output": order.folder / "cycle"}))
    order.import_engine()
    run_phase("soaking", lambda: _soak(order, options))
    measured = json.loads((order.folder / SOAK_FILE).read_text(encoding="utf-8"))
    return Observations(ending="measured", trial=measured)


class ModelKeeper:
    """A watcher that keeps every model: the leak to be found."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def on_prepared(self, *words: Any) -> None:
        """Do nothing before training."""
        del words

    def on_fitted(self, model: Any) -> None:
        """Keep the model for good."""
        self.kept.append(model)


def _soak(order: Order, options: SoakOptions) -> None:
    """Be the phase: cycle, measure, write down, until it is decided."""
    keeper = ModelKeeper() if options.keep_models else None
    series: dict[str, list[float]] = {}
    for cycle in range(options.warmup + options.max_cycles):
        _cycle(order, keeper)
        if cycle < options.warmup:
            continue
        for quantity, value in measure_process().items():
            series.setdefault(quantity, []).append(value)
        count = cycle + 1 - options.warmup
        if count < LEAST:
            continue
        soak = describe(series, options)
        write_json_atomic(order.folder / SOAK_FILE, asdict(soak))
        if count >= options.cycles and all(map(is_decided, soak.growths)):
            return


def _cycle(order: Order, keeper: ModelKeeper | None) -> None:
    """Do one whole run and forget it."""
    folder = order.folder / "cycle"
    config = load_config({**order.config, "output": folder})
    order.train(config, watcher=keeper, records_dir=order.folder, say=lambda text: None)
    shutil.rmtree(folder)
    gc.collect()


def describe(series: Mapping[str, list[float]], options: SoakOptions) -> Soak:
    """Return the measurements with the line through each of them."""
    growths = []
    for quantity, values in series.items():
        slope, low, high = fit_slope(values)
        is_memory = quantity.endswith("memory")
        bound = options.bytes_per_cycle if is_memory else options.handles_per_cycle
        growths.append(
            Growth(
                quantity=quantity,
                slope=slope,
                low=low,
                high=high,
                bound=bound,
                values=tuple(values),
            )
        )
    cycles = options.warmup + max(map(len, series.values()))
    return Soak(cycles=cycles, warmup=options.warmup, growths=tuple(growths))


def is_decided(growth: Growth) -> bool:
    """Return whether the interval lies wholly on one side of the bound."""
    return growth.low > growth.bound or growth.high <= growth.bound


def measure_process() -> dict[str, float]:
    """Return resident bytes, open files and threads of this process, and bytes on the device.

    What the allocator holds free is given back first: it is no growth, and it is the noise.
    """
    _give_back_free_memory()
    me = psutil.Process()
    found = {
        "host memory": float(me.memory_info().rss),
        "open files": float(me.num_fds()),
        "threads": float(me.num_threads()),
    }
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()
        found["device memory"] = float(torch.cuda.memory_allocated())
    return found


def _give_back_free_memory() -> None:
    """Ask glibc to return free pages to the system; other libraries do it by themselves or not."""
    if os.uname().sysname != "Linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
