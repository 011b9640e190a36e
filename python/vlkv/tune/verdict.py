"""What becomes of candidates, and which were judged already."""

from __future__ import annotations

from dataclasses import dataclass, field

from vlkv.tune.ratio import Ratio

RIGHT = "time"
"""The gate of candidates that are right, and not faster."""


@dataclass(frozen=True)
class Verdict:
    """What became of a candidate: the gate that refused it (None: admitted), the reason, and its ratio if timed.

    `shown` is the reason without held-out inputs, which a proposer may read.
    """

    gate: str | None
    reason: str
    correct: bool = False
    ratio: Ratio | None = None
    compile_seconds: float = 0.0
    seconds: float = 0.0
    shown: str = field(default="")

    @property
    def admitted(self) -> bool:
        """Whether the candidate is right and faster."""
        return self.gate is None


class Known:
    """What was judged already, by a hash of what was built; `said` tells a proposer why it is not judged again."""

    def __init__(self, said: str) -> None:
        self.said = said
        self._gates: dict[str, str] = {}

    def note(self, code: str, gate: str = RIGHT) -> None:
        """Notes the gate that refused it; without one it is right, and not timed again."""
        self._gates[code] = gate

    def verdict(self, code: str, compile_seconds: float, seconds: float) -> Verdict | None:
        """Returns the verdict on what was judged before, or None for what is new."""
        gate = self._gates.get(code)
        if gate is None:
            return None
        return Verdict(gate, self.said, gate == RIGHT, None, compile_seconds, seconds)
