"""Everything that can be refused before torch is imported and before a file is written."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mudpuppy import team
from mudpuppy.adapters.continued_check import require_continuable
from mudpuppy.checkpoints import (
    MANIFEST,
    find_resumable,
    identify,
    list_checkpoints,
    require_same,
)
from mudpuppy.config import TrainingConfig
from mudpuppy.data.forgetting import require_groups
from mudpuppy.data.held_out import count_held_out
from mudpuppy.data.read import read_dataset
from mudpuppy.data.samples import Sample
from mudpuppy.data.system_prompt import require_conversations
from mudpuppy.errors import ConfigError, ModelError, OutputError, UsageError, near_names
from mudpuppy.gptq_backend import require_backend
from mudpuppy.leftovers import (
    LOCK_FILE,
    holds_only_leftovers,
    remove_unfinished,
    require_ordinary,
)
from mudpuppy.logs import require_packages
from mudpuppy.tiny import is_tiny_name

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def preflight(config: TrainingConfig, given: Sequence[Sample] | None = None) -> tuple[Sample, ...]:
    """Check output folder, model path and dataset, in the order of their cost; return the samples.

    Args:
        config: the settings.
        given: the samples, where somebody else has read them; the dataset is then not opened.

    Raises:
        OutputError: the output folder is not empty or cannot be made.
        ModelError: the model path does not exist or is no model, or the adapter cannot go on.
        DatasetError: the dataset has unusable lines, or the method cannot learn from its kind,
            or there are too few samples.
    """
    require_packages(config)
    require_backend(config)
    require_team(config)
    with _telling(OutputError, f"the output folder {config.output}"):
        if team.is_first():
            check_output(config.output, resume=config.resume)
    with _telling(ModelError, f"the model path {config.model}"):
        check_model(config.model)
    if config.adapter is not None and config.trains_adapter:
        require_continuable(config.adapter, config)
    samples = read_dataset(config.dataset, config.method).samples if given is None else tuple(given)
    if config.resume and team.is_first():
        found = find_resumable(config.output, deep=False)
        require_same(found, identify(config, samples))
    require_conversations(samples, config)
    require_groups(samples, config)
    count_held_out(len(samples), config)  # the same again, once some samples may be left out
    if team.is_first():
        prove_writable(config.output)
    return samples


def require_team(config: TrainingConfig) -> None:
    """Refuse what cannot work with this number of processes, or without a compiler.

    Raises:
        ConfigError: `--fsdp` in one process, several where layers are spread over the devices, or
            `--compile` where nothing compiles.
    """
    problems = []
    hint = ""
    if config.fsdp != "none" and team.size() < 2:
        problems.append("--fsdp full_shard shards over several processes, and this is one")
        hint = "torchrun --nproc_per_node 2 -m mudpuppy ..."
    if team.size() > 1 and config.device_map in ("auto", "pipeline"):
        problems.append(
            "--device-map spreads one model over the devices, and every process has one"
        )
        hint = "leave out --device-map, or start one process"
    if team.size() > 1 and config.method == "gptq":
        problems.append("--method gptq quantises in one process")
        hint = "start it without torchrun"
    compilers = [os.environ.get("CXX", "g++"), "clang++"]
    if config.compile and not any(map(shutil.which, compilers)):
        problems.append(f"--compile: torch's inductor needs a C++ compiler ({compilers[0]})")
        hint = "install g++, or leave out --compile"
    if problems:
        raise ConfigError(problems, hint=hint)


@contextmanager
def _telling(kind: type[UsageError], what: str) -> Iterator[None]:
    """Turn what the file system refuses, such as a look into a private folder, into `kind`."""
    try:
        yield
    except OSError as error:
        raise kind(f"{what} cannot be used: {error.strerror or error}") from None


def check_output(folder: Path, *, is_ours: bool = False, resume: bool = False) -> None:
    """Refuse an output path that is a file, or a folder with something in it or a run at work.

    What a run of ours left when it was stopped does not count: nothing in it was finished.
    `is_ours` says that the caller holds the lock; with `resume` there must be a checkpoint.

    Raises:
        OutputError: the path cannot be used, or holds nothing to resume.
    """
    require_ordinary(folder)
    if not is_ours and (folder / LOCK_FILE).is_file():
        with (folder / LOCK_FILE).open(encoding="utf-8") as handle:
            _take(handle, folder)
    if resume:
        find_resumable(folder, deep=False)
    elif folder.is_dir() and not holds_only_leftovers(folder):
        if any((path / MANIFEST).is_file() for _, path in list_checkpoints(folder)):
            raise OutputError(
                f"the output folder {folder} holds checkpoints of a run that was stopped",
                hint="go on from the newest with --resume, or name another folder with --output"
                + _removal(folder),
            )
        raise OutputError(
            f"the output folder {folder} is not empty",
            hint="name another output folder" + _removal(folder),
        )
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"the output path {folder} is a file", hint="name a folder")
    parent = next(p for p in [folder, *folder.parents] if p.exists())
    if not parent.is_dir():
        raise OutputError(f"the output folder {folder} cannot be made: {parent} is a file")


def _removal(folder: Path) -> str:
    """Return the advice to remove a folder, or nothing where that would take too much along."""
    kept = [Path.home().resolve(), Path.cwd()]
    if any(one.is_relative_to(folder.resolve()) for one in kept):
        return ""
    return f", or remove it: rm -r {shlex.quote(str(folder))}"


@contextmanager
def locked(folder: Path, *, resume: bool = False) -> Iterator[None]:
    """Make an output folder, keep every other run out of it, and see once more that it is free.

    Raises:
        OutputError: another run holds it, or has finished in it meanwhile.
    """
    folder.mkdir(parents=True, exist_ok=True)
    require_ordinary(folder)
    path = folder / LOCK_FILE
    with path.open("a", encoding="utf-8") as handle:
        _take(handle, folder)
        # The run before removes its lock while it holds it: ours may be of a file that is gone.
        if not path.exists() or path.stat().st_ino != os.fstat(handle.fileno()).st_ino:
            raise _in_use(folder)
        try:
            check_output(folder, is_ours=True, resume=resume)
            if not resume:
                remove_unfinished(folder)
            yield
        finally:
            path.unlink(missing_ok=True)


def _take(handle: IO[str], folder: Path) -> None:
    """Take the lock, or raise OutputError; where a file system knows no locks, go on without."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise _in_use(folder) from None


