"""What evidence says of tokenizer files, chat templates, provenance and traces of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.facts.checkpoint import Files, WeightFile
from harness.findings import agree


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """The special tokens that the settings name, held against the vocabulary."""

    file: str
    """File that names them."""
    named: int
    """How many they name."""
    unknown: Mapping[str, str]
    """Role and text of those that are not in the vocabulary, in the order in which they are
    added."""
    next_id: int
    """Id that loaders give to the first token that they must add."""
    rows: int | None
    """Rows of the embedding, or `vocab_size`; None when neither is known."""
    unnamed_ids: Mapping[str, int]
    """Special ids of config.json and generation_config.json below `rows` that no token has."""
    has_known_end: bool
    """Whether at least one of the ids that end an answer belongs to a token."""


@dataclass(frozen=True, kw_only=True)
class TokenizerForm:
    """Whether tokenizer.json has the form of a tokenizer."""

    kind: str
    """Type of the model inside, such as `BPE`; empty when it does not say."""
    tokens: int
    """Entries of its vocabulary."""
    problems: tuple[str, ...]
    """What keeps loaders from using it, each as a phrase."""


@dataclass(frozen=True, kw_only=True)
class Template:
    """One chat template, parsed and never rendered."""

    file: str
    """File that holds it."""
    name: str
    """Its name where a file holds several; otherwise empty."""
    problem: str = ""
    """Why it cannot be used; empty when it parses."""
    line: int | None = None
    """Line of the problem, counted from 1."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """A link of the folder to something outside of it."""

    name: str
    """The file in the folder."""
    target: str
    """Where it leads to."""
    is_read: bool
    """Whether that is an ordinary file, which is read in its place."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`mudpuppy.json` of the folder itself, not of the output around it."""

    value: Mapping[str, Any]
    """Its content."""
    lies_beside: str
    """What lies there: `adapter`, `gptq`, `int8`, `model` or `nothing`."""
    adapter: Mapping[str, Any]
    """`adapter_config.json` beside it; empty without one."""
    names_hash: str = ""
    """Hash of the names of the adapter's parameters; empty when it cannot be made."""
    other_base: str = ""
    """The base that adapter_config.json names, when it is not the one recorded."""
    other_is_surely: bool = False
    """Whether that base was looked at and is another model, not the same one elsewhere."""


@dataclass(frozen=True, kw_only=True)
class Traces:
    """What this project's engine leaves in a folder while it works."""

    finished: bool
    """Whether `mudpuppy.json` is there, which is written last of all."""
    last_step: int | None
    """Last step of `steps.jsonl`; 0 for an empty log, None where there is none of ours."""
    has_record: bool
    """Whether `run.json` is there."""
    staging: tuple[str, ...]
    """Staging folders `.saving-*` that were not moved into place."""
    checkpoints: tuple[str, ...]
    """Folders `checkpoint-*`, the newest last."""
    holds_weights: bool
    """Whether final weights lie there."""

    @property
    def is_ours(self) -> bool:
        """Whether the engine ever wrote into this folder."""
        return self.last_step is not None or self.has_record or bool(self.staging)


def list_unread(files: Files) -> tuple[WeightFile, ...]:
    """Return the weight files that loaders would open and of whose values none can be read here.

    A file that is cut off is read up to there, and a pickle without a tensor has no values.
    """
    return tuple(
        one
        for one in (*files.weights, *files.adapter)
        if one.problem not in ("", "truncated") and (one.problem, one.kind) != ("empty", "pickle")
    )


def tell_unread(files: Files) -> str:
    """Return which of the files that loaders would open were not read, where others were."""
    unread = list_unread(files)
    if not unread:
        return ""
    total = len(files.weights) + len(files.adapter)
    first = unread[0]
    more = f" and {len(unread) - 1} more" if len(unread) > 1 else ""
    return (
        f"{len(unread)} of {agree(total, 'weight file was', 'weight files were')} not read: "
        f"{first.name} ({first.detail or first.problem}){more}"
    )


@dataclass(frozen=True, kw_only=True)
class PickledTwin:
    """Weights that torch pickled, beside those in safetensors that loaders prefer."""

    names: tuple[str, ...]
    """Its files."""
    difference: str = ""
    """How its matrices differ from those in safetensors; empty when they have the same shapes."""
    unread: str = ""
    """Why its tensors could not be listed; empty when they could."""
