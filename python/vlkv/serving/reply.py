"""What came back of one request, whatever API was asked. Times in seconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Reply:
    """What came back.

    Fields:
        text: the answer.
        finish_reason, usage: as the server tells them.
        error: what went wrong, "" for nothing.
        first: until the first piece of text; 0 where none came.
        pieces: moments of the pieces, from the start.
        whole: until the end.
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
        """Tokens of the answer."""
        return int(self.usage.get("generated_tokens", 0))
