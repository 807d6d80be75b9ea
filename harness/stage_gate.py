"""The stage gate of a curriculum: the doctor looks at every stage before training goes on from it.

Found by `mud-puppy curriculum` through the entry point `mudpuppy.stage_gates`. What files and
values tell comes first and ends a sick stage in a second; only a stage that passes is asked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from harness.doctor import Judging, diagnose
from harness.evidence.live.live import describe_live
from harness.evidence.live.state import describe_state
from harness.evidence.source import CheckpointEvidence, Depth
from harness.facts.adapters import is_factor
from harness.findings import Diagnosis, ProbeResult, Severity, Status
from harness.registry import load_probes, run_probes
from mudpuppy.files import write_json_atomic
from mudpuppy.pipelines.curriculum.gates import (
    LEFTOVER,
    MERGE,
    STACKED,
    STUB,
    Examined,
    Fault,
    Verdict,
)

LIVE_FILE = "live.json"
"""What the watcher saw, in the folder it was given."""
ASKED = frozenset({"behaviour", "forward", "any_forward", "consistency", "logits"})
"""Evidence for which models are loaded and asked."""
LIVE = ("MPD501", "MPD502", "MPD504", "MPD506")
"""Probes of the model that trains: leftovers, wrappers, strides, a base that trains too."""
ALWAYS = ("MPD501", "MPD504", "MPD411")
"""Findings of medium severity for which a stage is rolled back: the next one is built on it."""
COLLAPSES = ("MPD601", "MPD604", "MPD605")
"""What a stage did to the answers: an end at once, wrong ones, no voice. Told by these names where
another finding explains them, too; a root cause goes before them, everything else behind."""
BASE_MOVED = "MP-G01"
"""Weights of the base moved while an adapter was said to train."""
NO_ADAPTER = "MP-G02"
"""The model that trained had no adapter in it."""
WATCHED = (BASE_MOVED, NO_ADAPTER, *LIVE)
"""Everything that the watcher checks."""
_UNSEEN = "nobody watched the model while it trained"
SAMPLES = 1024
"""Values of every tensor that are compared before and after training."""

ROOTS: Mapping[str, tuple[str, ...]] = {
    STACKED: ("MPD201", "MPD214", "MPD502"),
    LEFTOVER: ("MPD501",),
    STUB: (BASE_MOVED, NO_ADAPTER, "MPD203", "MPD211", "MPD406", "MPD411", "MPD506"),
    MERGE: ("MPD504", "MPD413", "MPD617"),
}
"""Root causes by what tells of them; where several speak, the first of this table is named."""
WHY = {
    STACKED: "the stage trained an adapter on a model that still wore the one before",
    LEFTOVER: "an adapter was taken off and its settings stayed on the model",
    STUB: "what was called an adapter trains nothing, or the base trains in its place",
    MERGE: "the merge did not write W + scale * BA: the adapter was sound, and the model is not",
}
"""What each root cause is."""


class DoctorGate:
    """Examines stages by the probes of the doctor."""

    def watch(self, folder: Path) -> _Watcher:
        """Return what looks at the model in memory before the first and after the last step."""
        return _Watcher(folder)

    def judge(self, stage: Examined) -> Verdict:
        """Look at what the stage left, and ask it where nothing was found so far."""
        faults, checked, unseen = _read_live(stage)
        static = _visit(stage, Depth.LINEAGE, asks=False)
        faults += _faults_of(stage, static)
        checked += _answered(static)
        unseen += _unanswered(static)
        if faults:
            return Verdict(
                faults=_sort(faults),
                remarks=_remarks(static),
                checked=checked,
                unchecked=tuple(unseen),
            )
        asked = _visit(stage, Depth.BEHAVIOUR, asks=True)
        return Verdict(
            faults=_sort(_faults_of(stage, asked)),
            remarks=(*_remarks(static), *_remarks(asked)),
            checked=checked + _answered(asked),
            unchecked=(*unseen, *_unanswered(asked)),
        )


class _Watcher:
    """Looks at a model while it trains, and writes down what is wrong with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.before: dict[str, Any] = {}

    def on_prepared(self, model: Any, *_: Any) -> None:
        """Remember some values of every tensor of the base."""
        self.before = _sample_base(model)

    def on_fitted(self, model: Any) -> None:
        """Compare them, and run the probes of a live model."""
        after = _sample_base(model)
        moved = sorted(
            name
            for name, values in self.before.items()
            if name not in after or not bool((after[name] == values).all())
        )
        live = describe_live(model)
        given = {"live_model": live, "live_state": describe_state(model)}
        probes = [one for one in load_probes() if one.code in LIVE]
        results = run_probes(probes, CheckpointEvidence(Path(), given=given))
        write_json_atomic(
            self.folder / LIVE_FILE,
            {
                "adapter_layers": live.adapter_layers,
                "tensors": len(self.before),
                "moved": len(moved),
                "first_moved": moved[:3],
                "answered": sum(one.status in (Status.PASSED, Status.FAILED) for one in results),
                "unanswered": could_not(results),
                "findings": [asdict(one) for one in results if one.is_open],
            },
        )


