"""Run a curriculum: train, ask, examine, keep or roll back, and go on from the last good state."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mudpuppy.base_path import find_folder
from mudpuppy.children import ChildDied, run_child
from mudpuppy.errors import EngineError, OutputError
from mudpuppy.pipelines.curriculum import stages
from mudpuppy.pipelines.curriculum.faults import (
    faults_of_error,
    faults_of_scores,
    faults_of_training,
    thaw_verdict,
)
from mudpuppy.pipelines.curriculum.gates import Examined, Fault, StageGate, Verdict
from mudpuppy.pipelines.curriculum.pairs import write_pairs
from mudpuppy.pipelines.curriculum.plan import Curriculum, Topic
from mudpuppy.pipelines.curriculum.quizzes import gate_questions, write_quiz
from mudpuppy.pipelines.curriculum.replay import mix
from mudpuppy.pipelines.curriculum.report import show, write_report
from mudpuppy.pipelines.curriculum.state import Point, State
from mudpuppy.pipelines.curriculum.story import STOPPED, Stage, Story, TopicStory

Say = Callable[[str], None]
PAIRS_FILE, MIXED_FILE = "pairs.jsonl", "mixed.jsonl"
UNIT_MERGE = ".unit.merge"
"""End of the name of the phase that merges at the end of a unit."""
STOP_AFTER = 3
"""Stages that may fail in a row for the same reason before a run ends."""


class Stopped(Exception):
    """Too many stages failed in a row for the same reason."""


@dataclass(kw_only=True)
class Run:
    """A curriculum on its way."""

    made: Curriculum
    state: State
    gate: StageGate | None
    say: Say
    stop_after: int = STOP_AFTER
    phase_limit_s: float | None = None
    """Longest time of one phase; None for any."""
    story: Story | None = None

    def tell(self) -> Story:
        """Run whatever is not done yet, and return the whole story.

        Raises:
            UsageError: something that the person can mend.
            EngineError: a phase died without a reason of its own; what is done is kept.
        """
        made = self.made
        self._require_same_model()
        self._require_embeddings()
        point = Point(made.form.model)
        start = self._ask("start", point, made.questions)
        self.story = story = Story(name=made.form.name, model=made.form.model, start=start)
        try:
            for unit in made.form.units:
                topics = [topic for topic in made.topics if topic.unit == unit.name]
                for topic in topics:
                    point = self._topic(topic, point)
                point = self._end_unit(unit.name, topics[-1].number, point)
        except Stopped as error:
            story.ending = f"{STOPPED}: {error}"
            self.say(story.ending)
            self._report()
            return story
        story.end = self._ask("final", point, made.questions)
        story.model_at_end = self.state.write_point(point)
        story.ending = "finished"
        self._link(point)
        self._report()
        return story

    def _require_same_model(self) -> None:
        """Refuse to go on with another model than the one that the run began with.

        The model is looked at in a child: an embedded one may have to be built first.
        """
        log = self.state.log("model")
        now = run_child(
            "model",
            lambda: stages.fingerprint(self.made.form.model),
            log,
            timeout_s=self.phase_limit_s,
        )
        known = self.state.run("model", lambda: {"fingerprint": now})["fingerprint"]
        if now != known:
            raise OutputError(
                f"{self.state.output} was begun with another model: {self.made.form.model} has "
                "changed since",
                hint="name another folder with --output, or put the model back to go on",
            )

    def _require_embeddings(self) -> None:
        """Say whether examples of the voice count, and refuse a model that cannot measure them."""
        if self.made.told_of_examples:
            self.say(self.made.told_of_examples)
        if self.made.embeddings is not None:
            log = self.state.log("embeddings")
            run_child("embeddings", lambda: stages.measure_near(self.made, ["."]), log)

    def _topic(self, topic: Topic, point: Point) -> Point:
        """Take one topic through its stages and return where it left the model."""
        number = f"{topic.number:02d}"
        story = self._story()
        before = self._ask(f"{number}.before", point, topic.questions)
        told = TopicStory(number=topic.number, name=topic.name, before=before, after=before)
        story.topics.append(told)
        self.say(f"topic {topic.number} of {len(self.made.topics)}: {topic.name}")
        self.say(f"  before   {_words(before)}")
        taught = [one.sft for one in self.made.topics if one.number < topic.number]
        dataset = self._mixed(f"{number}.data", topic.sft, taught)
        point = self._stage(topic, told, "sft", point, dataset)
        if told.stages[-1].kept and self._wants_voice(told.after):
            point = self._prefer(topic, told, point)
        elif told.stages[-1].kept:
            self.say(f"  no dpo   {self._why_no_dpo(told.after)}")
        self._report()
        return point

    def _prefer(self, topic: Topic, told: TopicStory, point: Point) -> Point:
        """Train the voice by preference; a new adapter needs a merged model under it."""
        own = self._pairs(topic, point)
        if own is None:
            self.say("  no dpo   there are no pairs to learn from")
            return point
        earlier = [one for one in self.made.topics if one.number < topic.number]
        known = [one.preferences or self._pairs_file(one) for one in earlier]
        learnt = [path for path in known if path.is_file()]
        pairs = self._mixed(f"{topic.number:02d}.pairs.mixed", own, learnt)
        if self.made.form.dpo_adapter == "continued":
            return self._stage(topic, told, "dpo", point, pairs)
        merged = self._merge(f"{topic.number:02d}.sft.merge", told.name, told.stages, point)
        if merged is None:
            return point
        preferred = self._stage(topic, told, "dpo", merged, pairs)
        if preferred == merged:
            return merged
        before = told.stages[-2].after if len(told.stages) > 1 else told.before
        done = self._merge(f"{topic.number:02d}.dpo.merge", told.name, told.stages, preferred)
        if done is None:  # a later stage could not go on with an adapter of another rank
            told.after = before
            return merged
        return done

    def _stage(
        self, topic: Topic, told: TopicStory, kind: str, point: Point, dataset: Path
    ) -> Point:
        """Train one stage; return its point where it is kept, and the one before where not."""
        name = f"{topic.number:02d}.{kind}"
        trained = self._phase(
            name,
            lambda: stages.train_stage(
                self.made, kind, point, dataset, self.state.folder(name), self.gate
            ),
            may_fail=True,
        )
        stage = Stage(kind=kind, before=told.after, after=told.after, training=trained)
        told.stages.append(stage)
        if "error" in trained:
            return self._conclude(told, stage, point, point, faults_of_error(trained["error"]))
        self.say(
            f"  {kind:<8} loss {show(trained['first_loss'])} -> "
            f"{show(trained['final_loss'])} in {trained['steps']} steps"
        )
        after = Point(point.model, str(self.state.folder(name) / stages.ADAPTER))
        # The gate comes first: what it refuses can often not even be loaded.
        stage.verdict = self._judge(name, f"{topic.name} {kind}", kind, after, point)
        found = stage.verdict.faults or faults_of_training(kind, trained)
        if found:
            return self._conclude(told, stage, point, after, found)
        scores = stage.measured = self._ask(f"{name}.asked", after, topic.questions)
        self.say(f"  asked    {_words(scores)}")
        faults = faults_of_scores(kind, told.after, scores, self.made.form.max_drop)
        if not faults:
            stage.after = told.after = scores
        return self._conclude(told, stage, point, after, faults)

    def _conclude(
        self,
        told: TopicStory,
        stage: Stage,
        before: Point,
        after: Point,
        faults: Sequence[Fault],
    ) -> Point:
        """Keep a stage, or roll it back and say why; stop when the same thing goes on and on."""
        stage.faults, stage.kept = tuple(faults), not faults
        stage.folder = self.state.place(after.folder)
        story = self._story()
        if not faults:
            self.say(f"  kept     {_checks(stage.verdict, self.gate)}")
            story.in_a_row, story.last_reason = 0, ""
            return after
        first = faults[0]
        self.say(f"  ROLLED BACK: {first.root or first.name} ({first.code}): {first.message}")
        self.say(f"    because {first.cause}" if first.cause else "    cause unknown")
        if first.remedy:
            self.say(f"    fix     {first.remedy}")
        reason = first.root or first.code
        story.in_a_row = story.in_a_row + 1 if story.last_reason == reason else 1
        story.last_reason = reason
        if self.stop_after and story.in_a_row >= self.stop_after:
            raise Stopped(
                f"{story.in_a_row} stages in a row failed for the same reason "
                f"({first.root or first.name}), the last one in {told.name}"
            )
        return before

    def _merge(self, name: str, topic: str, told: list[Stage], point: Point) -> Point | None:
        """Fold the adapter of a point into its model; None where what came out is not kept."""
        merged = self._phase(
            name,
            lambda: stages.merge_stage(point, self.state.folder(name)),
            may_fail=True,
        )
        after = Point(str(self.state.folder(name) / stages.MODEL))
        verdict, faults = Verdict(), faults_of_error(merged["error"]) if "error" in merged else ()
        if not faults:
            verdict = self._judge(name, f"{topic} merge", "merge", after, point)
            faults = verdict.faults
        last = told[-1].after if told else self._story().topics[-1].after
        stage = Stage(kind="merge", before=last, after=last, training=merged, verdict=verdict)
        told.append(stage)
        self.say(f"  merge    {merged.get('changed', 0)} of {merged.get('tensors', 0)} tensors")
        here = TopicStory(number=0, name=topic, before=last, after=last)
        kept = self._conclude(here, stage, point, after, faults)
        if kept == point:
            return None
        self._forget(point)
        return after

    def _end_unit(self, unit: str, number: int, point: Point) -> Point:
        """Merge what is not merged yet, and ask everything that was taught so far."""
        name = f"{number:02d}.unit"
        told: list[Stage] = []
        if point.adapter is not None:
            point = self._merge(f"{number:02d}{UNIT_MERGE}", f"unit {unit}", told, point) or point
        taught = [one for topic in self.made.topics[:number] for one in topic.questions]
        scores = self._ask(f"{name}.asked", point, taught)
        self._story().units.append({"name": unit, "scores": scores, "stages": told})
        self.say(f"unit {unit}: {_words(scores)}")
        return point

    def _judge(self, name: str, title: str, kind: Any, after: Point, before: Point) -> Verdict:
        """Have the gate examine what a stage left; without one nothing is said."""
        gate = self.gate
        if gate is None:
            return Verdict()
        folder = self.state.folder(f"{name}.gate")

        def work() -> dict[str, Any]:
            folder.mkdir(parents=True)
            quiz = write_quiz(folder / "quiz.jsonl", gate_questions(self.made, name))
            stage = Examined(
                name=title,
                kind=kind,
                folder=after.folder,
                base=find_folder(before.model),
                adapter=Path(before.adapter) if kind == "merge" and before.adapter else None,
                before=find_folder(str(before.folder)),
                quiz=quiz,
                voice=self.made.voice,
                embeddings=self.made.embeddings,
                live=self.state.folder(name) / stages.LIVE,
            )
            return asdict(gate.judge(stage))

        return thaw_verdict(self._phase(f"{name}.gate", work))

    def _pairs(self, topic: Topic, point: Point) -> Path | None:
        """Return the file with the pairs of a topic; made where it brings none."""
        if topic.preferences is not None:
            return topic.preferences
        if self.made.form.pairs == "none" or self.made.profile is None:
            return None
        name, path = f"{topic.number:02d}.pairs", self._pairs_file(topic)
        own = self.made.form.pairs == "model"
        outcome = self._phase(name, lambda: write_pairs(self.made, topic, path, point, own=own))
        self.say(f"  pairs    {outcome['pairs']} of {outcome['samples']} samples")
        return path if outcome["pairs"] else None

    def _pairs_file(self, topic: Topic) -> Path:
        return self.state.folder(f"{topic.number:02d}.pairs") / PAIRS_FILE

    def _mixed(self, name: str, own: Path, earlier: Sequence[Path]) -> Path:
        """Return the data of a stage: a topic's own, and some of each earlier one where asked."""
        each = self.made.form.replay
        if not each or not earlier:
            return own
        path = self.state.folder(name) / MIXED_FILE
        self._phase(name, lambda: mix(own, earlier, each, self.made.form.name, path))
        return path

    def _ask(self, name: str, point: Point, questions: Sequence[Any]) -> dict[str, Any]:
        """Return the scores of a point."""
        folder = self.state.folder(name)
        outcome = self._phase(name, lambda: stages.ask_stage(self.made, point, questions, folder))
        scores: dict[str, Any] = outcome["scores"]
        return scores

    def _phase(
        self, name: str, work: Callable[[], dict[str, Any]], *, may_fail: bool = False
    ) -> dict[str, Any]:
        """Do a phase in a child, once; what is written already is taken as it is.

        Args:
            name: of the phase.
            work: what the child does.
            may_fail: whether an error of the engine is an outcome, for which a stage is rolled
                back, and no end of the run.
        """

        def do() -> dict[str, Any]:
            try:
                found: dict[str, Any] = run_child(
                    name, work, self.state.log(name), timeout_s=self.phase_limit_s
                )
            except ChildDied:
                raise
            except EngineError as error:
                if not may_fail:
                    raise
                return {"error": {"code": error.code, "message": error.message, "hint": error.hint}}
            return found

        return self.state.run(name, do)

    def _wants_voice(self, scores: dict[str, Any]) -> bool:
        return not self._why_no_dpo(scores)

    def _why_no_dpo(self, scores: dict[str, Any]) -> str:
        """Return why a topic is not trained by preference; nothing where it is."""
        made, now = self.made, scores["final"]
        if made.profile is None:
            return "there is no voice profile"
        least = made.least("accuracy", "topic")
        if now["accuracy"] is not None and now["accuracy"] < least:
            return f"accuracy {now['accuracy']:.2f} is below {least:g}"
        least = made.least("voice", "topic")
        return f"voice {now['voice']:.2f} is at least {least:g}" if now["voice"] >= least else ""

    def _forget(self, point: Point) -> None:
        """Remove whole weights that a merge has replaced; adapters and units' models stay."""
        folder = Path(point.model)
        is_ours = folder.name == stages.MODEL and folder.is_relative_to(self.state.output)
        if is_ours and not folder.parent.name.endswith(UNIT_MERGE):
            shutil.rmtree(folder, ignore_errors=True)

    def _link(self, point: Point) -> None:
        """Let `final` stand for what the run ends with, at once and wherever that lies."""
        link, new = self.state.output / "final", self.state.output / ".final.new"
        new.unlink(missing_ok=True)
        new.symlink_to(self.state.place(find_folder(str(point.folder))))
        try:
            new.replace(link)
        except OSError as error:
            new.unlink()
            raise OutputError(
                f"{link} cannot be made a link: {error.strerror}",
                hint="move away what lies there; the same command goes on",
            ) from None

    def _report(self) -> None:
        write_report(self.state.output, self.made, self._story())

    def _story(self) -> Story:
        assert self.story is not None
        return self.story


def _words(scores: dict[str, Any]) -> str:
    now = scores["final"]
    parts = [f"accuracy {show(now['accuracy'])}", f"voice {show(now['voice'])}"]
    if now["empty"]:
        parts.append(f"{now['empty']} of {now['questions']} answers are empty")
    return ", ".join(parts)


def _checks(verdict: Verdict, gate: StageGate | None) -> str:
    if gate is None:
        return "nobody examined it (--gate none)"
    more = f", {len(verdict.unchecked)} could not answer" if verdict.unchecked else ""
    return f"{verdict.checked} checks found nothing{more}"
