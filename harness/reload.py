"""Reopen a cell's artefacts in a fresh process and compare their logits with the trained model's.

    python -m harness.reload CELL_DIR

Writes CELL_DIR/reload.json, and CELL_DIR/behaviour.json where the whole quiz is asked.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from harness.evidence.behaviour.answers import to_json
from harness.evidence.behaviour.behaviour import find_file, measure_behaviour
from harness.evidence.behaviour.given import BEHAVIOUR_FILE
from harness.observations import Comparison, Generated, PackedLayer
from harness.watcher import REFERENCE_FILE
from harness.watching.event_logs import read_losses
from harness.watching.generation import generate
from harness.watching.logits import compute_logits, max_difference, read_reference
from harness.watching.opening import Opened, Opener
from harness.watching.packed import CALIBRATION_FILE, measure_packed
from mudpuppy.files import write_json_atomic
from mudpuppy.loading import load_tokenizer, with_pad_token
from mudpuppy.provenance import read_provenance

RELOAD_FILE = "reload.json"
SCORERS = ("rm", "prm")
"""Methods whose models score and say nothing."""
QUICK = "quick"
"""Value of the option `behaviour` with which one batch is generated instead of the whole quiz."""


def main(argv: list[str] | None = None) -> int:
    """Compare every artefact below CELL_DIR/checkpoint and measure the behaviour of the last."""
    (folder_name,) = sys.argv[1:] if argv is None else argv
    return reload_cell(Path(folder_name), {})


def reload_cell(folder: Path, options: dict[str, Any]) -> int:
    """Do what `main` does, with the options of the cell's trial.

    Args:
        folder: the cell's folder.
        options: `behaviour: quick` asks one batch instead of the whole quiz.
    """
    artefact = folder / "checkpoint"
    provenance = read_provenance(artefact)
    if provenance is None:
        print(f"{artefact}: no mudpuppy.json, so the artefact is not complete", file=sys.stderr)
        return 1
    comparisons = []
    last: Opened | None = None
    for opened in Opener(artefact, provenance).open_all():
        comparisons.append(_compare(opened, folder))
        last = opened
        print(f"reloaded {opened.name} with {opened.loader}: {comparisons[-1].relative:.2e} off")
    assert last is not None
    generated = None
    packed: tuple[PackedLayer, ...] = ()
    if provenance["config"]["method"] not in SCORERS:
        generated = _ask(folder, artefact, provenance, last, options)
    if provenance["kind"] == "gptq":
        base = Path(provenance["base"]["path"])
        packed = measure_packed(artefact / "gptq", base, folder / CALIBRATION_FILE)
    is_logged = "tensorboard" in provenance["config"]["report_to"]
    found = {
        "comparisons": [asdict(item) for item in comparisons],
        "generated": generated and asdict(generated),
        "packed": [asdict(layer) for layer in packed],
        "logged_losses": read_losses(artefact) if is_logged else None,
    }
    write_json_atomic(folder / RELOAD_FILE, found)
    return 0


def read_reload(folder: Path) -> dict[str, Any]:
    """Return what `reload_cell` wrote, as fields of the observations."""
    found = json.loads((folder / RELOAD_FILE).read_text(encoding="utf-8"))
    generated, logged = found["generated"], found["logged_losses"]
    return {
        "comparisons": tuple(Comparison(**item) for item in found["comparisons"]),
        "generated": generated and Generated(**generated),
        "packed": tuple(PackedLayer(**layer) for layer in found["packed"]),
        "logged_losses": None if logged is None else tuple(map(tuple, logged)),
    }


def _compare(opened: Opened, folder: Path) -> Comparison:
    """Compare one artefact with the trained model, and with what it must differ from."""
    rows, reference = read_reference(folder / REFERENCE_FILE, opened.kind)
    logits = compute_logits(opened.model, rows)
    with opened.untouched(opened.model) as untouched:
        effect = max_difference(logits, compute_logits(untouched, rows))
    return Comparison(
        artefact=opened.name,
        loader=opened.loader,
        max_difference=max_difference(logits, reference),
        scale=_scale(reference),
        effect=effect,
        tolerance=opened.tolerance,
    )


def _scale(reference: Sequence[np.ndarray[Any, Any]]) -> float:
    return max(float(np.abs(logits).max()) for logits in reference)


def _ask(
    folder: Path,
    artefact: Path,
    provenance: dict[str, Any],
    opened: Opened,
    options: dict[str, Any],
) -> Generated | None:
    """Ask an artefact and its base: one batch, or the base's own quiz for the probes to read."""
    base = Path(provenance["base"]["path"])
    tokenizer = with_pad_token(load_tokenizer(str(base)))
    if options.get("behaviour") == QUICK:
        return generate(opened.model, opened.untouched(opened.model), tokenizer, base)
    facts = measure_behaviour(
        artefact if opened.name in ("adapter", "model") else artefact / opened.name,
        base,
        find_file("quiz.jsonl", base),
        find_file("voice.yaml", base),
        model=opened.model,
        tokenizer=tokenizer,
    )
    write_json_atomic(folder / BEHAVIOUR_FILE, to_json(facts))
    return None


if __name__ == "__main__":
    raise SystemExit(main())