def _sample_base(model: Any) -> dict[str, Any]:
    """Return some values of every tensor that is none of an adapter's, by its name."""
    found = {}
    for name, tensor in model.named_parameters():
        if not is_factor(f"{name}.") and ".modules_to_save." not in name:
            flat = tensor.detach().reshape(-1)
            found[name] = flat[:: max(1, flat.numel() // SAMPLES)].clone()
    return found


def _read_live(stage: Examined) -> tuple[list[Fault], int, list[str]]:
    """Return what the watcher found wrong, how many of its checks answered, and which did not."""
    path = None if stage.live is None else stage.live / LIVE_FILE
    if path is None or not path.is_file():
        return [], 0, [] if stage.kind == "merge" else [f"{code}: {_UNSEEN}" for code in WATCHED]
    seen = json.loads(path.read_text(encoding="utf-8"))
    found = []
    if not seen["adapter_layers"]:
        found.append(_stub(NO_ADAPTER, "no-adapter", "no module of the model that trained had one"))
    if seen["moved"]:
        named = ", ".join(seen["first_moved"])
        found.append(
            _stub(
                BASE_MOVED,
                "base-weights-moved",
                f"{seen['moved']} of {seen['tensors']} frozen tensors moved while the adapter "
                f"trained, such as {named}",
            )
        )
    for one in seen["findings"]:
        root = _root_of(one["code"], "")
        found.append(
            Fault(
                code=one["code"],
                name=one["name"],
                message=one["message"],
                root=root,
                cause=WHY.get(root, one["cause"]),
                remedy=one["remedy"],
            )
        )
    return found, seen["answered"] + 2, list(seen["unanswered"])


def _stub(code: str, name: str, message: str) -> Fault:
    return Fault(
        code=code,
        name=name,
        message=message,
        root=STUB,
        cause=WHY[STUB],
        remedy="attach the adapter to every linear layer (peft.get_peft_model) and look at "
        "model.print_trainable_parameters() before training",
    )


@cache
def _asking_codes() -> tuple[str, ...]:
    """Return the codes of the probes that judge what a model says."""
    return tuple(one.code for one in load_probes() if ASKED & set(one.needs))


def _visit(stage: Examined, depth: Depth, *, asks: bool) -> Diagnosis:
    """Have the doctor look at what a stage left."""
    judging = Judging(
        base=stage.base,
        adapter=stage.adapter,
        depth=depth,
        time_limit_s=stage.time_limit_s,
        in_process=True,  # a gate has a process of its own already
    )
    if asks:
        judging = replace(
            judging,
            generate=True,
            against=None if stage.before == stage.base else stage.before,
            quiz=stage.quiz,
            voice=stage.voice,
            embeddings=stage.embeddings,
            select=_asking_codes(),
        )
    else:
        judging = replace(judging, ignore=_asking_codes())
    return diagnose(stage.folder, judging)


def _faults_of(stage: Examined, diagnosis: Diagnosis) -> list[Fault]:
    """Return the findings for which a stage is rolled back."""
    return [
        Fault(
            code=one.code,
            name=one.name,
            message=one.message,
            root=(root := _root_of(one.code, stage.kind) or one.name),
            cause=WHY.get(root, one.cause),
            remedy=one.remedy,
        )
        for one in diagnosis.findings
        if _counts(one) and (not one.caused_by or one.code in COLLAPSES)
    ]


def _counts(result: ProbeResult) -> bool:
    return result.is_sick_at(Severity.HIGH) or (result.is_open and result.code in ALWAYS)


def _root_of(code: str, kind: str) -> str:
    """Return the root cause that a finding tells of; of a merge, all of its lineage is one."""
    if kind == "merge" and code.startswith("MPD4"):
        return MERGE
    return next((root for root, codes in ROOTS.items() if code in codes), "")


def _sort(faults: Sequence[Fault]) -> tuple[Fault, ...]:
    """Return faults with those of a known root first, in the order of the table."""
    order = [*ROOTS, *COLLAPSES, ""]

    def place(fault: Fault) -> int:
        word = fault.root if fault.root in ROOTS else fault.code
        return order.index(word if word in order else "")

    return tuple(sorted(faults, key=place))


def _remarks(diagnosis: Diagnosis) -> tuple[str, ...]:
    """Return what was found and is no reason to roll back."""
    return tuple(
        f"{one.code} {one.name}: {one.message}" for one in diagnosis.findings if not _counts(one)
    )


def _answered(diagnosis: Diagnosis) -> int:
    return sum(one.status in (Status.PASSED, Status.FAILED) for one in diagnosis.probes)


def _unanswered(diagnosis: Diagnosis) -> list[str]:
    """Return which checks should have answered and could not, and why."""
    return could_not(diagnosis.probes)


def could_not(results: Iterable[ProbeResult]) -> list[str]:
    """Return those that crashed, and those that apply and lacked what they look at."""
    return [
        f"{one.code} {one.name}: {one.reason}"
        for one in results
        if one.status is Status.CRASHED or one.is_unchecked
    ]
