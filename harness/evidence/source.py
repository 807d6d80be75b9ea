"""Where probes get evidence from: providers registered by name, each run at most once per subject.

A provider is a function in a file of this folder, marked with `@provides("name")`. It takes the
`CheckpointEvidence` it works for, may ask that for other evidence, and raises `Missing` with the
reason when there is nothing to see.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from harness.registry import Missing


class Depth(StrEnum):
    """How deep to look, the cheapest first; each includes those before it."""

    FILES = "files"
    """Names, sizes, headers, settings: no value of a weight."""
    WEIGHTS = "weights"
    """One pass over the values."""
    LINEAGE = "lineage"
    """Comparison with the base and the adapter, where they are known."""
    BEHAVIOUR = "behaviour"
    """The models are loaded and asked."""

    def reaches(self, other: Depth) -> bool:
        """Whether what lies at `other` is seen from here."""
        order = list(Depth)
        return order.index(self) >= order.index(other)


Provider = Callable[["CheckpointEvidence"], Any]
"""A function that produces one piece of evidence, or raises `Missing`."""

TIME_LIMIT_S = 900.0
"""Enough for a 7B model on a CPU that must be read from disk; a model on a GPU needs a minute."""
_PROVIDERS: dict[str, Provider] = {}


def provides(name: str, depth: Depth = Depth.FILES) -> Callable[[Provider], Provider]:
    """Register the decorated function as the provider of the evidence called `name`.

    Args:
        name: by which probes ask for it.
        depth: how deep it looks; it is missing where the caller did not want to look so deep.
            `index_providers` reads it, and the name, from the text of the line.

    Raises:
        ValueError: another function already provides it.
    """

    def mark(provider: Provider) -> Provider:
        known = _PROVIDERS.get(name)
        if known is not None and known.__module__ != provider.__module__:
            raise ValueError(f"{name} is provided by {known.__module__}; it cannot be twice")
        _PROVIDERS[name] = provider
        return provider

    return mark


_MARK = re.compile(r'^@provides\("(\w+)"(?:, Depth\.([A-Z]+))?\)$', re.MULTILINE)
"""How a provider is marked in its file."""


@cache
def index_providers() -> Mapping[str, tuple[str, Depth]]:
    """Return the module and the depth of every provider, by the name of its evidence.

    The files are searched, not imported: half of them need numpy, jinja2 or pydantic, which take
    longer to import than a diagnosis of files alone takes.
    """
    found: dict[str, tuple[str, Depth]] = {}
    here = Path(__file__).parent
    for path in sorted(here.glob("*/*.py")):
        module = f"harness.evidence.{path.parent.name}.{path.stem}"
        for name, depth in _MARK.findall(path.read_text(encoding="utf-8")):
            found[name] = module, Depth[depth or "FILES"]
    return found


def load_provider(name: str, depth: Depth) -> Provider:
    """Return the provider of the evidence called `name`, from whose file it is imported.

    Raises:
        Missing: there is none, or it looks deeper than `depth`.
    """
    if name not in index_providers():
        raise Missing(f"a checkpoint folder offers no evidence called '{name}'")
    module, needed = index_providers()[name]
    if not depth.reaches(needed):
        raise Missing(f"--depth {depth} does not look so deep")
    if name not in _PROVIDERS:
        importlib.import_module(module)
    return _PROVIDERS[name]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the caller said about the checkpoint."""

    base: Path | None = None
    """The base model, when named."""
    base_source: str = "--base"
    """What named it: the flag, or a project file."""
    against: Path | None = None
    """An earlier stage that answers are held against in place of the base's, when named."""
    adapter: Path | None = None
    """The adapter that a merged model was made with, when named."""
    depth: Depth = Depth.LINEAGE
    """How deep to look."""
    generate: bool = False
    """Whether models may be loaded and asked."""
    quiz: Path | None = None
    """Questions with answers (JSONL)."""
    voice: Path | None = None
    """Voice profile (YAML)."""
    embeddings: Path | None = None
    """Folder of a sentence-transformers model that compares answers by their meaning."""
    time_limit_s: float = TIME_LIMIT_S
    """Time for loading and asking one checkpoint and its base."""
    in_process: bool = False
    """Whether models are loaded in this process, which shares their fate, and not in a child."""
    root: Path | None = None
    """The path that is examined, of which the subject may be a part."""
    run_folder: Path | None = None
    """Folder of a matrix run, when the checkpoint is one of its artefacts."""
    quick: bool = False
    """Whether a sample of large tensors will do."""
    seed: int = field(default_factory=lambda: int.from_bytes(os.urandom(8), "big"))
    """Where samples are taken; new for each visit, so that no file can be made to avoid them."""
    wanted: frozenset[str] = frozenset()
    """Names of the evidence that the chosen probes read, so that one pass can serve them all."""
    progress: Callable[[str], None] = field(default=lambda text: None)
    """Called with one line before something slow."""
    scanned: Callable[[int, int], None] = field(default=lambda done, total: None)
    """Called while weights are read, from any thread: bytes read so far, bytes of this pass."""


class CheckpointEvidence:
    """Lazy, cached evidence about one folder, or about one file in it."""

    def __init__(
        self,
        folder: Path,
        options: Options | None = None,
        *,
        given: Mapping[str, Any] | None = None,
        file: str = "",
    ) -> None:
        """Bind to a folder.

        Args:
            folder: the subject.
            options: what the caller said.
            given: evidence that is already at hand and is used as it is.
            file: the one file in it that is the subject; nothing beside it is looked at.
        """
        self.folder = folder
        self.file = file
        self.options = options or Options()
        self._found: dict[str, Any] = dict(given or {})
        self._failed: dict[str, Exception] = {}

    def get(self, name: str) -> Any:
        """Return the evidence called `name`.

        Raises:
            Missing: it is not there, and why.
        """
        if name in self._found:
            return self._found[name]
        if name in self._failed:
            raise self._failed[name]
        provider = load_provider(name, self.options.depth)
        try:
            self._found[name] = provider(self)
        except Exception as failure:
            # Remembered, so that ten probes do not repeat one slow failure.
            self._failed[name] = failure
            raise
        return self._found[name]

    def recall(self, name: str) -> Any | None:
        """Return the evidence called `name` if it was gathered already, and else None."""
        return self._found.get(name)

    def was_missing(self, name: str) -> str:
        """Return why evidence that was asked for is missing; empty if it is there or unasked."""
        failure = self._failed.get(name)
        return str(failure) if isinstance(failure, Missing) else ""

    def find(self, name: str) -> Any | None:
        """Return the evidence called `name`, or None when it is missing."""
        try:
            return self.get(name)
        except Missing:
            return None

    def glance(self, name: str) -> Any | None:
        """Return the evidence called `name`, or None when it is missing or cannot be gathered.

        For what only describes: the probes that read it say how it failed.
        """
        try:
            return self.get(name)
        except Exception:  # noqa: BLE001 - told by the probes that need it
            return None
