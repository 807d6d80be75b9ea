"""Disturb a run by one fault, go on as a person would, and compare with an undisturbed twin.

Every command is `mud-puppy` itself, in a process and session of its own, so that messages and exit
codes are the real ones. First the twin runs to its end; then the attempt meets the fault; then the
recovery, which is what the scenario says a person can do.
"""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.attempts import Attempt, Command, start_attempt
from harness.damages import DAMAGES, damage, tear_dataset
from harness.facts.faults import Ending, Fault, Recovery
from harness.faults import (
    ACTS,
    FIRED_FILE,
    GO_FILE,
    MOMENTS,
    POISONS,
    Arming,
    arm,
    mount_small_disk,
    read_note,
)
from harness.observations import Observations
from harness.process import tell_stack_when_ended
from harness.remains import (
    compare_runs,
    compare_weights,
    find_half_written,
    find_leftovers,
    weights_below,
)
from harness.trials.order import CHECKPOINT, Order
from mudpuppy.cli import main as run_command
from mudpuppy.config_check import load_config
from mudpuppy.errors import ConfigError, EngineError
from mudpuppy.files import write_json_atomic

DISK_BYTES = 1 << 24
"""Size of the disk that is filled: a tiny run fits several times."""
LIMIT_S = 120.0
"""Time of a command that does not hang; it takes a second."""
PATIENCE_S = 0.2
"""How long a run may hang before it is ended."""
_RESUMED = re.compile(r"^resuming from checkpoint-(\d+):", re.MULTILINE)


class FaultOptions(BaseModel):
    """The options of a cell."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fault: str
    """What is done, by its name in `harness.faults`."""
    at: str = "step"
    """When, by its name in `harness.faults.MOMENTS`."""
    turn: int | None = Field(default=None, ge=1)
    """Which of the calls, where it is not the moment's own."""
    damage: str | None = None
    """What is done to the folder afterwards, by its name in `harness.damages`."""
    then: Recovery
    """What comes after it."""
    ends: str
    """Exit code or signal that the attempt must end with."""
    says: str = ""
    """What its message must hold."""
    step: int | None = None
    """Steps that must not be lost."""
    command: Literal["train", "merge"] = "train"
    """What is disturbed; a merge has its adapter trained before."""


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where everything of the cell lies."""

    folder: Path
    """The cell's own folder."""
    disk: Path
    """Holds the run that is disturbed; a file system of its own, where a disk is filled."""
    output: Path
    """What the run writes to."""
    twin: Path
    """What its twin writes to."""
    dataset: Path
    """The dataset as the disturbed run sees it."""
    settings: Path
    """The settings of the commands."""
    adapter: Path
    """The adapter that a merge starts from."""


def perform(order: Order) -> Observations:
    """Do everything, and return what was seen.

    Raises:
        ConfigError: the options of the cell are wrong.
        EngineError: the undisturbed run fails, or the fault did not happen.
        OSError: this machine cannot do the fault.
    """
    options = _check_options(order.options)
    place = _prepare(order, options)
    order.import_engine()
    began = time.monotonic()
    twin = _run("twin", place, _command(order, options, place, place.twin))
    if twin.words != "0":
        raise EngineError(f"the undisturbed run ended with {twin.words}: {' '.join(twin.said)}")
    seen = _disturb(order, options, place)
    if options.then != "refusal":
        shutil.copytree(place.output, order.folder / CHECKPOINT)
    seconds = {"twin": twin.seconds, "all": round(time.monotonic() - began, 3)}
    return Observations(ending="measured", trial=asdict(seen), seconds=seconds)


def _check_options(words: dict[str, Any]) -> FaultOptions:
    """Return the options, checked.

    Raises:
        ConfigError: they are wrong.
    """
    try:
        options = FaultOptions.model_validate(words)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError([f"options: {where}: {first['msg']}"]) from None
    known = {"fault": {*ACTS, *POISONS}, "at": {*MOMENTS}, "damage": {*DAMAGES}}
    for field, names in known.items():
        value = getattr(options, field)
        if value is not None and value not in names:
            raise ConfigError([f"options: {field}: there is no '{value}'; {', '.join(names)}"])
    return options


def _prepare(order: Order, options: FaultOptions) -> _Place:
    """Make the folders, the dataset and the settings; damage what the fault damages before."""
    disk = order.folder / "disk"
    disk.mkdir()
    if options.fault == "full-disk":
        mount_small_disk(disk, DISK_BYTES)
    whole = Path(order.config["dataset"])
    place = _Place(
        folder=order.folder,
        disk=disk,
        output=disk / "output",
        twin=order.folder / "twin",
        dataset=order.folder / whole.name,
        settings=order.folder / "settings.yaml",
        adapter=order.folder / "adapter",
    )
    shutil.copyfile(whole, place.dataset)
    settings = {name: value for name, value in order.config.items() if value is not None}
    write_json_atomic(place.settings, {**settings, "dataset": str(place.dataset)})
    return place


