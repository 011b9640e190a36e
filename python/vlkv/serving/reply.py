"""The reply to one request, for every API. Times are in seconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Reply:
    """The reply to one request.

    Fields:
        text: the answer.
        finish_reason, usage: the server's values.
        error: the error, "" for none.
        first: time until the first piece of text; 0 if there was none.
        pieces: the times of the pieces, from the start.
        whole: time until the end.
    """

    text: str = ""
    finish_reason: str = ""
    usage: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    first: float = 0.0
    pieces: list[float] = field(default_factory=list)
    whole: float = 0.0

    @property
    def tokens(self) -> int:
        """The number of the answer's tokens."""
        return int(self.usage.get("generated_tokens", 0))
