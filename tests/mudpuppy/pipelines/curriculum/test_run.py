"""Runs: killed anywhere they end as if nothing had been; what fails is named and left out."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mudpuppy.adapters.codes import STACKED as MP_STACKED
from mudpuppy.base_path import find_folder
from mudpuppy.cli import main
from mudpuppy.errors import EngineError, OutputError, UsageError
from mudpuppy.pipelines.curriculum import stages
from mudpuppy.pipelines.curriculum.gates import USUAL, Examined, Fault, Verdict, find_gate
from mudpuppy.pipelines.curriculum.plan import read_curriculum
from mudpuppy.pipelines.curriculum.run import Run
from mudpuppy.pipelines.curriculum.state import PHASES, open_state, read_state
from mudpuppy.pipelines.curriculum.story import Story
from tests.mudpuppy.pipelines.curriculum.small import write_small

FRESH = {"dpo_adapter": "fresh"}
CONTINUED = {"dpo_adapter": "continued"}


class Says:
    """A gate that finds in some stages what it is told to find."""

    def __init__(self, **found: str) -> None:
        self.found = found

    def watch(self, folder: Path) -> None:
        del folder

    def judge(self, stage: Examined) -> Verdict:
        root = self.found.get(stage.kind, "")
        assert (stage.folder / "adapter_config.json").is_file() == (stage.kind != "merge")
        assert (stage.base / "config.json").is_file()
        assert stage.quiz is not None
        if not root:
            return Verdict(checked=1)
        return Verdict(faults=(Fault(code="X1", name=root, message="it is", root=root),))


class Varies(Says):
    """A gate that refuses every stage, each for a reason of its own that has no root cause."""

    def judge(self, stage: Examined) -> Verdict:
        number = stage.folder.parent.name.partition(".")[0]
        return Verdict(faults=(Fault(code=f"X{number}", name=f"odd-{number}", message="it is"),))


def keep_final(unlink: Callable[..., None]) -> Callable[..., None]:
    """Return `Path.unlink` for everything but the link of a run."""

    def refuse(path: Path, **more: Any) -> None:
        assert path.name != "final"
        unlink(path, **more)

    return refuse


def tell(
    path: Path,
    output: Path,
    gate: Any = None,
    after_phase: Callable[[str], None] = lambda _: None,
    said: list[str] | None = None,
    **more: Any,
) -> Story:
    made = read_curriculum(path)
    with open_state(output, made.identity) as state:
        state.after_phase = after_phase
        say = (lambda _: None) if said is None else said.append
        return Run(made=made, state=state, gate=gate, say=say, **more).tell()


def in_fork(work: Callable[[], Any]) -> int:
    """Run `work` in a fork and return its process id; the caller waits for it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def result(output: Path) -> tuple[str, Any]:
    """Return the bits that a run ends with, and its report without times."""
    hashed = hashlib.sha256()
    for file in sorted((output / "final").glob("*.safetensors")):
        hashed.update(file.read_bytes())
    report = json.loads((output / "report.json").read_text())
    return hashed.hexdigest(), report


@pytest.fixture(scope="module", autouse=True)
def libraries() -> None:
    """Import what every phase needs once, as the command does, and not in each of them."""
    stages.import_libraries()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("undisturbed")
    found = {}
    for name, settings in (("fresh", FRESH), ("continued", CONTINUED)):
        path = write_small(home / name, **settings)
        tell(path, home / f"{name}-run")
        found[name] = home / f"{name}-run"
        found[f"{name} file"] = path
    found["short file"] = write_small(home / "short", topics=1, **FRESH)
    found["short"] = home / "short-run"
    tell(found["short file"], found["short"])
    return found


def test_every_topic_takes_its_stages_and_the_unit_ends_merged(undisturbed: dict[str, Path]):
    state = read_state(undisturbed["fresh"])

    assert state
    assert [
        *("model", "start"),
        *("01.before", "01.sft", "01.sft.asked", "01.pairs", "01.sft.merge"),
        *("01.dpo", "01.dpo.asked", "01.dpo.merge"),
        *("02.before", "02.sft", "02.sft.asked", "02.pairs", "02.sft.merge"),
        *("02.dpo", "02.dpo.asked", "02.dpo.merge"),
        *("02.unit.asked", "final"),
    ] == list(state.phases)
    assert (undisturbed["fresh"] / "final" / "config.json").is_file()
    assert [] == list(undisturbed["fresh"].glob("final/adapter_*"))


def test_a_continued_adapter_is_one_adapter_until_its_unit_ends(undisturbed: dict[str, Path]):
    state = read_state(undisturbed["continued"])

    assert state
    assert ["02.unit.merge"] == [name for name in state.phases if "merge" in name]
    for name in ("01.sft", "01.dpo", "02.sft", "02.dpo"):
        path = undisturbed["continued"] / PHASES / name / "adapter" / "adapter_config.json"
        assert 8 == json.loads(path.read_text())["r"], name


