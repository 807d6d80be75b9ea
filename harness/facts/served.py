"""What evidence hands to probes about a served model: how the server answered, beside the texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer of a server, or why there is none."""

    text: str = ""
    """What was said, a model's thoughts before the answer included."""
    finish: str = ""
    """The server's `finish_reason`; empty where it gave none."""
    tokens: int | None = None
    """New tokens, as the server counts them."""
    first_logprob: float | None = None
    """Log-probability of the first token, where the server offers it."""
    problem: str = ""
    """Why there is no answer; empty where there is one."""
    thinks: bool = False
    """Whether the server tells thoughts from what is said, and there are nothing but thoughts."""

    @property
    def is_said(self) -> bool:
        """Whether this is an answer, and not a thought that was cut before one."""
        is_open = self.text.lstrip().startswith("<think>") and "</think>" not in self.text
        return self.ended is not False or not (self.thinks or is_open)

    @property
    def ended(self) -> bool | None:
        """Whether the model ended by itself; None where the server does not say."""
        return {"stop": True, "eos": True, "end_turn": True, "length": False}.get(self.finish)


@dataclass(frozen=True, kw_only=True)
class Served:
    """How a server answered one list of prompts."""

    model: str
    """The model that was asked, as the server calls it."""
    replies: tuple[Reply, ...]
    """One for each prompt."""
    limit: int
    """Most new tokens that were asked for."""
    without: Mapping[str, str] = field(default_factory=dict)
    """What the server refused and was then asked without, and what it said."""

    @property
    def failed(self) -> tuple[Reply, ...]:
        """Replies without an answer."""
        return tuple(reply for reply in self.replies if reply.problem)
