"""Which questions a gate asks of a stage, and the file that it reads them from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mudpuppy.files import write_text_atomic
from mudpuppy.pipelines.curriculum.plan import Curriculum
from mudpuppy.scoring import Question

MOST = 64
"""Questions of a gate's quiz, as many as the doctor asks: enough to tell a collapse from chance."""


def gate_questions(made: Curriculum, phase: str) -> tuple[Question, ...]:
    """Return what is asked of a stage, the most telling first.

    The topic's own questions, those of the topics before it, the latest first, what must be
    retained, and then those of later topics: nobody knows their answers yet, and a voice is heard
    in them all the same. A voice that collapses shows in some dozen answers, never in six.

    Args:
        made: the curriculum.
        phase: name of the stage, which begins with the number of its topic.
    """
    number = int(phase.partition(".")[0])
    taught = [topic for topic in made.topics if topic.number <= number]
    later = [topic for topic in made.topics if topic.number > number]
    known = [one for topic in reversed(taught) for one in topic.questions]
    rest = [one for topic in later for one in topic.questions]
    return tuple([*known[: MOST // 2], *made.retain, *known[MOST // 2 :], *rest][:MOST])


def write_quiz(path: Path, questions: Sequence[Question]) -> Path:
    """Write questions in the form that `load_quiz` reads, and return the path."""
    lines = [json.dumps(asdict(question), ensure_ascii=False) for question in questions]
    write_text_atomic(path, "\n".join(lines) + "\n")
    return path
