"""pytest plugin: `pytest -m pressure` runs the cells of a matrix, one item each.

Imports only pytest when it is loaded; the harness comes in when a scenario file is collected. The
seed matrix is collected where pytest looks into `scenarios/`; `--pressure-matrix` names another.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from harness.execution import Judge
    from harness.findings import Diagnosis
    from harness.gpus import GpuSlots
    from harness.matrix import Cell
    from harness.pools.base import Pool
    from harness.results import CellResult

SEED = Path(__file__).resolve().parents[1] / "scenarios" / "seed.yaml"
"""Collected unless another file is named."""
OUTCOME = "pressure_outcome"
"""Property of a report that carries the cell's outcome, also through xdist and into JUnit."""
TIMEOUT_MARGIN_S = 60.0
"""What pytest-timeout grants an item beyond the limit of its cell, which ends it first."""

RUN_FOLDER = pytest.StashKey[Path]()
POOL = pytest.StashKey["Pool"]()


class CellFailure(Exception):
    """A cell did not come out as expected; the result says why."""

    def __init__(self, result: CellResult) -> None:
        super().__init__(result.message)
        self.result = result


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the matrix."""
    group = parser.getgroup("pressure", "the pressure matrix (pytest -m pressure)")
    group.addoption("--pressure-matrix", metavar="FILE", help="scenario file to run")
    group.addoption("--pressure-model", metavar="MODEL", help="model for every cell")
    group.addoption(
        "--pressure-device",
        metavar="LIST",
        default="auto",
        help="GPUs to share out, one cell each: numbers with commas, auto (all), or cpu for none",
    )
    group.addoption(
        "--pressure-select",
        metavar="WORD",
        action="append",
        default=[],
        help="only these cells, words as of mudpuppy-pressure run --select; may be repeated",
    )
    group.addoption("--pressure-output", metavar="DIR", help="keep the cells' folders here")


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark, and have the named scenario file collected."""
    config.addinivalue_line("markers", "pressure: a cell of the pressure matrix (minutes)")
    if config.getoption("--pressure-device") == "cpu":
        from harness.gpus import VISIBLE

        os.environ.update(dict.fromkeys(VISIBLE, "-1"))
    wanted = config.getoption("--pressure-matrix")
    if wanted is None or hasattr(config, "workerinput"):  # an xdist worker is told by its master
        return
    wanted = _find(wanted)
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args[:] = []  # the file alone, and not every test beside it
    config.args.append(str(wanted))


def _find(word: str) -> Path:
    """Return the scenario file that is named, by its path or as a shipped one.

    Raises:
        pytest.UsageError: there is none.
    """
    from mudpuppy.errors import UsageError
    from scenarios.loader import find_scenarios

    try:
        return find_scenarios(word)
    except UsageError as error:
        raise pytest.UsageError(f"--pressure-matrix {word}: {error}") from None


@pytest.fixture
def assert_healthy() -> Callable[..., Diagnosis]:
    """Return `harness.doctor.assert_healthy`: it raises with the findings of a sick checkpoint."""
    from harness.doctor import assert_healthy as check

    return check


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect the one scenario file that is wanted; other YAML files are none of our business."""
    if file_path.suffix != ".yaml":
        return None
    wanted = parent.config.getoption("--pressure-matrix")
    chosen = SEED if wanted is None else _find(wanted).resolve()
    if file_path.resolve() != chosen:
        return None
    collector: pytest.Collector = MatrixFile.from_parent(parent, path=file_path)
    return collector


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Remove the temporary folder of the cells unless somebody may want to look into it."""
    folder = session.config.stash.get(RUN_FOLDER, None)
    is_named = session.config.getoption("--pressure-output") is not None
    if folder is not None and not is_named and exitstatus == pytest.ExitCode.OK:
        shutil.rmtree(folder, ignore_errors=True)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the processes that cells were forked from."""
    pool = config.stash.get(POOL, None)
    if pool is not None:
        pool.close()
        del config.stash[POOL]


class MatrixFile(pytest.File):
    """A scenario file whose items are its cells."""

    def collect(self) -> Iterator[CellItem]:
        """Yield one item per selected cell, in matrix order."""
        from harness.matrix import load_cells
        from harness.selection import select_cells
        from mudpuppy.errors import UsageError

        option = self.config.getoption
        try:
            cells = load_cells(self.path, model=option("--pressure-model"))
            chosen = select_cells(cells, option("--pressure-select")).chosen
        except UsageError as error:
            raise self.CollectError(str(error)) from None
        for cell in chosen:
            yield CellItem.from_parent(self, name=cell.name, cell=cell)


class CellItem(pytest.Item):
    """One cell of the matrix."""

    def __init__(self, *, cell: Cell, **others: Any) -> None:
        super().__init__(**others)
        self.cell = cell
        self.add_marker("pressure")
        if self.config.pluginmanager.hasplugin("timeout"):
            self.add_marker(pytest.mark.timeout(cell.timeout_s + TIMEOUT_MARGIN_S))

    def runtest(self) -> None:
        """Run the cell in a child process and fail as it did.

        Raises:
            CellFailure: it did not come out as expected.
        """
        from harness.findings import Status
        from harness.needs import look_at_machine

        missing = look_at_machine(wanted=[self.cell]).lacks(self.cell)
        if missing:
            pytest.skip(missing)
        result = _run_cell(self.cell, self.config)
        self.user_properties.append((OUTCOME, result.outcome.value))
        if result.status is Status.SKIPPED:
            pytest.skip(result.message)
        if result.status is not Status.PASSED:
            if result.log_tail:
                self.add_report_section("call", "stdout", result.log_tail)
            raise CellFailure(result)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Return what the cell's report would say instead of our own stack."""
        if not isinstance(excinfo.value, CellFailure):
            return super().repr_failure(excinfo, style)
        folder = _run_folder(self.config) / self.cell.cell_id
        return "\n".join(_describe(excinfo.value.result, folder))

    def reportinfo(self) -> tuple[Path, int, str]:
        """Return where the item comes from and how its failure is headed."""
        return self.path, 0, f"{self.cell.name} ({self.path.name})"


