"""Run the self-test: build the ward, examine everything in a few processes, add it up."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from fnmatch import fnmatchcase
from functools import partial
from importlib import metadata
from pathlib import Path

from harness.registry import Probe, load_own_probes
from harness.selftest.examine import examine_damage, examine_healthy
from harness.selftest.registry import Damage, Healthy, load_damages, load_healthy
from harness.selftest.results import Accuracy, Examination
from harness.selftest.ward import Recovery
from mudpuppy.cache import cache_root
from mudpuppy.errors import MudpuppyError, OutputError, UsageError, near_names

LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "tokenizers", "safetensors")
"""What builds the healthy checkpoints, besides this project."""
ELSEWHERE = ("MPD5", "MPD63", "MPD7", "MPD95")
"""Codes of the probes that judge live models, servers, runs of the matrix and machines."""
KEPT_S = 7 * 24 * 3600
"""How long the ward of other sources or versions is kept."""
SLOW = ("chat", "trl_trainers", "engine_runs")
"""Files of healthy checkpoints that are trained, or asked, and not only saved."""


class SelftestError(MudpuppyError):
    """The self-test could not be carried out; exit code 3."""


def run_selftest(
    select: Sequence[str] = (),
    *,
    jobs: int = 2,
    root: Path | None = None,
    progress: Callable[[Examination, int, int], None] = lambda one, done, total: None,
) -> Accuracy:
    """Examine the healthy checkpoints and the damages that `select` names; all by default.

    Args:
        select: globs on names, `healthy`, `damages`, modes (`FM08`), codes and names of probes.
        jobs: processes.
        root: where healthy checkpoints are built and kept; in the cache by default.
        progress: called after each examination with how many of how many are done.

    Raises:
        UsageError: a word of `select` names nothing.
        OutputError: the cache folder cannot be written.
        SelftestError: a process died.
    """
    started = time.monotonic()
    names = choose(select)
    folder = root or _cached_ward()
    found: list[Examination] = []
    for one in _examine_all(folder, names, jobs):
        found.append(one)
        progress(one, len(found), len(names))
    order = {name: number for number, name in enumerate(names)}
    probes = load_own_probes()
    return Accuracy(
        examinations=tuple(sorted(found, key=lambda one: order[one.name])),
        probes=tuple((one.code, one.name) for one in probes if judges_checkpoints(one)),
        others=tuple((one.code, one.name) for one in probes if not judges_checkpoints(one)),
        whole=not select,
        seconds=time.monotonic() - started,
    )


def judges_checkpoints(one: Probe) -> bool:
    """Whether a probe judges what lies in a folder, and not a watched run, a machine, ..."""
    return not one.code.startswith(ELSEWHERE)


def is_slow(name: str) -> bool:
    """Whether examining a checkpoint takes seconds: it is trained, or models are asked."""
    damage = load_damages().get(name)
    build = load_healthy()[damage.patient if damage else name].build
    function = build.func if isinstance(build, partial) else build
    return function.__module__.rpartition(".")[2] in SLOW


def choose(select: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the checkpoints to examine, healthy ones first.

    Raises:
        UsageError: a word names nothing.
    """
    known: list[Healthy | Damage] = [*load_healthy().values(), *load_damages().values()]
    codes = {one.name: one.code for one in load_own_probes()}
    for word in select:
        if not any(_is_named(one, word, codes) for one in known):
            words = [one.name for one in known]
            raise UsageError(
                f"no checkpoint of the self-test is called '{word}'{near_names(word, words)}",
                hint="name a checkpoint, a glob, a mode (FM08), a probe, 'healthy' or 'damages'",
            )
    chosen = [
        one for one in known if not select or any(_is_named(one, word, codes) for word in select)
    ]
    return tuple(one.name for one in chosen)


def _is_named(one: Healthy | Damage, word: str, codes: dict[str, str]) -> bool:
    if fnmatchcase(one.name, word):
        return True
    if isinstance(one, Healthy):
        return word == "healthy"
    return word in ("damages", one.probe) or word.upper() in (one.mode, codes.get(one.probe))


def _examine_all(root: Path, names: Sequence[str], jobs: int) -> Iterator[Examination]:
    """Yield examinations as they are done; what takes long is begun first.

    Raises:
        SelftestError: a process died, so that what it was examining is not known.
    """
    slowest_first = sorted(names, key=lambda name: not is_slow(name))
    log = root / "building.log"
    context = multiprocessing.get_context("spawn")  # a fork would share torch's threads
    try:
        with ProcessPoolExecutor(max(1, jobs), context, _be_quiet, (log,)) as pool:
            tasks = [pool.submit(_examine, root, name) for name in slowest_first]
            yield from (task.result() for task in as_completed(tasks))
    except BrokenProcessPool as problem:
        raise SelftestError(
            f"a process of the self-test died: {problem}", hint=f"see {log}"
        ) from None


def _be_quiet(log: Path) -> None:
    """Compute with one thread a process, stay off the network, and talk to a file."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_HUB_OFFLINE"] = "1"
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def _examine(root: Path, name: str) -> Examination:
    """Examine one checkpoint; whatever goes wrong is a result."""
    ward = Recovery(root)
    damage = load_damages().get(name)
    try:
        if damage is None:
            return examine_healthy(load_healthy()[name], ward)
        return examine_damage(damage, ward)
    except Exception as error:  # noqa: BLE001 - one that cannot be built must not hide the others
        why = f"{type(error).__name__}: {error}"[:2000]
    if damage is None:
        return Examination(name=name, crashed=(why,))
    return Examination(
        name=name, patient=damage.patient, mode=damage.mode, probe=damage.probe, crashed=(why,)
    )


def _cached_ward() -> Path:
    """Return the folder of the ward that these sources and libraries build.

    Raises:
        OutputError: it cannot be written.
    """
    root = cache_root() / "selftest"
    ward = root / fingerprint()
    try:
        ward.mkdir(parents=True, exist_ok=True)
        os.utime(ward)
        for other in root.iterdir():
            if other != ward and time.time() - other.stat().st_mtime > KEPT_S:
                shutil.rmtree(other)
    except OSError as problem:
        hint = "name a folder that can be written in MUDPUPPY_CACHE"
        raise OutputError(f"{ward}: cannot be used: {problem}", hint=hint) from problem
    return ward


def fingerprint() -> str:
    """Return a hash of all that decides what healthy checkpoints look like."""
    project = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for name in LIBRARIES:
        digest.update(f"{name} {metadata.version(name)}\n".encode())
    sources = [
        *(project / "harness/selftest").glob("*.py"),
        *(project / "harness/selftest/healthy").glob("*.py"),
        *(project / "mudpuppy").rglob("*.py"),
    ]
    for path in sorted(sources):
        digest.update(path.relative_to(project).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
