"""The paths that the doctor is given, refused early with what was expected in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from harness.doctor.subjects import Subject
from harness.evidence.files.inventory import list_files
from harness.evidence.files.jsonfile import UnreadableJson, read_list
from harness.evidence.files.kinds import recognise
from harness.registry import Missing
from mudpuppy.errors import ModelError, UsageError, near_names

SUBJECTS = "a checkpoint folder, or a .safetensors, .gguf or .bin file"
"""What can be examined."""


def resolve_tiny(path: str | Path) -> Path:
    """Return the folder of an embedded model that is built already, and any other path unchanged.

    Raises:
        ModelError: the embedded model is not built, or there is none of that name.
    """
    name = str(path)
    if name.partition(":")[0] != "tiny":
        return Path(path)
    # Here, as what can build the model takes longer to import than files take to examine.
    from mudpuppy.tiny.cache import cache_folder, is_complete
    from mudpuppy.tiny.names import check_family

    family = name.partition(":")[2] or None
    if family is not None:
        check_family(family)
    folder = cache_folder(family)
    if not is_complete(folder):
        command = "mud-puppy tiny build" + (f" --family {family}" if family else "")
        raise ModelError(f"the embedded model '{name}' is not built", hint=f"run: {command}")
    return folder


def require_questions(quiz: str | Path | None, voice: str | Path | None) -> None:
    """Refuse a quiz or a voice profile that cannot be used, before anything is examined.

    Raises:
        UsageError: it cannot be read, or is of another form.
    """
    if quiz is None and voice is None:
        return
    from mudpuppy.scoring import load_quiz, load_voice_profile  # it imports yaml

    if (file := require_file(quiz, "a quiz")) is not None:
        load_quiz(file)
    if (file := require_file(voice, "a voice profile")) is not None:
        load_voice_profile(file)


def require_subject(path: Path) -> None:
    """Refuse what is neither a folder that can be listed nor a file of weights."""
    _require_path(path, SUBJECTS)
    if not path.is_file():
        _require_folder(path, SUBJECTS)
    elif not recognise(path):
        raise ModelError(
            f"{path} is no file of weights; expected {SUBJECTS}", hint=f"try {path.parent}"
        )


def _require_path(path: Path, what: str) -> None:
    try:
        exists = path.exists()
    except OSError as problem:
        shown = f"{str(path)[:200]}..." if len(str(path)) > 200 else str(path)
        raise ModelError(f"{shown}: {problem.strerror}; expected {what}") from None
    if not exists:
        raise ModelError(f"{path} does not exist; expected {what}{_neighbours(path)}")


def _require_folder(path: Path, what: str) -> None:
    _require_path(path, what)
    if not path.is_dir():
        raise ModelError(f"{path} is a file; expected {what}", hint=f"try {path.parent}")
    try:
        list_files(path)
    except Missing as missing:
        raise ModelError(f"{path}: {missing}") from missing


def _neighbours(path: Path) -> str:
    try:
        return near_names(path.name, [child.name for child in path.parent.iterdir()])
    except OSError:
        return ""


def require_model(path: str | Path | None) -> Path | None:
    """Return the folder of a base model; None where none is given.

    Raises:
        ModelError: it is no model folder, or an embedded model that is not built.
    """
    if path is None:
        return None
    folder = resolve_tiny(path)
    _require_folder(folder, "the folder of the base model")
    names = list_files(folder)
    if "config.json" not in names and not any(n.endswith(".safetensors") for n in names):
        raise ModelError(
            f"{folder} is not a model: it holds neither config.json nor safetensors",
            hint="--base wants the folder of the model that was fine-tuned",
        )
    return folder


def require_adapter(path: str | Path | None) -> Path | None:
    """Return an adapter folder; None where none is given.

    Raises:
        ModelError: it is no adapter folder.
    """
    if path is None:
        return None
    folder = Path(path)
    _require_folder(folder, "an adapter folder")
    if not any(name.startswith("adapter_model.") for name in list_files(folder)):
        raise ModelError(
            f"{folder} is not an adapter: it holds no adapter_model.safetensors",
            hint="--adapter wants the folder that save_pretrained() of a PEFT model wrote",
        )
    return folder


def require_others(subjects: Sequence[Subject], asked: Mapping[str, str | Path | None]) -> None:
    """Refuse a base or an adapter that is the very folder that is examined.

    An output may hold its adapter and the merged model: there the adapter is one of several.

    Args:
        subjects: what is examined.
        asked: the folders to compare with, by flag.

    Raises:
        UsageError: nothing would be compared with anything else.
    """
    if any(subject.file for subject in subjects):
        return
    examined = {subject.folder.resolve() for subject in subjects}
    for flag, named in asked.items():
        if named is not None and examined == {resolve_tiny(named).resolve()}:
            raise UsageError(
                f"--{flag} {named} is the folder that is examined: it can only be compared with "
                "another",
                hint=f"leave --{flag} out, or name the "
                + ("model it was made from" if flag == "base" else "adapter that was merged"),
            )


def require_stage(path: str | Path | None) -> Path | None:
    """Return the folder of an earlier stage, a model or an adapter.

    Raises:
        ModelError: it is neither.
    """
    if path is None:
        return None
    folder = resolve_tiny(path)
    _require_folder(folder, "the folder of an earlier stage")
    names = list_files(folder)
    if not any(name.endswith(".safetensors") for name in names):
        raise ModelError(
            f"{folder} is no earlier stage: it holds no safetensors file",
            hint="--against wants the checkpoint before the last stage of training",
        )
    return folder


def require_embeddings(path: str | Path | None) -> Path | None:
    """Return the folder of a sentence-transformers model.

    Raises:
        ModelError: it is none.
        UsageError: sentence-transformers is not installed.
    """
    if path is None:
        return None
    folder = Path(path)
    _require_folder(folder, "the folder of a sentence-transformers model")
    if problem := _why_no_modules(folder / "modules.json"):
        raise ModelError(
            f"{folder} is no model of sentence-transformers: {problem}",
            hint="--embeddings wants the folder of one, such as all-MiniLM-L6-v2",
        )
    if find_spec("sentence_transformers") is None:
        raise UsageError(
            "--embeddings needs sentence-transformers, which is not installed",
            hint="pip install 'mudpuppy[embeddings]'",
        )
    return folder.resolve()


def _why_no_modules(path: Path) -> str:
    """Return why a file lists no modules of sentence-transformers; empty where it does."""
    try:
        modules = read_list(path)
    except UnreadableJson as problem:
        return f"modules.json: {problem}" if path.exists() else "it holds no modules.json"
    wanted = ("type", "path")
    if modules and all(
        isinstance(one, dict) and all(isinstance(one.get(key), str) for key in wanted)
        for one in modules
    ):
        return ""
    return "modules.json lists no modules, each with a type and a path"


def require_file(path: str | Path | None, what: str) -> Path | None:
    """Return a file; None where none is given.

    Raises:
        ModelError: it is no file; the message says that `what` was expected.
    """
    if path is None:
        return None
    try:
        is_there = Path(path).is_file()
    except OSError as problem:
        raise ModelError(f"{str(path)[:200]}: {problem.strerror}; expected {what}") from None
    if not is_there:
        raise ModelError(f"{path} is not a file; expected {what}{_neighbours(Path(path))}")
    return Path(path)
