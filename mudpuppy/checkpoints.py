"""Checkpoints that are complete or absent: a manifest, written last, names every file of one.

The trainer writes `checkpoint-N` file by file. Whatever lacks our manifest, or differs from it, was
not finished and is never continued from. Standard library only: that there is nothing to resume, or
that the settings differ, is said before torch is imported.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mudpuppy import team
from mudpuppy.checkpoint_form import (
    STATE_FILE,
    find_lacking,
    find_state_fault,
    has_form,
    needs_older,
    read_json,
)
from mudpuppy.config import TrainingConfig
from mudpuppy.config_check import flag_of
from mudpuppy.errors import OutputError, UsageError, shown
from mudpuppy.files import fsync_folder, write_json_atomic
from mudpuppy.leftovers import CHECKPOINT_FOLDER, CHECKPOINT_MANIFEST, CHECKPOINT_MARK
from mudpuppy.provenance import PROVENANCE_FILE, package_versions

MANIFEST = CHECKPOINT_MANIFEST
MANIFEST_SCHEMA_VERSION = 1
FREE_SETTINGS = frozenset(
    {
        "output",
        "preset",
        "resume",
        "save_steps",
        "num_workers",
        "preprocess_workers",
        "report_to",
        "stream_layers",
        "merge_lora",
        "merge_precision",
        "gptq_activation_memory",
    }
)
"""Settings that may differ in a run that goes on: they change no weight."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What must be equal for a run to go on exactly where another stopped."""

    settings: Mapping[str, Any]
    """Every setting that changes a weight, as JSON types."""
    samples: str
    """Hash of the samples, whatever file they came from."""
    processes: int
    """Processes that train together."""
    versions: Mapping[str, str]
    """Versions of the packages; others go on, but not to the same bits."""
    base: str | None = None
    """Fingerprint of the base model, where it could be made."""


@dataclass(frozen=True, kw_only=True)
class Resumable:
    """The checkpoint a run goes on from."""

    folder: Path
    """The checkpoint's folder."""
    step: int
    """Optimizer steps, or blocks of GPTQ, done."""
    is_over: bool
    """Whether the run had ended, and only its artefact is missing."""
    skipped: tuple[str, ...]
    """What is wrong with newer ones, a sentence each."""
    identity: Mapping[str, Any]
    """What its manifest says of the run."""


def identify(config: TrainingConfig, samples: Sequence[Any], base: str | None = None) -> Identity:
    """Return what a run is made of."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(repr(sample).encode("utf-8", "backslashreplace"))
    settings = config.model_dump(mode="json", exclude=set(FREE_SETTINGS))
    # The hash of the samples stands for them: the same data may lie elsewhere by now.
    settings.pop("dataset")
    return Identity(
        settings=settings,
        samples=digest.hexdigest(),
        processes=team.size(),
        versions=package_versions(),
        base=base,
    )


def write_manifest(folder: Path, step: int, identity: Identity) -> None:
    """Make the files of a checkpoint durable and then say that they are all there."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in (MANIFEST, CHECKPOINT_MARK):
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
            files[str(path.relative_to(folder))] = _describe(path)
        elif path.is_dir():
            fsync_folder(path)
    fsync_folder(folder)
    write_json_atomic(
        folder / MANIFEST,
        {
            "schema_version": MANIFEST_SCHEMA_VERSION,
            "step": step,
            "identity": asdict(identity),
            "files": files,
        },
    )
    (folder / CHECKPOINT_MARK).unlink(missing_ok=True)


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as handle:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(handle, "sha256").hexdigest(),
        }


def list_checkpoints(output: Path) -> list[tuple[int, Path]]:
    """Return step and folder of everything that has a checkpoint's name, newest first."""
    if not output.is_dir():
        return []
    named = [
        (CHECKPOINT_FOLDER.fullmatch(path.name), path) for path in output.iterdir() if path.is_dir()
    ]
    return sorted(((int(m[1]), path) for m, path in named if m), reverse=True)


def find_fault(folder: Path, *, deep: bool) -> str:
    """Return what keeps a checkpoint from being complete, or nothing.

    Args:
        folder: the checkpoint.
        deep: also compare the content of every file with its hash, not only the sizes.
    """
    fault = _find_own_fault(folder, deep=deep)
    if fault:
        return fault
    identity = _read_manifest(folder)["identity"]
    if needs_older(identity):
        return _find_older_fault(folder, identity, deep=deep)
    best = _read_state(folder).get("best_global_step")
    if best and (beside := folder.parent / f"checkpoint-{best}") != folder:
        fault = _find_own_fault(beside, deep=deep)
        return f"checkpoint-{best}, with the best weights so far, is not complete" if fault else ""
    return ""


def _find_older_fault(folder: Path, identity: Mapping[str, Any], *, deep: bool) -> str:
    """Return what is wrong with the checkpoints that one builds on, or nothing."""
    wanted = _without_versions(identity)
    for step in range(1, int(folder.name.rpartition("-")[2])):
        older = folder.parent / f"checkpoint-{step}"
        fault = _find_own_fault(older, deep=deep)
        if not fault and _without_versions(_read_manifest(older)["identity"]) != wanted:
            fault = "it is of another run"
        if fault:
            return f"{older.name}, on which it builds, cannot be used: {fault}"
    return ""


def _without_versions(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in identity.items() if name != "versions"}