def pytest_report_teststatus(
    report: pytest.CollectReport | pytest.TestReport,
) -> tuple[str, str, str] | None:
    """Show an expected rejection as R: passed, but counted apart."""
    if not isinstance(report, pytest.TestReport) or report.when != "call" or not report.passed:
        return None
    if (OUTCOME, "rejected-as-expected") not in [tuple(pair) for pair in report.user_properties]:
        return None
    return "rejected as expected", "R", "REJECTED AS EXPECTED"


def _run_cell(cell: Cell, config: pytest.Config) -> CellResult:
    """Run one cell anew, sharing the run's folder with the other pytest workers."""
    from harness.cell_folder import lock_folder
    from harness.environment import describe_environment
    from harness.execution import Plan, RunOptions
    from harness.prepare import prepare_model
    from harness.runner import run_cells

    prepare_model([cell], print)
    run_dir = _run_folder(config)
    jobs = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))  # they share the cores
    options = RunOptions(
        judge=_load_judge(),
        jobs=jobs,
        pool=_pool(config),
        environment=describe_environment(),
        plan=Plan(gpus=_gpus(config)),
    )
    with lock_folder(run_dir, shared=True):
        (result,) = run_cells([cell], run_dir, options)
    return result


def _gpus(config: pytest.Config) -> GpuSlots | None:
    """Return the GPUs of this pytest process: with xdist, its share of those that were named.

    Raises:
        pytest.UsageError: they are not named as they should be, or too few for every worker.
    """
    from harness.gpus import find_slots
    from mudpuppy.errors import UsageError

    word = config.getoption("--pressure-device")
    try:
        slots = find_slots("auto" if word == "cpu" else word)
    except UsageError as error:
        raise pytest.UsageError(str(error).replace("--gpus", "--pressure-device")) from None
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if slots is None or workers == 1:
        return slots
    first = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
    mine = list(slots.names)[first::workers]
    if not mine:
        raise pytest.UsageError(f"{workers} workers for GPUs {', '.join(slots.names)}: use fewer")
    return replace(slots, names=mine)


def _load_judge() -> Judge:
    from harness.judge import judge_cell

    return judge_cell


def _pool(config: pytest.Config) -> Pool:
    """Return what starts the cells of this pytest process; with xdist each worker has its own."""
    if POOL not in config.stash:
        config.stash[POOL] = _make_pool()
    return config.stash[POOL]


def _make_pool() -> Pool:
    from harness.pools.warm import WarmPool

    return WarmPool()


def _run_folder(config: pytest.Config) -> Path:
    """Return the folder of the run: the one that was named, or a temporary one."""
    if RUN_FOLDER not in config.stash:
        named = config.getoption("--pressure-output")
        made = Path(named) if named else Path(tempfile.mkdtemp(prefix="mudpuppy-pressure-"))
        config.stash[RUN_FOLDER] = made
    return config.stash[RUN_FOLDER]


def _describe(result: CellResult, folder: Path) -> Iterator[str]:
    """Yield the lines of a failure: outcome, findings, where everything lies."""
    yield f"{result.outcome}: {result.message}"
    yield f"expected: {result.expect}"
    if result.worker is not None:
        yield f"worker: {result.worker.words}"
    for finding in result.findings:
        yield f"{finding['code']} {finding['name']}: {finding['message']}"
        yield from (
            f"  {label}: {finding[key]}"
            for label, key in (("because", "cause"), ("fix", "remedy"))
            if finding.get(key)
        )
    yield f"folder: {folder}"
