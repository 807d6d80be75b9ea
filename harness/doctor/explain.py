"""Find the probe that somebody means: by code, name, failure mode, or the text of a warning.

People paste what their library printed. Probes quote such texts in their documentation and in what
they say, with names and numbers of their own; so the runs of words that both share decide.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections import Counter
from functools import cache

from harness.registry import Probe, load_probes, select_probes
from mudpuppy.errors import UsageError, clip, near_names

Run = tuple[str, str, str]
"""Three words in a row; two are shared by chance."""
LEAST_SHARE = 0.5
"""Of the best match's score; what matches less is not named."""
MAX_CHARS = 4000
"""Characters of a pasted text that are looked at."""


def find_probes(text: str) -> tuple[Probe, ...]:
    """Return the probes that a text is about, the likeliest first; at least one.

    Raises:
        UsageError: none is.
    """
    probes = load_probes()
    word = text.strip()
    exact = [one for one in probes if word.upper() == one.code or word.lower() == one.name]
    if exact:
        return tuple(exact)
    if found := select_probes(probes, [word]) if word else ():
        return found
    if found := _search(word[:MAX_CHARS]):
        return found
    known = [one.code for one in probes] + [one.name for one in probes]
    raise UsageError(
        f"no probe is called '{clip(word)}', and none knows such a text{near_names(word, known)}",
        hint="mudpuppy-doctor list prints every code and name",
    )


def _search(text: str) -> tuple[Probe, ...]:
    """Return the probes that share the most runs of words with a text; rare ones count more."""
    asked = set(_runs(text))
    shelf = _shelf()
    commonness = _commonness()
    scores = {
        # What a probe says both in its documentation and in its findings is what it is about.
        code: sum(said[run] / commonness[run] for run in asked if run in said)
        for code, said in shelf.items()
    }
    best = max(scores.values(), default=0.0)
    if not best:
        return ()
    chosen = [one for one in load_probes() if scores[one.code] >= LEAST_SHARE * best]
    return tuple(sorted(chosen, key=lambda one: -scores[one.code]))


@cache
def _shelf() -> dict[str, Counter[Run]]:
    """Return how often each probe says a run of words, by its code."""
    return {
        one.code: Counter(run for text in _texts(one) for run in _runs(text))
        for one in load_probes()
    }


@cache
def _commonness() -> Counter[Run]:
    """Return how many probes say a run of words."""
    return Counter(run for said in _shelf().values() for run in said)


def _texts(one: Probe) -> list[str]:
    """Return the texts in the source of a probe, documentation first, values left out."""
    module = importlib.import_module(one.module)
    try:
        tree = ast.parse(inspect.getsource(module))
    except OSError:  # a plugin without its source
        tree = None
    if tree is None or one.documentation != inspect.getdoc(module):
        return [one.documentation]
    texts: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            texts.append(" ".join(filter(None, map(_text, node.values))))
        else:
            texts.append(_text(node))
    return texts


def _text(node: ast.AST) -> str:
    is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return str(node.value) if is_text else ""  # type: ignore[attr-defined]


def _runs(text: str) -> list[Run]:
    words = re.findall(r"[a-z0-9_]+", text.lower())
    return list(zip(words, words[1:], words[2:], strict=False))
