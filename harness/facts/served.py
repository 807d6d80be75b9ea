"""What evidence hands to probes about a served model: how the server answered, beside the texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mudpuppy.asking.reply import Reply


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
