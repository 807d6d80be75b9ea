"""Timings of the primitives and of single cells, held by pytest-benchmark.

    make bench-timings
    pytest benchmarks/test_timings.py -m pressure --benchmark-autosave --benchmark-compare

No test suite collects this folder: what a shared machine measures is no pass and no failure.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.doctor import diagnose
from harness.environment import describe_environment
from harness.execution import RunOptions
from harness.judge import judge_cell
from harness.matrix import load_cells
from harness.pools.warm import WarmPool
from harness.prepare import prepare_model
from harness.results import Outcome
from harness.runner import run_cells
from mudpuppy.data.packing import plan_rows
from mudpuppy.quant.fake_quant import fake_quant_linear
from mudpuppy.quant.formats import FORMATS
from mudpuppy.rules import every_single_feature
from mudpuppy.tiny import resolve_model

pytestmark = pytest.mark.pressure
SIDE = 1024
"""Rows and columns of the matrices."""


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    """One linear layer's weight, (1024, 1024) in fp32."""
    return torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pool() -> Iterator[WarmPool]:
    """Workers forked from a warm process."""
    with closing(WarmPool()) as made:
        yield made


def test_the_whole_rule_table(benchmark: Any) -> None:
    """Decide every method x precision x single feature."""
    assert benchmark(every_single_feature)


def test_expanding_the_seed_matrix(benchmark: Any) -> None:
    """Read a scenario file and expand it."""
    assert benchmark(load_cells, "seed")


def test_planning_packed_rows(benchmark: Any) -> None:
    """Plan the rows of 10,000 samples."""
    lengths = [16 + (i * 7919) % 500 for i in range(10_000)]
    assert benchmark(plan_rows, lengths, 1024, seed=0)


def test_quantising_to_4_bits(benchmark: Any, weight: torch.Tensor) -> None:
    """Quantise a million weights."""
    assert benchmark(FORMATS["nf4"].quantise, weight)


def test_dequantising_4_bits(benchmark: Any, weight: torch.Tensor) -> None:
    """Dequantise a million weights."""
    packed = FORMATS["nf4"].quantise(weight)
    assert benchmark(FORMATS["nf4"].dequantise, packed).shape == (SIDE, SIDE)


def test_a_fake_quantised_layer(benchmark: Any, weight: torch.Tensor) -> None:
    """Multiply 64 rows by a fake-quantised matrix."""
    rows = torch.randn(64, SIDE, generator=torch.Generator().manual_seed(1))
    assert benchmark(fake_quant_linear, rows, weight, None).shape == (64, SIDE)


def test_a_static_diagnosis(benchmark: Any) -> None:
    """Diagnose a healthy tiny model."""
    folder = Path(resolve_model("tiny:llama"))
    assert benchmark(diagnose, folder).exit_code == 0


@pytest.mark.parametrize("name", [cell.name for cell in load_cells("seed")])
def test_a_cell_of_the_seed_matrix(
    benchmark: Any, pool: WarmPool, tmp_path: Path, name: str
) -> None:
    """Run one cell warm, judged as always."""
    (cell,) = (one for one in load_cells("seed") if one.name == name)
    prepare_model([cell], print)
    options = RunOptions(judge=judge_cell, pool=pool, environment=describe_environment())
    (result,) = benchmark.pedantic(
        lambda: list(run_cells([cell], tmp_path, options)), rounds=3, warmup_rounds=1
    )
    assert result.outcome in (Outcome.PASSED, Outcome.REJECTED_AS_EXPECTED)
