"""What a mutant is: one bug to plant, the cells that must catch it, and the probes meant for it.

Standard library only: a worker plants before torch is imported, and a rejection comes before it.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CELLS = "mutants"
"""The scenario file whose cells catch mutants."""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One bug that can be planted."""

    name: str
    """What is broken, with dashes."""
    area: str
    """Part of the engine that it is in: the module of this package."""
    what: str
    """What is broken and who had it so, in a sentence or two."""
    cells: tuple[str, ...]
    """Cells of `scenarios/mutants.yaml` that must catch it, each of them."""
    caught_by: tuple[str, ...]
    """Codes of the probes meant for it, one of which must have found it; for a rejection, the
    names of the outcomes instead."""
    plant: Callable[[], None]
    """Patches the modules of this process."""


def mutant(*cells: str, caught_by: str) -> Callable[[Callable[[], None]], Mutant]:
    """Make a mutant of the function that plants it; its name and docstring are the mutant's.

    Args:
        cells: names of the cells that must catch it.
        caught_by: codes of the probes meant for it (or outcomes), with blanks between them.
    """

    def make(plant: Callable[[], None]) -> Mutant:
        return Mutant(
            name=plant.__name__.replace("_", "-"),
            area=plant.__module__.rpartition(".")[2],
            what=" ".join((plant.__doc__ or "").split()),
            cells=cells,
            caught_by=tuple(caught_by.split()),
            plant=plant,
        )

    return make


def part(name: str) -> Any:
    """Return a module of the engine, such as `methods.fitting`, or a class in one.

    Raises:
        AttributeError: there is none of that name any more.
    """
    module, _, kind = name.partition(":")
    found: Any = importlib.import_module(f"mudpuppy.{module}")
    return getattr(found, kind) if kind else found


def replaces(owner: Any, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Put the decorated function in the place of `owner.name`; it gets the original one first.

    Raises:
        AttributeError: the engine has nothing of that name any more.
    """
    raw = inspect.getattr_static(owner, name)
    original = getattr(owner, name)

    def put(substitute: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*words: Any, **named: Any) -> Any:
            return substitute(original, *words, **named)

        setattr(owner, name, staticmethod(call) if isinstance(raw, staticmethod) else call)
        return substitute

    return put


def change_rows(change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    """Change the columns of the rows on their way to the trainer, held-out ones included."""
    fitting = part("methods.fitting")

    @replaces(fitting, "as_dataset")
    def as_dataset(original: Any, rows: Any) -> Any:
        made = original(rows)
        return type(made).from_list(change(made.to_list()))


def change_arguments(**values: Any) -> None:
    """Give the trainer other arguments than the settings ask for."""

    @replaces(part("methods.fitting"), "shared_arguments")
    def shared_arguments(original: Any, config: Any, runtime: Any) -> Any:
        return {**original(config, runtime), **values}


def change_settings(owner: Any, name: str, **values: Any) -> None:
    """Let one function read other settings than those that were given, wherever it takes them."""

    @replaces(owner, name)
    def call(original: Any, *words: Any, **named: Any) -> Any:
        return original(*(_other(word, values) for word in words), **named)


def _other(word: Any, values: dict[str, Any]) -> Any:
    """Return settings with other values; anything else as it is."""
    is_settings = type(word).__name__ == "TrainingConfig"
    return word.model_copy(update=values) if is_settings else word


def change_saved_adapter(change: Callable[[str, Any], tuple[str, Any] | None]) -> None:
    """Rewrite the file of every adapter that is saved.

    Args:
        change: returns a tensor's name and value in the file, or None to leave it out.
    """

    @replaces(part("engine"), "save_adapter")
    def save(original: Any, model: Any, tokenizer: Any, folder: Any, base: str) -> None:
        torch_files: Any = importlib.import_module("safetensors.torch")
        original(model, tokenizer, folder, base)
        path = folder / "adapter_model.safetensors"
        changed = [change(*item) for item in torch_files.load_file(path).items()]
        torch_files.save_file(dict(one for one in changed if one), path, {"format": "pt"})


def change_json(path: Any, **values: Any) -> None:
    """Change settings in a JSON file."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**settings, **values}), encoding="utf-8")
