"""What must have answered exists: a code that no probe has would be waited for, or never be."""

import pytest

from harness.matrix import load_cells
from harness.needs import Machine
from harness.registry import load_probes
from harness.required import BY_TRIAL, required_probes
from scenarios.loader import SHIPPED

FILES = sorted(path.stem for path in SHIPPED.glob("*.yaml"))
CODES = frozenset(probe.code for probe in load_probes())


@pytest.mark.parametrize("name", [name for name in FILES if name != "pairs"])
def test_what_cells_require_and_expect_is_a_probe(name: str):
    for cell in load_cells(name):
        if cell.expect.outcome == "trained":
            assert set(required_probes(cell)) <= CODES, cell.name
        assert set(cell.expect.findings) <= CODES, cell.name


def test_every_trial_requires_probes_that_exist():
    assert {code for codes in BY_TRIAL.values() for code in codes} <= CODES


@pytest.mark.parametrize(("gpus", "runs"), [(0, True), (1, False), (2, True)])
def test_two_processes_share_a_cpu_but_not_a_gpu(gpus: int, runs: bool):
    (cell,) = (one for one in load_cells("full") if one.name == "full-fp32-fsdp")

    assert runs is not bool(Machine(gpus=gpus).lacks(cell))
