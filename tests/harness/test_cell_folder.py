"""What is removed of a cell's folder and what of it is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.cell_folder import SCRATCH_FILE, drop_scratch, find_finished
from harness.results import RESULT_FILE, CellResult, Outcome, write_result
from tests.harness.history_data import make_result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / make_result("lora").cell_id
    made.mkdir()
    return made


def finish(folder: Path, outcome: Outcome = Outcome.PASSED, **more: object) -> CellResult:
    result = make_result("lora", outcome, **more)
    write_result(folder, result)
    return result


def test_the_scratch_folder_that_a_cell_noted_goes_with_its_note(folder: Path) -> None:
    scratch = folder.parent / f"mudpuppy-{folder.name}-abc"
    (scratch / "deep").mkdir(parents=True)
    (folder / SCRATCH_FILE).write_text(str(scratch))

    drop_scratch(folder)

    assert not scratch.exists()
    assert not (folder / SCRATCH_FILE).exists()


@pytest.mark.parametrize("name", ["papers", "mudpuppy-another-cell", "..", ""])
def test_a_folder_of_somebody_else_is_left_alone_whatever_the_note_says(
    folder: Path, name: str
) -> None:
    papers = folder.parent / "papers"
    papers.mkdir()
    (folder.parent / "mudpuppy-another-cell").mkdir()
    (folder / SCRATCH_FILE).write_text(str(folder.parent / name))

    drop_scratch(folder)

    assert sorted(path.name for path in folder.parent.iterdir()) == sorted(
        [folder.name, "papers", "mudpuppy-another-cell"]
    )


def test_a_finished_result_is_kept(folder: Path) -> None:
    result = finish(folder)

    assert find_finished(folder, None, "none") == result
    assert find_finished(folder, None, "failed") == result
    assert find_finished(folder, None, "all") is None
    assert find_finished(folder, "another-plant", "none") is None


def test_a_failure_is_kept_unless_failures_are_to_run_again(folder: Path) -> None:
    result = finish(folder, Outcome.FAILED)

    assert find_finished(folder, None, "none") == result
    assert find_finished(folder, None, "failed") is None


def test_what_was_not_run_is_tried_again(folder: Path) -> None:
    """The GPU, the library or the program that was missing may be there by now."""
    finish(folder, Outcome.NOT_RUN)

    assert find_finished(folder, None, "none") is None


@pytest.mark.parametrize("version", [0, 99, "1", None])
def test_a_result_of_another_version_is_as_good_as_none(folder: Path, version: object) -> None:
    finish(folder)
    path = folder / RESULT_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": version}))

    assert find_finished(folder, None, "none") is None
