"""A configuration file that is not a JSON object.

What it does: config.json, adapter_config.json, tokenizer.json or another settings file cannot be
read: cut off, empty, a git-LFS pointer, or not JSON at all.

Why it is bad: the model does not load, or a reader that falls back on defaults loads something else
(FM46).

Example: `config.json: Expecting ',' delimiter: line 12 column 3`, after an edit by hand or an
interrupted save.

What to do: take the file from the base model or an older checkpoint of the same run, and apply what
differs again.
"""

from __future__ import annotations

from harness.facts.checkpoint import Files
from harness.findings import Evidence, Finding, Severity
from harness.registry import NotApplicable, probe


@probe("MPD107", modes=["FM46", "FM44"], severity=Severity.CRITICAL)
def check(files: Files) -> Finding | str:
    """Report every settings file that could not be parsed."""
    present = [name for name in files.names if name.endswith(".json")]
    if not present:
        raise NotApplicable("the folder holds no JSON file")
    bad = dict(files.unreadable_json)
    if not bad:
        return "the settings files are JSON objects"
    first, why = next(iter(sorted(bad.items())))
    return Finding(
        message=f"{first} cannot be read: {why}",
        evidence=tuple(
            Evidence(what="unreadable", file=name, found=bad[name], expected="a JSON object")
            for name in sorted(bad)
        ),
        cause="no settings file is that large: something else was written under this name"
        if why.startswith(("larger", "too many"))
        else "the save was interrupted, or the file was edited by hand",
        remedy=f"copy {first} from the base model or an older checkpoint of the same run",
    )
