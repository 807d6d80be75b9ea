"""Evidence about a pickled copy of the weights beside safetensors, listed without unpickling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from harness.evidence.files.header_only import is_header_only
from harness.evidence.files.pickle_tree import Call, Named, UnreadablePickle, read_torch_tree
from harness.evidence.source import CheckpointEvidence, provides
from harness.facts.checkpoint import Files
from harness.facts.files import PickledTwin

NAME = "pytorch_model.bin"
"""How transformers names weights that torch pickled."""
APART = ("head", "embed", "shared", "wte", "wpe", "decoder", "predictions", "pooler", "score")
"""Parts of names of matrices that one of two faithful copies may lack: they are tied, or left
out."""


@provides("pickled_twin")
def find_twin(evidence: CheckpointEvidence) -> PickledTwin | None:
    """Compare the matrices of both; None where there is no pickled copy beside safetensors."""
    files: Files = evidence.get("files")
    opened = [file.name for file in files.weights]
    if NAME in opened or not any(name.endswith(".safetensors") for name in opened):
        return None
    names = [NAME] if NAME in files.names else []
    names += [name for name in files.ignored_weights if name.endswith(".bin")]
    if not names:
        return None
    mine = {one.name: one.shape for file in files.weights for one in file.tensors}
    if is_header_only(evidence.folder):
        return PickledTwin(names=tuple(names), unread="only its name was fetched from the hub")
    try:
        theirs: dict[str, tuple[int, ...]] = {}
        for name in names:
            theirs |= dict(_list_shapes(read_torch_tree(evidence.folder / name)))
    except UnreadablePickle as problem:
        return PickledTwin(names=tuple(names), unread=str(problem))
    if not theirs:
        return PickledTwin(names=tuple(names), unread="it is no plain dictionary of tensors")
    if any(len(shape) == 3 for shape in (*mine.values(), *theirs.values())):
        return PickledTwin(names=tuple(names), unread="experts are stacked in one of them")
    return PickledTwin(names=tuple(names), difference=_compare(mine, theirs))


def _list_shapes(tree: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes of a dictionary of tensors, as torch pickles them."""
    for name, one in tree.items() if isinstance(tree, dict) else ():
        call = one
        if isinstance(call, Call) and _is(call, "torch._utils._rebuild_parameter"):
            call = call.arguments[0] if call.arguments else None
        if not isinstance(call, Call) or not _is(call, "torch._utils._rebuild_tensor_v2"):
            continue
        shape = call.arguments[2] if len(call.arguments) > 2 else None
        if not isinstance(name, str) or not isinstance(shape, tuple):
            continue
        if all(isinstance(size, int) for size in shape):
            yield name, shape


def _is(call: Call, name: str) -> bool:
    is_named = isinstance(call.target, Named) and call.target.name == name
    return is_named and isinstance(call.arguments, tuple)


def _compare(mine: Mapping[str, tuple[int, ...]], theirs: Mapping[str, tuple[int, ...]]) -> str:
    """Return how two models differ by their matrices; empty when they do not.

    By shape, not by name: copies of one model were saved under older names and other prefixes.
    """
    here, there = Counter(_matrices(mine)), Counter(_matrices(theirs))
    for more, less, words in ((here, there, "lacks"), (there, here, "has besides")):
        if rest := more - less:
            shape, count = rest.most_common(1)[0]
            return f"it {words} {rest.total()} matrices, such as {count} of {list(shape)}"
    return ""


def _matrices(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
    for name, shape in shapes.items():
        is_matrix = len(shape) == 2 and name.endswith(".weight")
        if is_matrix and not any(part in name for part in APART):
            yield shape