def test_whole_weights_that_were_replaced_are_gone(undisturbed: dict[str, Path]):
    left = sorted(undisturbed["fresh"].glob(f"{PHASES}/*/model"))

    assert ["02.dpo.merge"] == [one.parent.name for one in left]


def test_killed_after_every_phase_the_end_is_the_same(undisturbed: dict[str, Path], tmp_path: Path):
    def die(name: str) -> None:
        del name
        os.kill(os.getpid(), signal.SIGKILL)

    path, output = undisturbed["short file"], tmp_path / "run"
    launches = 0
    while not (output / "final").exists():
        before = len(getattr(read_state(output), "phases", ()))
        pid = in_fork(lambda: tell(path, output, after_phase=die))
        _, status = os.waitpid(pid, 0)
        launches += 1
        now = len(getattr(read_state(output), "phases", ()))
        assert (os.waitstatus_to_exitcode(status), now) in ((-9, before + 1), (0, before))

    assert launches == 1 + len(getattr(read_state(output), "phases", ()))
    assert result(undisturbed["short"]) == result(output)


@pytest.mark.parametrize("phase", ["01.sft", "01.dpo", "01.sft.merge"])
def test_killed_in_the_middle_of_a_phase_the_end_is_the_same(
    undisturbed: dict[str, Path], tmp_path: Path, phase: str
):
    path, output = undisturbed["short file"], tmp_path / "run"
    pid = in_fork(lambda: tell(path, output))
    ends = time.monotonic() + 60
    while not any((output / PHASES / phase).glob("*/*")) and time.monotonic() < ends:
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    left = read_state(output)
    assert left
    assert phase not in left.phases

    tell(path, output)

    assert result(undisturbed["short"]) == result(output)


def test_a_run_that_is_finished_does_nothing_again(undisturbed: dict[str, Path]):
    before = (undisturbed["fresh"] / "state.json").stat().st_mtime_ns

    def refuse(name: str) -> None:
        raise AssertionError(name)

    story = tell(undisturbed["fresh file"], undisturbed["fresh"], after_phase=refuse)

    assert "finished" == story.ending
    assert before == (undisturbed["fresh"] / "state.json").stat().st_mtime_ns


def test_a_stage_that_the_gate_refuses_is_named_and_left_out(tmp_path: Path):
    said: list[str] = []
    story = tell(
        write_small(tmp_path / "data", **FRESH), tmp_path / "run", Says(dpo="odd"), said=said
    )

    assert [("dpo", ("odd",)), ("dpo", ("odd",))] == [
        (stage.kind, tuple(fault.root for fault in stage.faults)) for _, stage in story.rolled_back
    ]
    assert "finished" == story.ending
    assert any("ROLLED BACK: odd (X1): it is" in line for line in said)
    assert "**odd**" in (tmp_path / "run" / "report.md").read_text()
    # training went on from what SFT had left
    second = json.loads((tmp_path / "run/phases/02.sft/adapter/adapter_config.json").read_text())
    assert second["base_model_name_or_path"].endswith("01.sft.merge/model")


def test_a_merge_that_is_refused_leaves_the_adapter_that_was_sound(tmp_path: Path):
    path = write_small(tmp_path / "data", **FRESH)
    story = tell(path, tmp_path / "run", Says(merge="bad"), stop_after=0)

    assert {"merge"} == {stage.kind for _, stage in story.rolled_back}
    assert "sft" == story.topics[1].stages[0].kind
    assert story.topics[1].stages[0].kept
    assert "phases/02.sft/adapter" == story.model_at_end["adapter"]
    assert (tmp_path / "run" / "final" / "adapter_config.json").is_file()


def test_the_same_reason_again_and_again_ends_the_run_early(tmp_path: Path):
    path = write_small(tmp_path / "data", topics=3)
    story = tell(path, tmp_path / "run", Says(sft="odd"), stop_after=2)

    assert story.ending.startswith("stopped: 2 stages in a row failed for the same reason (odd)")
    assert 2 == len(story.topics)
    assert story.end is None


def test_different_reasons_without_a_root_cause_end_no_run(tmp_path: Path):
    path = write_small(tmp_path / "data", topics=3)
    story = tell(path, tmp_path / "run", Varies(), stop_after=2)

    assert ["X01", "X02", "X03"] == [
        fault.code for _, stage in story.rolled_back for fault in stage.faults
    ]
    assert "finished" == story.ending


@pytest.mark.parametrize("kind", ["embedded", "relative"])
def test_the_end_of_a_run_that_kept_nothing_is_the_model_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    model = "tiny:llama"
    if kind == "relative":
        shutil.copytree(find_folder(model), tmp_path / "data" / "model")
        model = "model"
    monkeypatch.chdir(tmp_path)
    path = write_small(Path("data"), topics=1, model=model)
    output = tmp_path / "run"
    tell(path, output, Says(sft="odd"))

    assert (output / "final" / "config.json").is_file()
    # again, over the link that is there: at no moment without one
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", keep_final(Path.unlink))
        tell(path, output, Says(sft="odd"))
    assert (output / "final" / "config.json").is_file()


