"""What a run left in its folder, compared with what the same run leaves that nothing disturbed.

Read with the standard library alone, bytes by bytes; what the engine says of itself is not asked,
but where it claims that something is complete the claim is held against the files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from mudpuppy.provenance import PROVENANCE_FILE
from mudpuppy.safefile import read_header

SETTINGS = ("config.json", "adapter_config.json")
"""Files by which a loader knows a folder as a model."""
OWN_FILES = frozenset({PROVENANCE_FILE, "run.json", "README.md", "steps.jsonl", ".lock"})
"""Files that no loader needs."""
STEPS_FILE = "steps.jsonl"
STEP_FIELDS = ("step", "epoch", "loss", "grad_norm", "learning_rate", "eval_loss")
"""What of a step must be the same; the seconds never are."""
CHECKPOINT_MANIFEST = "mudpuppy-checkpoint.json"


def weights_below(folder: Path) -> tuple[str, ...]:
    """Return the weights files of finished artefacts, below the folder of a run."""
    found = (path.relative_to(folder) for path in folder.rglob("*.safetensors"))
    return tuple(sorted(str(one) for one in found if not _is_ours(one)))


def _is_ours(path: Path) -> bool:
    """Whether a path is inside a checkpoint, or a folder that only the engine looks into."""
    return any(part.startswith((".", "checkpoint-")) for part in path.parts)


def hash_tensors(path: Path) -> dict[str, str]:
    """Return a hash of type, shape and bytes of every tensor of a safetensors file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged.
    """
    found = {}
    with path.open("rb") as handle:
        for name, entry in read_header(path).items():
            handle.seek(entry.start)
            head = f"{entry.dtype}{list(entry.shape)}".encode()
            found[name] = hashlib.sha256(head + handle.read(entry.size)).hexdigest()
    return found


def compare_weights(left: Path, right: Path, name: str) -> tuple[list[str], int]:
    """Return the tensors of one file that differ in two folders, and how many were compared."""
    try:
        ours, theirs = hash_tensors(left / name), hash_tensors(right / name)
    except (OSError, ValueError) as error:
        return [f"{name}: {error}"], 1
    names = sorted({*ours, *theirs})
    return [f"{name}: {n}" for n in names if ours.get(n) != theirs.get(n)], len(names)


def compare_runs(output: Path, twin: Path) -> tuple[tuple[str, ...], int]:
    """Return the steps and tensors of a run that are not its twin's, and how many were compared."""
    differing: list[str] = []
    compared = 0
    for name in sorted({*weights_below(output), *weights_below(twin)}):
        wrong, number = compare_weights(output, twin, name)
        differing += wrong
        compared += number
    ours, theirs = (list(_steps(folder)) for folder in (output, twin))
    longest = max(len(ours), len(theirs))
    for i in range(longest):
        if ours[i : i + 1] != theirs[i : i + 1]:
            differing.append(f"{STEPS_FILE}: line {i + 1}")
    return tuple(differing), compared + longest


def _steps(folder: Path) -> Iterator[object]:
    """Yield what must be equal of every line of the step log; a torn line is a line of its own."""
    path = folder / STEPS_FILE
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            step = json.loads(line)
            yield [step[name] for name in STEP_FIELDS]
        except (ValueError, LookupError, TypeError):
            yield line


def find_leftovers(output: Path, twin: Path) -> tuple[str, ...]:
    """Return the entries of a run's folder that its twin does not leave."""
    ours, theirs = ({p.name for p in one.iterdir()} for one in (output, twin))
    return tuple(sorted(ours - theirs))


def find_half_written(output: Path, twin: Path) -> tuple[str, ...]:
    """Return what is not whole in `output` although a loader or a manifest takes it for whole."""
    if not output.is_dir():
        return ()
    folders = [output, *(path for path in sorted(output.iterdir()) if path.is_dir())]
    found: list[str] = []
    for folder in folders:
        if folder.name.startswith("checkpoint-"):
            found += _find_unlike_manifest(folder)
        elif not folder.name.startswith("."):
            found += _find_short(folder, twin / folder.relative_to(output), folder.name)
    return tuple(found)


def _find_short(folder: Path, whole: Path, name: str) -> Iterator[str]:
    """Yield what a folder lacks that says it is a model."""
    if not any((folder / one).exists() for one in (*SETTINGS, PROVENANCE_FILE)):
        return
    for path in sorted(whole.iterdir()) if whole.is_dir() else ():
        if path.is_dir() or path.name in OWN_FILES:
            continue
        mine = folder / path.name
        if not mine.is_file():
            yield f"{name}: {path.name} is missing"
        elif path.suffix == ".safetensors" and compare_weights(folder, whole, path.name)[0]:
            yield f"{name}: {path.name} holds other tensors"
        elif path.suffix == ".json" and not _is_json(mine):
            yield f"{name}: {path.name} is no JSON"


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True


def _find_unlike_manifest(folder: Path) -> Iterator[str]:
    """Yield the files of a checkpoint that are not as its manifest says."""
    manifest = folder / CHECKPOINT_MANIFEST
    if not manifest.is_file():
        return  # it says of itself that it is not complete
    for name, entry in json.loads(manifest.read_text(encoding="utf-8"))["files"].items():
        path = folder / name
        content = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            yield f"{folder.name}: {name} is not what its manifest says"
