"""Diagnose a checkpoint: find its subjects, gather evidence, run every probe, give one verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from harness.doctor.acceptance import accept
from harness.doctor.judging import USUAL, Judging
from harness.doctor.paths import (
    require_adapter,
    require_embeddings,
    require_file,
    require_model,
    require_others,
    require_questions,
    require_stage,
    require_subject,
    resolve_tiny,
)
from harness.doctor.root_causes import link_causes
from harness.doctor.subjects import Subject, find_subjects
from harness.doctor.unread import why_unknown
from harness.doctor.verdict import judge, why_unasked
from harness.evidence.source import CheckpointEvidence, Depth, Options
from harness.findings import Diagnosis, Evidence, Fixed, ProbeResult, Status
from harness.hub.names import is_hub_name
from harness.hub.visit import at_hand
from harness.registry import Probe, load_probes, run_probes, select_probes
from mudpuppy.errors import UsageError, near_names
from mudpuppy.garbage import collecting_rarely

WORST = 5
"""Pieces of evidence that a finding keeps."""
MACHINE = ("trap", "installed", "requirements", "wheels")
"""Evidence that only a machine holds."""
WATCHED = ("observations", "expectation", "live_model", "live_state", "served", *MACHINE)
"""Evidence that no checkpoint folder holds; its probes are left out unless they are selected."""
RUN_PROBES = "MPD7"
"""Beginning of the codes of the probes that judge what was observed of a run."""


def diagnose(
    path: str | Path,
    judging: Judging = USUAL,
    *,
    base: str | Path | None = None,
    adapter: str | Path | None = None,
    against: str | Path | None = None,
    generate: bool | None = None,
    quiz: str | Path | None = None,
    voice: str | Path | None = None,
    depth: Depth | str | None = None,
    quick: bool | None = None,
    select: Sequence[str] | None = None,
    ignore: Sequence[str] | None = None,
) -> Diagnosis:
    """Examine a model folder, an adapter folder, a trainer output, or one file of weights.

    Args:
        path: the folder or the file, or `hf://org/name[@revision]`: then settings and headers are
            fetched from the hub, and nothing else.
        judging: all that can be asked; what is named beside it counts in its place.
        base: the model it was made from; otherwise taken from the checkpoint where it names a
            local folder.
        adapter: the adapter that a merged model was made with; otherwise found beside it.
        against: an earlier stage, whose answers are the control in place of the base's.
        generate: load the models and ask them (slow; the only part that starts torch).
        quiz: questions with answers (JSONL) for the accuracy probe.
        voice: voice profile (YAML) for the voice probe.
        depth: how deep to look; by default as deep as goes without loading the models.
        quick: read a sample of every large tensor, not all of it.
        select: probes to run: codes, beginnings of codes, names or failure modes; all by default.
        ignore: probes not to run, in the same words.

    Raises:
        HubError: a name on the hub was given, and the hub could not be asked.
        ModelError: a path that does not exist or is not what it should be.
        UsageError: a word of `select` or `ignore` names no probe; `generate` at a lesser depth;
            `base` or `adapter` is the folder that is examined.
    """
    named = {
        "base": base,
        "adapter": adapter,
        "against": against,
        "generate": generate,
        "quiz": quiz,
        "voice": voice,
        "depth": depth,
        "quick": quick,
        "select": select,
        "ignore": ignore,
    }
    said: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    with collecting_rarely():
        return _visit(path, replace(judging, **said))


def _visit(path: str | Path, judging: Judging) -> Diagnosis:
    chosen = choose_probes(judging.select, judging.ignore)
    require_questions(judging.quiz, judging.voice)
    if judging.generate and is_hub_name(path):
        raise UsageError(
            f"--generate needs the weights, and of {path} only headers are fetched",
            hint="download the model and examine the folder",
        )
    progress = judging.progress
    with at_hand(path, judging.base, judging.adapter, progress=progress) as places:
        root = resolve_tiny(places.paths[0] or "")
        require_subject(root)
        subjects = find_subjects(root)
        options = _make_options(judging, subjects, places.paths, chosen)
        seen: dict[str, CheckpointEvidence] = {}
        results: list[ProbeResult] = []
        unread: dict[str, str] = {}
        described: list[dict[str, Any]] = []
        for number, subject in enumerate(subjects):
            progress(f"examining {subject.path}")
            mine = {} if number else dict(judging.given)
            evidence = CheckpointEvidence(subject.folder, options, given=mine, file=subject.file)
            seen[subject.name] = evidence
            fitting = chosen if judging.select else [one for one in chosen if _fits(one, mine)]
            endings = run_probes(fitting, evidence, subject.name)
            results += endings
            described.append(_describe(subject, evidence) | _tell_answers(evidence))
            if problem := why_unknown(evidence, endings):
                unread[subject.name] = problem
        if judging.beside is not None:
            more = judging.beside()
            results += more.results
            described.append(dict(more.subject))
            unread |= more.unread
        facts: dict[str, Any] = {"subjects": described, "probes": len(chosen), "unread": unread}
        if places.facts:
            facts["hub"] = places.facts
        diagnosis = conclude(str(path), results, facts, judging)
        if not is_hub_name(path) and root.is_dir():
            diagnosis = _tell_repairs(diagnosis, root, options, seen)
        return places.speak(replace(diagnosis, remarks=(*diagnosis.remarks, *places.remarks)))


def _make_options(
    judging: Judging,
    subjects: Sequence[Subject],
    places: Sequence[str | Path | None],
    chosen: Sequence[Probe],
) -> Options:
    """Return what the evidence is gathered with.

    Args:
        judging: what was asked.
        subjects: what is examined.
        places: the path, the base and the adapter, where they are on this machine.
        chosen: the probes that run.

    Raises:
        ModelError: a path that does not exist or is not what it should be.
        UsageError: models are to be asked at a lesser depth; a folder is compared with itself.
    """
    deep = _choose_depth(judging.depth, judging.generate)
    at_path, at_base, at_adapter = places
    asked = {"base": at_base, "adapter": at_adapter}
    require_others(subjects, {k: v for k, v in asked.items() if k not in judging.named_in})
    return Options(
        depth=deep,
        base=require_model(at_base),
        base_source=judging.named_in.get("base", "--base"),
        adapter=require_adapter(at_adapter),
        against=require_stage(judging.against),
        generate=judging.generate or deep is Depth.BEHAVIOUR,
        quiz=require_file(judging.quiz, "a quiz"),
        voice=require_file(judging.voice, "a voice profile"),
        embeddings=require_embeddings(judging.embeddings),
        time_limit_s=judging.time_limit_s,
        in_process=judging.in_process,
        quick=judging.quick,
        wanted=frozenset(name for one in chosen for name in one.needs),
        progress=judging.progress,
        scanned=judging.scanned,
        root=resolve_tiny(at_path or ""),
        run_folder=None if judging.run_folder is None else Path(judging.run_folder),
    )


def _tell_repairs(
    diagnosis: Diagnosis, root: Path, options: Options, seen: Mapping[str, CheckpointEvidence]
) -> Diagnosis:
    """Return the diagnosis with the codes of the open findings that `--fix` would mend."""
    found = [result for result in diagnosis.findings if result.is_open]
    if not found:
        return diagnosis
    from harness.repairs.make import plan_repairs

    mended = plan_repairs(root, diagnosis, options, seen=seen).mended
    codes = sorted({one.code for one in found if (one.code, one.subject) in mended})
    return replace(diagnosis, facts={**diagnosis.facts, "repairable": codes})


def _choose_depth(depth: Depth | str | None, generate: bool) -> Depth:
    """Return how deep to look.

    Raises:
        UsageError: models are to be asked, and nothing so deep is to be looked at.
    """
    deep = Depth(depth) if depth else Depth.BEHAVIOUR if generate else Depth.LINEAGE
    if generate and deep is not Depth.BEHAVIOUR:
        raise UsageError(
            f"--generate asks the models, and --depth {deep} does not look so deep",
            hint="leave one of them out",
        )
    return deep


def conclude(
    path: str,
    results: Sequence[ProbeResult],
    facts: Mapping[str, Any],
    judging: Judging = USUAL,
) -> Diagnosis:
    """Return the diagnosis that follows from the endings of all probes.

    What is accepted or known comes first, then what explains what, then the verdict.
    """
    ordered: Sequence[ProbeResult] = sorted(results, key=lambda result: result.code)  # stable
    ordered, remarks = accept(ordered, judging.accepted, date.today())
    fixed: tuple[Fixed, ...] = ()
    if judging.baseline is not None:
        ordered, fixed = judging.baseline.compare(ordered)
    linked = link_causes(ordered)
    sampled = sum(one.get("sampled", 0) for one in facts.get("subjects", ()))
    unasked = why_unasked(facts.get("subjects", ()))
    verdict, why = judge(linked, facts.get("unread", {}), sampled, unasked)
    return Diagnosis(
        path=path,
        verdict=verdict,
        why=why,
        probes=tuple(_cap(result) for result in linked),
        facts=dict(facts),
        fail_on=judging.fail_on,
        fixed=fixed,
        remarks=remarks,
    )


def diagnose_model(model: Any) -> Diagnosis:
    """Examine a model object in memory: its adapters, hooks, devices, gradients and ties."""
    from harness.evidence.live.live import describe_live
    from harness.evidence.live.state import describe_state

    live = describe_live(model)
    given = {"live_model": live, "live_state": describe_state(model)}
    probes = [one for one in load_probes() if set(one.needs) & given.keys()]
    evidence = CheckpointEvidence(Path(), given=given)
    facts = {"subjects": [{"subject": ".", "kind": "live model", "type": live.type_name}]}
    return conclude(live.type_name, run_probes(probes, evidence), facts)


def assert_healthy(path: str | Path, judging: Judging = USUAL, **named: Any) -> Diagnosis:
    """Raise unless `diagnose` with the same arguments says healthy; meant for tests.

    Raises:
        AssertionError: the checkpoint is sick, or could not be examined; holds the findings.
    """
    diagnosis = diagnose(path, judging, **named)
    if diagnosis.exit_code:
        raise AssertionError(summarise(diagnosis))
    return diagnosis


def summarise(diagnosis: Diagnosis) -> str:
    """Return the findings, what could not be checked, and the verdict as plain lines."""
    lines = [f"{diagnosis.path}:"]
    for result in diagnosis.findings:
        lines.append(f"  {result.severity} {result.code} {result.name} [{result.subject}]")
        lines.append(f"    {result.message}")
        lines.append(f"    because {result.cause}")
        lines.append(f"    fix     {result.remedy}")
    lines += [
        f"  crashed {result.code} {result.name}: {result.reason}"
        for result in diagnosis.probes
        if result.status is Status.CRASHED
    ]
    lines += [
        f"  not checked {result.code} {result.name}: {result.reason}"
        for result in diagnosis.probes
        if result.is_unchecked
    ]
    lines.append(f"{diagnosis.verdict.upper()} - {diagnosis.why}")
    return "\n".join(lines)


def choose_probes(select: Sequence[str], ignore: Sequence[str]) -> tuple[Probe, ...]:
    """Return the selected probes.

    Raises:
        UsageError: a word names no probe.
    """
    probes = load_probes()
    for word in (*select, *ignore):
        if not select_probes(probes, [word]):
            known = [one.code for one in probes] + [one.name for one in probes]
            raise UsageError(
                f"no probe is called '{word}'{near_names(word, known)}",
                hint="mudpuppy-doctor list prints every code and name",
            )
    return select_probes(probes, select, ignore)


def _fits(one: Probe, given: Mapping[str, Any]) -> bool:
    """Whether a probe may apply: a run or a live model is only judged where one is at hand."""
    if one.code.startswith(RUN_PROBES) and "observations" not in given:
        return False
    return all(name in given for name in one.needs if name in WATCHED)


def _cap(result: ProbeResult) -> ProbeResult:
    """Return the result with its worst evidence, and how much more there is."""
    more = len(result.evidence) - WORST
    if more <= 0:
        return result
    rest = Evidence(what="further pieces of evidence like these", found=more)
    return replace(result, evidence=(*result.evidence[:WORST], rest))


def _tell_answers(evidence: CheckpointEvidence) -> dict[str, Any]:
    behaviour = evidence.recall("behaviour")
    if behaviour is None:
        return {}
    from harness.doctor.answers_told import describe_answers

    return {"answers": describe_answers(behaviour)}


def _describe(subject: Subject, evidence: CheckpointEvidence) -> dict[str, Any]:
    """Return what was examined, as plain JSON types."""
    files = evidence.glance("files")
    if files is None:
        return {"subject": subject.name, "kind": "nothing"}
    described = [*files.weights, *files.adapter]
    tensors = [tensor for file in described for tensor in file.tensors]
    base = evidence.glance("base")
    numbers = evidence.recall("numbers") or {}
    config = evidence.glance("config") or {}
    settings = evidence.glance("adapter")
    gguf = evidence.glance("gguf")
    return {
        "subject": subject.name,
        "kind": "adapter" if files.adapter else "model" if files.weights else "no weights",
        "model_type": str(config.get("model_type") or (gguf.architecture if gguf else ""))[:80],
        "peft_type": settings.kind[:80] if settings else "",
        "files": len(files.names),
        "tensors": len(tensors),
        "sampled": sum(not one.complete for one in numbers.values()),
        "parameters": sum(tensor.elements for tensor in tensors),
        "bytes": sum(file.size_bytes for file in described),
        "dtypes": sorted({tensor.dtype for tensor in tensors}),
        "base": base.root if base else None,
        "base_named_by": base.named_by if base else None,
    }