def _in_use(folder: Path) -> OutputError:
    return OutputError(
        f"the output folder {folder} is in use by another run",
        hint="name another folder with --output, or wait for that run",
    )


def prove_writable(folder: Path) -> None:
    """Make the output folder and take it away again: permissions alone do not tell.

    Raises:
        OutputError: it cannot be made, or nothing can be written into it.
    """
    made = [p for p in [folder, *folder.parents] if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"the output folder {folder} cannot be written: {reason}",
            hint="name another folder with --output",
        ) from None
    finally:
        for path in made:
            if path.is_dir():
                path.rmdir()


def check_model(name: str) -> None:
    """Refuse a model name that cannot be a folder, a hub id or the embedded model."""
    if is_tiny_name(name):
        return
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "config.json").is_file():
            return
        if (path / "adapter_config.json").is_file():
            raise ModelError(
                f"{name} is an adapter, not a model",
                hint="train on the model it was made for, or merge it first (--merge-lora)",
            )
        raise ModelError(f"{name} holds no config.json", hint="name a model folder")
    if path.exists():
        raise ModelError(f"{name} is a file", hint="name the folder that holds config.json")
    looks_local = name.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(name)
    if looks_local:
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = near_names(path.name, beside)
        raise ModelError(
            f"the model path {name} does not exist{near}",
            hint="name a folder, a hub id such as Qwen/Qwen2.5-0.5B-Instruct, or 'tiny'",
        )