def _command(
    order: Order, options: FaultOptions, place: _Place, output: Path, *, resume: bool = False
) -> Command:
    """Return what a person would type, as a call."""
    if options.command == "merge":
        if not place.adapter.exists():
            train = ["--config", str(place.settings), "--output", str(place.adapter)]
            trained = _run("training", place, lambda: run_command(train))
            if trained.words != "0":
                raise EngineError(f"the adapter cannot be trained: {' '.join(trained.said)}")
        base = str(order.config["model"])
        return lambda: run_command(["merge", base, str(place.adapter), str(output)])
    words = ["--config", str(place.settings), "--output", str(output)]
    return lambda: run_command(words + ["--resume"] * resume)


def _run(name: str, place: _Place, command: Command) -> Ending:
    return _start(name, place, command).wait()


def _start(name: str, place: _Place, command: Command) -> Attempt:
    return start_attempt(name, command, place.folder / "commands" / name, timeout_s=LIMIT_S)


def _disturb(order: Order, options: FaultOptions, place: _Place) -> Fault:
    """Let the fault meet a run, look at what is left, and go on."""
    attempt, bystander = _attempt(order, options, place)
    noted = read_note(place.folder)
    if noted is None:
        raise EngineError(
            f"the fault did not happen: {options.fault} at {options.at}; the run ended with "
            f"{attempt.words}"
        )
    seen = Fault(
        fault=options.fault if options.damage is None else f"{options.fault}, {options.damage}",
        moment=options.at,
        then=options.then,
        wanted_ending=options.ends,
        wanted_words=options.says,
        wanted_step=options.step,
        attempt=attempt,
        bystander=bystander,
        promised=weights_below(place.twin),
        finished=tuple(noted["finished"]),
        lost=_find_lost(noted["finished"], place),
        half_written=find_half_written(place.output, place.twin),
        survivors=_survivors(place),
        hung=options.fault.startswith("hang"),
    )
    if options.damage is not None:
        damage(options.damage, place.output)
    return _go_on(order, options, place, seen)


def _attempt(order: Order, options: FaultOptions, place: _Place) -> tuple[Ending, Ending | None]:
    """Run the command that meets the fault, and beside it a second one where that is the fault."""
    moment = MOMENTS[options.at]
    if options.turn is not None:
        moment = replace(moment, turn=options.turn)
    arming = Arming(folder=place.folder, output=place.output, disk=place.disk)
    command = _command(order, options, place, place.output)
    if options.fault == "hang":  # as a worker hangs, which has no command line around it
        command = _as_worker(order, place)

    def disturbed() -> int:
        arm(options.fault, moment, arming)
        return command()

    if options.fault == "torn-line":
        tear_dataset(Path(order.config["dataset"]), place.dataset)
        write_json_atomic(place.folder / FIRED_FILE, {"finished": []})
        return _run("attempt", place, command), None
    running = _start("attempt", place, disturbed)
    bystander = None
    if options.fault.startswith(("hang", "second-run")):
        _await_note(place, running)
        if options.fault == "second-run":
            bystander = _run("bystander", place, command)
            (place.folder / GO_FILE).touch()
        else:
            running.worker.timeout_s = time.monotonic() - running.started_s + PATIENCE_S
    return running.wait(), bystander


def _as_worker(order: Order, place: _Place) -> Command:
    """Return the engine's run as the matrix's worker starts it."""

    def train() -> int:
        tell_stack_when_ended()
        config = {**order.config, "dataset": place.dataset, "output": place.output}
        order.train(load_config(config))
        return 0

    return train


def _await_note(place: _Place, running: Attempt) -> None:
    """Wait until the fault has happened, or the time is over."""
    while not (place.folder / FIRED_FILE).exists():
        if time.monotonic() - running.started_s > LIMIT_S:
            return
        time.sleep(0.01)


def _survivors(place: _Place) -> tuple[int, ...]:
    """Return the processes that a fault had started and that are alive."""
    noted = place.folder / "grandchild"
    if not noted.is_file():
        return ()
    pid = int(noted.read_text(encoding="utf-8"))
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ()
    return () if state == "Z" else (pid,)


def _find_lost(finished: list[str], place: _Place) -> tuple[str, ...]:
    """Return the finished weights that are gone, or are others than the twin's."""
    return tuple(name for name in finished if compare_weights(place.output, place.twin, name)[0])


def _mend(order: Order, place: _Place) -> None:
    """Do what a person does before trying again: make room, open the folders, mend the dataset."""
    (place.disk / "filler").unlink(missing_ok=True)
    for folder in (place.disk, place.output):
        if folder.is_dir():
            folder.chmod(0o755)
    shutil.copyfile(Path(order.config["dataset"]), place.dataset)


def _go_on(order: Order, options: FaultOptions, place: _Place, seen: Fault) -> Fault:
    """Mend what the fault broke, do what comes after it, and compare the end with the twin's."""
    _mend(order, place)
    if options.then != "nothing":
        resume = options.then in ("resume", "refusal")
        running = _start(
            "recovery", place, _command(order, options, place, place.output, resume=resume)
        )
        seen = replace(seen, recovery=running.wait())
        found = _RESUMED.search(running.output())
        seen = replace(seen, resumed_step=int(found[1]) if found else None)
    if options.then == "refusal":
        return seen
    differing, compared = compare_runs(place.output, place.twin)
    lost = (*seen.lost, *_find_lost(list(seen.finished), place))
    return replace(
        seen,
        differing=differing,
        compared=compared,
        lost=tuple(dict.fromkeys(lost)),
        leftovers=find_leftovers(place.output, place.twin),
    )
