"""What the self-test found: one examination a checkpoint, and the figures they add up to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from harness.selftest.modes import Mode, load_modes

SELFTEST_SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What the doctor said about one checkpoint, and what it should have said."""

    name: str
    """The healthy checkpoint or the damage."""
    patient: str = ""
    """The healthy checkpoint that was damaged; empty for a healthy one."""
    mode: str = ""
    """The mode of the catalogue that the damage shows."""
    probe: str = ""
    """The probe that has to find it; empty for a healthy one."""
    missed: tuple[str, ...] = ()
    """Probes that should have spoken and did not."""
    alarms: tuple[str, ...] = ()
    """Probes that spoke and should not have."""
    checked: tuple[str, ...] = ()
    """Probes that examined something and came to an end."""
    crashed: tuple[str, ...] = ()
    """Probes that crashed, with the reason; also why a checkpoint could not be built or asked."""
    verdict: str = ""
    """The verdict, in a sentence."""
    seconds: float = 0.0
    """Time for building and asking."""

    @property
    def is_damage(self) -> bool:
        """Whether something was broken."""
        return bool(self.probe)

    @property
    def is_right(self) -> bool:
        """Whether the doctor said what is true, and nothing else."""
        return not (self.missed or self.alarms or self.crashed)


@dataclass(frozen=True, kw_only=True)
class ProbeFigures:
    """How well one probe does."""

    code: str
    """Such as `MPD203`."""
    name: str
    """Such as `adapter-never-trained`."""
    damages: int
    """Damages that it has to find."""
    found: int
    """Those it found."""
    quiet: int
    """Healthy checkpoints that it examined and said nothing about."""
    alarms: int
    """Checkpoints, healthy or damaged in another way, about which it spoke and should not have."""


@dataclass(frozen=True, kw_only=True)
class ModeFigures:
    """How well one mode of the catalogue is found."""

    mode: Mode
    """The mode."""
    damages: int
    """Damages that show it."""
    found: int
    """Those that were found by the probe they are for."""
    probes: tuple[str, ...]
    """The probes that have to find them."""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Everything a self-test found."""

    examinations: tuple[Examination, ...]
    """In the order of their names, healthy ones first."""
    probes: tuple[tuple[str, str], ...]
    """Code and name of every probe that judges checkpoints."""
    others: tuple[tuple[str, str], ...] = ()
    """Code and name of those that judge runs of the matrix or live objects: not measured here."""
    whole: bool = True
    """Whether everything was examined, not a selection."""
    seconds: float = 0.0
    """Wall-clock time."""

    @property
    def healthy(self) -> tuple[Examination, ...]:
        """The healthy checkpoints."""
        return tuple(one for one in self.examinations if not one.is_damage)

    @property
    def damages(self) -> tuple[Examination, ...]:
        """The damaged ones."""
        return tuple(one for one in self.examinations if one.is_damage)

    @property
    def wrong(self) -> tuple[Examination, ...]:
        """Where the doctor was wrong, or could not say."""
        return tuple(one for one in self.examinations if not one.is_right)

    @property
    def num_found(self) -> int:
        """Damages that their probe found."""
        return sum(_is_found(one) for one in self.damages)

    @property
    def num_alarms(self) -> int:
        """Findings that should not have been there."""
        return sum(len(one.alarms) for one in self.examinations)

    @property
    def recall(self) -> float | None:
        """Share of the damages that were found; None without any."""
        return self.num_found / len(self.damages) if self.damages else None

    @property
    def precision(self) -> float | None:
        """Share of the findings that were true; None where nothing was found."""
        said = self.num_found + self.num_alarms
        return self.num_found / said if said else None

    @property
    def uncovered(self) -> tuple[Mode, ...]:
        """Modes that no damage shows."""
        return tuple(one.mode for one in self.by_mode() if not one.damages)

    @property
    def exit_code(self) -> int:
        """0 all right, 1 missed, alarmed or a mode without damage and reason, 3 not examined."""
        unargued = self.whole and any(not mode.reason for mode in self.uncovered)
        if unargued or any(one.missed or one.alarms for one in self.examinations):
            return 1
        return 3 if self.wrong or not self.examinations else 0

    def by_probe(self) -> tuple[ProbeFigures, ...]:
        """Return the figures of every probe that judges checkpoints, in the order of codes."""
        return tuple(_figures(code, name, self.examinations) for code, name in self.probes)

    def by_mode(self) -> tuple[ModeFigures, ...]:
        """Return the figures of every mode, in the order of the catalogue."""
        return tuple(_mode_figures(mode, self.damages) for mode in load_modes())

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON types."""
        return {
            "schema_version": SELFTEST_SCHEMA_VERSION,
            "whole": self.whole,
            "seconds": round(self.seconds, 1),
            "recall": self.recall,
            "precision": self.precision,
            "false_alarms": self.num_alarms,
            "healthy": len(self.healthy),
            "damages": len(self.damages),
            "probes": [asdict(one) for one in self.by_probe()],
            "not_measured": [{"code": code, "name": name} for code, name in self.others],
            "modes": [
                {**asdict(one), "mode": {**asdict(one.mode), "severity": str(one.mode.severity)}}
                for one in self.by_mode()
            ],
            "examinations": [asdict(one) for one in self.examinations],
        }


def _is_found(one: Examination) -> bool:
    return bool(one.verdict) and one.probe not in one.missed


def _figures(code: str, name: str, examinations: Iterable[Examination]) -> ProbeFigures:
    mine = [one for one in examinations if one.probe == name]
    return ProbeFigures(
        code=code,
        name=name,
        damages=len(mine),
        found=sum(_is_found(one) for one in mine),
        quiet=sum(
            name in one.checked and name not in one.alarms
            for one in examinations
            if not one.is_damage
        ),
        alarms=sum(name in one.alarms for one in examinations),
    )


def _mode_figures(mode: Mode, damages: Sequence[Examination]) -> ModeFigures:
    mine = [one for one in damages if one.mode == mode.number]
    return ModeFigures(
        mode=mode,
        damages=len(mine),
        found=sum(_is_found(one) for one in mine),
        probes=tuple(sorted({one.probe for one in mine})),
    )
