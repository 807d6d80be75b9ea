"""One file a subject, each with a `SUBJECT`; a new file here is a new part of the table.

Nothing heavy is imported at the top of these files: listing them is instant, and what is missing is
told by name where a measurement needs it.
"""

from __future__ import annotations

import importlib
import pkgutil

from benchmarks.frame import Subject


def load_subjects() -> dict[str, Subject]:
    """Return every subject by name, in the order of the names.

    Raises:
        ValueError: a file's subject has another name than the file.
    """
    found: dict[str, Subject] = {}
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda one: one.name):
        subject = importlib.import_module(f"{__name__}.{module.name}").SUBJECT
        if subject.name != module.name:
            raise ValueError(f"benchmarks/rows/{module.name}.py calls its subject {subject.name}")
        found[subject.name] = subject
    return found
