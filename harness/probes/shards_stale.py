"""Weights of an older save lie beside the ones that are loaded.

What it does: the folder holds `model.safetensors` and also shards, or shards that the index does
not name. Loaders take one set; the other is what a former save left behind. A `pytorch_model.bin`
beside safetensors is usual on hubs, and a note; where its matrices have other shapes, it is of
another model. It is listed, never unpickled.

Why it is bad: which set is taken depends on the reader: transformers prefers `model.safetensors`,
others take every `*.safetensors` file and end up with a mixture of two models (FM45).

Example: `model.safetensors` of 4 GB beside `model-00001-of-00002.safetensors`, after a save with
another `max_shard_size` into the same folder.

What to do: find out which set is the newer one (`ls -l --time-style=full-iso`), and move the other
one away.
"""

from __future__ import annotations

from harness.facts.checkpoint import Files
from harness.facts.files import PickledTwin
from harness.findings import Evidence, Finding, Severity, agree
from harness.registry import NotApplicable, probe


@probe("MPD105", modes=["FM45"], severity=Severity.HIGH)
def check(files: Files, pickled_twin: PickledTwin | None) -> Finding | str:
    """Look for weight files of the standard names that transformers would not open."""
    if not files.weights:
        raise NotApplicable("the folder holds no model weights")
    loaded = {file.name for file in files.weights}
    stale = [n for n in files.ignored_weights if n.endswith(".safetensors")]
    if not stale and pickled_twin is not None:
        return _judge_twin(pickled_twin)
    if not stale:
        return "no weights of another save lie beside those that are loaded"
    return Finding(
        message=f"{agree(len(stale), 'file', 'files')}"
        f" of another save here: {', '.join(stale[:3])}; "
        f"transformers loads {', '.join(sorted(loaded)[:2])} and ignores the rest, "
        "other readers may not",
        evidence=tuple(
            Evidence(what="not loaded", file=name, expected="one set of weights") for name in stale
        ),
        cause="the model was saved twice into one folder with different shard sizes",
        remedy=f"move the older set away, such as: mkdir old && mv {stale[0]} old/",
    )


def _judge_twin(twin: PickledTwin) -> Finding:
    """Report weights in two formats: a note, unless they are two models."""
    name = twin.names[0]
    compared = twin.difference or (
        f"its tensors were not compared: {twin.unread}"
        if twin.unread
        else "its matrices have the same shapes; their values were not compared"
    )
    return Finding(
        message=f"{name} lies beside the safetensors that loaders prefer; {compared}",
        evidence=tuple(
            Evidence(what="weights in a second format", file=one, expected="one set of weights")
            for one in twin.names
        ),
        cause="another model was saved into the folder before"
        if twin.difference
        else "the model was published in both formats, or saved again with another version",
        remedy=f"move the copy that is not meant away, such as: mkdir old && mv {name} old/",
        severity=Severity.MEDIUM if twin.difference else Severity.NOTE,
    )
