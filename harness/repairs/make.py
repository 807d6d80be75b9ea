"""Plan the repairs of a checkpoint, write the repaired copy, and leave a receipt in it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.doctor.subjects import Subject, find_subjects
from harness.evidence.files.inventory import leaves_folder
from harness.evidence.source import CheckpointEvidence, Options
from harness.findings import Diagnosis, ProbeResult
from harness.registry import Missing
from harness.repairs.draft import Change, Converted, Draft, NotCertain
from harness.repairs.registry import Repair, load_repairs
from harness.repairs.write import require_room, write_draft
from mudpuppy.errors import ModelError, OutputError
from mudpuppy.files import atomic_folder, write_json_atomic

RECEIPT = "mudpuppy-repair.json"
"""What a repaired copy says of itself."""
RECEIPT_VERSION = 1
NOT_ON_A_COPY = "values are damaged or lost, or only a person can decide"
"""Why most findings have no repair."""


@dataclass(frozen=True, kw_only=True)
class Unmended:
    """A finding that is not repaired."""

    code: str
    """Code of the probe."""
    name: str
    """Name of the probe."""
    subject: str
    """Which checkpoint."""
    why: str
    """Why not."""


@dataclass(frozen=True, kw_only=True)
class RepairPlan:
    """What would be different in a repaired copy."""

    root: Path
    """What is repaired."""
    drafts: tuple[Draft, ...]
    """One for each checkpoint that changes."""
    mended: frozenset[tuple[str, str]]
    """Findings that go: the code of the probe, and which checkpoint."""
    unmended: tuple[Unmended, ...]
    """Findings that stay."""

    @property
    def changes(self) -> tuple[Change, ...]:
        """Everything that is different, in order."""
        return tuple(change for draft in self.drafts for change in draft.changes)


def plan_repairs(
    root: Path,
    diagnosis: Diagnosis,
    options: Options,
    only: Collection[str] | None = None,
    *,
    seen: Mapping[str, CheckpointEvidence] | None = None,
) -> RepairPlan:
    """Return the repairs of what a diagnosis found.

    Args:
        root: the folder that was examined.
        diagnosis: what was found in it.
        options: with which it was examined; a base makes more repairs certain.
        only: names of the probes whose findings are to be repaired; all by default.
        seen: evidence that is at hand, by the name of the checkpoint; gathered anew by default.

    Raises:
        ModelError: what was examined is no folder.
    """
    if not root.is_dir():
        raise ModelError(
            f"{root} is a file, and repairs are made on folders",
            hint=f"examine and repair its folder: mudpuppy-doctor {root.parent} --fix",
        )
    drafts: list[Draft] = []
    mended: set[tuple[str, str]] = set()
    unmended: list[Unmended] = []
    for subject in find_subjects(root):
        if subject.file:
            continue
        found = [one for one in diagnosis.findings if one.subject == subject.name]
        evidence = (seen or {}).get(subject.name) or CheckpointEvidence(subject.folder, options)
        draft, rest = _draft(subject, found, evidence, only)
        left = {one.code for one in rest}
        mended |= {(one.code, one.subject) for one in found if one.code not in left}
        unmended += rest
        if draft.changes:
            drafts.append(draft)
    return RepairPlan(
        root=root, drafts=tuple(drafts), mended=frozenset(mended), unmended=tuple(unmended)
    )


def _draft(
    subject: Subject,
    found: Sequence[ProbeResult],
    evidence: CheckpointEvidence,
    only: Collection[str] | None,
) -> tuple[Draft, list[Unmended]]:
    draft = Draft(subject.folder, _files_of(subject.folder), subject.name)
    wanted = {one.name: one for one in found if only is None or one.name in only}
    tried: dict[str, str] = {}
    for one in load_repairs():
        names = [name for name in one.mends if name in wanted]
        if names:
            tried |= dict.fromkeys(names, _try(one, draft, evidence))
    unmended = []
    for result in found:
        mended_or_why = tried.get(result.name, "" if only is None else "not asked for")
        why = "" if result.name in tried and not mended_or_why else mended_or_why or NOT_ON_A_COPY
        if why:
            one_left = Unmended(code=result.code, name=result.name, subject=result.subject, why=why)
            unmended.append(one_left)
    return draft, unmended


def _try(one: Repair, draft: Draft, evidence: CheckpointEvidence) -> str:
    """Make one repair; return why it was not made, or an empty text."""
    draft.repair = one.name
    contents, changes = dict(draft.contents), list(draft.changes)
    try:
        one.apply(draft, evidence)
    except (NotCertain, Missing) as reason:
        draft.contents, draft.changes = contents, changes
        return str(reason)
    except Exception as failure:  # noqa: BLE001 - settings of strangers; nothing is written yet
        draft.contents, draft.changes = contents, changes
        return f"the repair {one.name} could not be planned: {type(failure).__name__}: {failure}"
    return ""


def require_target(root: Path, target: Path) -> None:
    """Refuse a place where no copy can be put.

    Raises:
        OutputError: it exists, or lies in what is repaired.
    """
    if os.path.lexists(target):
        raise OutputError(
            f"{target} exists already", hint="name another folder for the copy with --fix-to DIR"
        )
    if target.resolve().is_relative_to(root.resolve()):
        raise OutputError(f"{target} lies inside {root}", hint="name a folder outside of it")
    if not target.parent.is_dir():
        raise OutputError(f"{target.parent} is no folder, so that {target.name} cannot be made")


def write_copy(plan: RepairPlan, target: Path) -> tuple[str, ...]:
    """Write the repaired copy: whole, or not at all. The original is only read.

    Returns:
        What was left out because it is a link that leads out of the folder, or no plain file.

    Raises:
        OutputError: there is no room, or it cannot be written.
    """
    root = plan.root
    require_target(root, target)
    require_room(target, sum(_size(path) for path in _walk(root)) + _added(plan))
    try:
        with atomic_folder(target) as room:
            skipped = _fill(plan, room)
            write_json_atomic(room / RECEIPT, _receipt(plan))
    except NotCertain as problem:
        raise OutputError(f"{root} changed while it was copied: {problem}") from None
    except OSError as problem:
        raise OutputError(f"{target} cannot be written: {problem.strerror or problem}") from None
    return skipped


def _fill(plan: RepairPlan, room: Path) -> tuple[str, ...]:
    drafted = {draft.folder: draft for draft in plan.drafts}
    folders = {plan.root, *drafted, *(path.parent for path in _walk(plan.root))}
    skipped: list[str] = []
    for folder in sorted(folders):
        present = sorted(path.name for path in folder.iterdir())
        plain = _files_of(folder)
        write_draft(
            drafted.get(folder) or Draft(folder, plain), room / folder.relative_to(plan.root)
        )
        skipped += [
            str((folder / name).relative_to(plan.root))
            for name in present
            if name not in plain and not _is_folder(folder / name)
        ]
    return tuple(skipped)


def _files_of(folder: Path) -> list[str]:
    """Return the plain files of a folder; links only where they stay inside it."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    return [name for name in names if not leaves_folder(folder, name)]


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _walk(root: Path) -> Iterator[Path]:
    """Yield every plain file of a tree; links to folders are not followed."""
    for folder, _, _ in os.walk(root, followlinks=False):
        here = Path(folder)
        yield from (here / name for name in _files_of(here))


def _size(path: Path) -> int:
    return path.stat().st_size


def _added(plan: RepairPlan) -> int:
    """Return the bytes that converted files take."""
    return sum(
        content.num_bytes
        for draft in plan.drafts
        for content in draft.contents.values()
        if isinstance(content, Converted)
    )


def _receipt(plan: RepairPlan) -> dict[str, object]:
    return {
        "schema_version": RECEIPT_VERSION,
        "source": str(plan.root.resolve()),
        "changes": [asdict(one) for one in plan.changes],
        "not_repaired": [asdict(one) for one in plan.unmended],
    }


def describe_plan(plan: RepairPlan) -> Iterable[str]:
    """Yield what a plan does and leaves, a line each."""
    for change in plan.changes:
        yield f"{change.file}: {change.what} ({change.repair})"
    for one in plan.unmended:
        place = "" if one.subject == "." else f" in {one.subject}"
        yield f"not repaired: {one.code} {one.name}{place}: {one.why}"