def test_a_folder_in_the_place_of_the_link_is_left_alone(undisturbed: dict[str, Path]):
    output = undisturbed["short"]
    target = (output / "final").readlink()
    (output / "final").unlink()
    (output / "final").mkdir()
    try:
        with pytest.raises(OutputError, match="cannot be made a link"):
            tell(undisturbed["short file"], output)
        assert not (output / ".final.new").is_symlink()
    finally:
        (output / "final").rmdir()
        (output / "final").symlink_to(target)


def test_a_stage_without_a_gradient_is_rolled_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    train = stages.train_stage
    monkeypatch.setattr(
        stages, "train_stage", lambda *words: train(*words) | {"learnt_nothing": True}
    )
    story = tell(write_small(tmp_path / "data", topics=1), tmp_path / "run")

    assert ["MP-C04"] == [fault.code for _, stage in story.rolled_back for fault in stage.faults]


def test_a_phase_that_hangs_is_ended_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_small(tmp_path / "data", topics=1)
    monkeypatch.setattr(stages, "train_stage", lambda *_: time.sleep(60))

    with pytest.raises(EngineError, match=r"01\.sft was ended after 4 s"):
        tell(path, tmp_path / "run", phase_limit_s=4.0)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 1, "topics": [{}]}'])
def test_the_status_of_a_damaged_report_is_an_error_and_no_traceback(
    undisturbed: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
):
    shutil.copy(undisturbed["short"] / "state.json", tmp_path)
    (tmp_path / "report.json").write_text(text)

    assert 2 == main(["curriculum", "status", str(tmp_path)])
    assert "report.json cannot be used" in capsys.readouterr().err


def test_the_status_before_the_first_phase(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with open_state(tmp_path / "run", "one"):
        pass

    assert 0 == main(["curriculum", "status", str(tmp_path / "run")])
    assert "no phase has ended yet" in capsys.readouterr().out


def test_the_status_names_what_was_rolled_back(
    undisturbed: dict[str, Path], capsys: pytest.CaptureFixture[str]
):
    assert 0 == main(["curriculum", "status", str(undisturbed["fresh"])])
    said = capsys.readouterr().out
    assert "2. One / A / topic 1: accuracy 0.00 -> 0.00" in said
    assert said.endswith("finished\n")


def test_what_the_engine_refuses_is_named_by_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: Any) -> None:
        raise EngineError("a second adapter would be stacked", code=MP_STACKED, hint="merge first")

    monkeypatch.setattr(stages, "train_stage", refuse)
    story = tell(write_small(tmp_path / "data"), tmp_path / "run")

    (_, stage), _ = story.rolled_back
    (fault,) = stage.faults
    assert ("MP-E01", "stacked-adapters", "merge first") == (fault.code, fault.root, fault.remedy)
    assert "a second adapter would be stacked" == fault.message


def test_a_phase_that_dies_ends_the_run_and_the_next_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write_small(tmp_path / "data", topics=1)
    with monkeypatch.context() as patch:
        patch.setattr(stages, "train_stage", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        with pytest.raises(EngineError, match=r"01\.sft was ended by SIGKILL"):
            tell(path, tmp_path / "run")

    assert "finished" == tell(path, tmp_path / "run").ending


def test_another_curriculum_never_goes_on_in_the_folder(
    undisturbed: dict[str, Path], tmp_path: Path
):
    with pytest.raises(OutputError, match="another curriculum"):
        tell(write_small(tmp_path / "other", topics=1), undisturbed["fresh"])


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("do not lose me")

    with pytest.raises(OutputError, match=r"not empty: thesis.txt"):
        tell(write_small(tmp_path / "data"), tmp_path / "run")


def test_two_runs_never_share_a_folder(tmp_path: Path):
    with (
        open_state(tmp_path / "run", "one"),
        pytest.raises(OutputError, match="in use"),
        open_state(tmp_path / "run", "one"),
    ):
        pass


@pytest.mark.parametrize(
    "text", ["", "{}", '{"schema_version": 99}', '{"schema_version": 1, "phases": 3}', "[1]"]
)
def test_a_state_that_cannot_be_read_is_refused_and_left_alone(tmp_path: Path, text: str):
    (tmp_path / "state.json").write_text(text)

    with pytest.raises(OutputError, match=r"state\.json"):
        read_state(tmp_path)
    assert text == (tmp_path / "state.json").read_text()


def test_gates_are_found_by_path_and_absent_ones_are_named():
    assert find_gate("none") is None
    for name in (USUAL, "harness.stage_gate:DoctorGate"):
        assert "DoctorGate" == type(find_gate(name)).__name__
    with pytest.raises(UsageError, match=r"no stage gate is called 'dokter'.*\n.*--gate none"):
        find_gate("dokter")
    with pytest.raises(UsageError, match="nowhere"):
        find_gate("nowhere.at:All")
    with pytest.raises(UsageError, match="no method 'watch'"):
        find_gate("collections:OrderedDict")