def _find_own_fault(folder: Path, *, deep: bool) -> str:
    try:
        manifest = _read_manifest(folder)
    except FileNotFoundError:
        return f"{MANIFEST}, which is written last, is missing"
    except (OSError, ValueError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
        if deep and _describe(path) != expected:
            return f"the content of {name} has changed"
    lacking = find_lacking(manifest["files"], manifest["identity"])
    if lacking:
        return f"{MANIFEST} does not list {lacking}"
    try:
        fault = find_state_fault(_read_state(folder), int(folder.name.rpartition("-")[2]))
    except (OSError, ValueError) as error:
        fault = str(error)
    return f"{STATE_FILE} cannot be used: {fault}" if fault else ""


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest.

    Raises:
        ValueError: it has another form.
    """
    value = read_json(folder / MANIFEST)
    if not isinstance(value, dict) or value.get("schema_version") != MANIFEST_SCHEMA_VERSION:
        raise ValueError(f"no manifest of version {MANIFEST_SCHEMA_VERSION}")
    if not has_form(value):
        raise ValueError("it has another form")
    return value


def _read_state(folder: Path) -> dict[str, Any]:
    """Return the trainer's own account of where it was."""
    state: dict[str, Any] = read_json(folder / STATE_FILE)
    return state


def find_resumable(output: Path, *, deep: bool = True) -> Resumable:
    """Return the newest complete checkpoint of an output folder.

    Raises:
        OutputError: there is none.
    """
    skipped: list[str] = []
    for step, folder in list_checkpoints(output):
        fault = find_fault(folder, deep=deep)
        if not fault:
            state = _read_state(folder)
            control = state.get("stateful_callbacks", {}).get("TrainerControl", {})
            return Resumable(
                folder=folder,
                step=step,
                is_over=bool(control.get("args", {}).get("should_training_stop")),
                skipped=tuple(f"{one}: going on from {folder.name}" for one in skipped),
                identity=_read_manifest(folder)["identity"],
            )
        skipped.append(f"{folder.name} is incomplete ({fault})")
    if skipped:
        raise OutputError(
            f"nothing in {output} can be resumed: {'; '.join(skipped)}",
            hint="start anew in another folder with --output, or remove this one: "
            f"rm -r {shlex.quote(str(output))}",
        )
    is_finished = (output / PROVENANCE_FILE).is_file()
    raise OutputError(
        f"the run in {output} is finished, there is nothing to resume"
        if is_finished
        else f"there is nothing to resume in {output}: no checkpoint has been written",
        hint="to train it further, name it with --adapter, or as MODEL, in a new run"
        if is_finished
        else "leave out --resume; --save-steps 10 writes a checkpoint every 10 steps",
    )


def require_same(found: Resumable, now: Identity) -> None:
    """Refuse to go on with other settings than those that the checkpoint was made with.

    Raises:
        UsageError: something differs; every difference is named.
    """
    was = found.identity
    settings = was["settings"]
    problems = [
        f"{flag_of(name)} was {shown(settings.get(name))} and is {shown(now.settings.get(name))}"
        for name in sorted({*settings, *now.settings})
        if settings.get(name) != now.settings.get(name)
    ]
    if was["samples"] != now.samples:
        problems.append("the samples of DATASET are others")
    if was["processes"] != now.processes:
        problems.append(f"{was['processes']} processes trained, and now there are {now.processes}")
    if None not in (was["base"], now.base) and was["base"] != now.base:
        problems.append("the base model has other weights")
    if problems:
        raise UsageError(
            f"{found.folder} cannot be resumed, since the rest of the run would be another one: "
            + "; ".join(problems),
            hint="use the settings of the first run (also --epochs and --max-steps: the learning "
            "rate follows a schedule over all steps), or start anew with another --output; free "
            f"to differ: {', '.join(map(flag_of, sorted(FREE_SETTINGS - {'output', 'resume'})))}",
        )


def newer_versions(found: Resumable, now: Identity) -> Iterable[str]:
    """Return a sentence for each package that has another version than when it was saved."""
    for name, version in now.versions.items():
        before = found.identity["versions"].get(name)
        if before != version and name != "mudpuppy":
            yield (
                f"{found.folder.name} was saved with {name} {before or 'absent'} and this is "
                f"{version}: the run goes on, but not to the same bits"
            )


def take_up(
    config: TrainingConfig, identity: Identity, say: Callable[[str], None]
) -> Resumable | None:
    """Return where a run goes on, with everything newer that was half done out of the way.

    The first of several processes calls it, and tells the others: it hashes and removes.

    Raises:
        OutputError: there is nothing to go on from.
        UsageError: the run was another one.
    """
    if not config.resume:
        return None
    found = find_resumable(config.output)
    require_same(found, identity)
    for sentence in (*found.skipped, *newer_versions(found, identity)):
        say(sentence)
    unit = "block" if config.method == "gptq" else "step"
    steps = f"{found.step} {unit}{'' if found.step == 1 else 's'}"
    over = ", and no step is left" if found.is_over else ""
    say(f"resuming from {found.folder.name}: {steps} done{over}")
    for step, folder in list_checkpoints(config.output):
        if step > found.step:
            shutil.rmtree(folder)
    # It says that the folder is complete, which ends with the first step.
    (config.output / PROVENANCE_FILE).unlink(missing_ok=True)
    return found


def remove_checkpoints(output: Path) -> None:
    """Remove what was there to go on from: the run has ended, and they hold pickles."""
    for _, folder in list_checkpoints(output):
        shutil.rmtree(folder)
