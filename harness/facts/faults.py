"""What a fault did to a run, and how the run went on: plain, frozen facts (standard library only).

Written by `harness.trials.fault` as the `trial` of an `Observations`, judged by MPD730 to MPD734.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Recovery = Literal["resume", "again", "refusal", "nothing"]
"""What comes after the fault: the same command with `--resume`, the same command as it was, a
command that must be refused, or nothing, since the run came to its end in spite of the fault."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How one command ended, run in a process and a session of its own."""

    name: str
    """Which of the commands it was, such as `attempt` or `recovery`."""
    exit_code: int | None
    """Its exit code; absent where a signal ended it."""
    signal: str | None = None
    """Name of the signal that ended it."""
    timed_out: bool = False
    """Whether it was ended at its time limit."""
    seconds: float
    """Wall time."""
    peak_rss_bytes: int = 0
    """Largest resident memory of the process."""
    said: tuple[str, ...] = ()
    """The last lines of its standard error."""
    complaints: int = 0
    """Messages of ours among them: an error, or that it was interrupted or terminated."""
    traceback: bool = False
    """Whether a traceback was printed."""
    stack: bool = False
    """Whether the stack was printed when it was ended."""
    children_left: int = 0
    """Processes that it had started and that were still there when it had ended."""

    @property
    def words(self) -> str:
        """The ending as a scenario names it: an exit code, a signal, or both ways `0`."""
        return self.signal or str(self.exit_code)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault, what was left of the run, and what became of it."""

    trial: Literal["fault"] = "fault"
    """Whose form this is."""
    fault: str
    """What was done to the run."""
    moment: str
    """When."""
    then: Recovery
    """What came after it."""
    wanted_ending: str
    """Exit code or signal that the attempt must end with."""
    wanted_words: str
    """What its message must hold; empty where it can say nothing."""
    wanted_step: int | None
    """Steps that must not be lost, where it is resumed."""
    attempt: Ending
    """The command that the fault met."""
    bystander: Ending | None = None
    """A second command into the same folder, while the first was at work."""
    recovery: Ending | None = None
    """The command afterwards."""
    resumed_step: int | None = None
    """Step that the recovery went on from."""
    promised: tuple[str, ...]
    """Weights files of the undisturbed run, below its folder."""
    finished: tuple[str, ...] = ()
    """Those that had been finished, manifest and all, when the fault came."""
    lost: tuple[str, ...] = ()
    """Those of them that were gone, or others, after the fault or after the recovery."""
    half_written: tuple[str, ...] = ()
    """What was incomplete after the fault and that a loader, or a manifest, takes for whole."""
    leftovers: tuple[str, ...] = ()
    """Entries at the end that the undisturbed run does not leave."""
    differing: tuple[str, ...] = ()
    """Steps and tensors that are not those of the undisturbed run, bit for bit."""
    compared: int = 0
    """Steps and tensors that were compared with it."""
    survivors: tuple[int, ...] = ()
    """Processes of the attempt that were alive after it had been ended."""
    hung: bool = False
    """Whether the attempt was made to hang, and had to be ended."""
