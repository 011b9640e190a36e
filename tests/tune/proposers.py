"""A proposer without a search: it gives texts of a list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlkv.tune.proposal import Proposal, State
from vlkv.tune.toolchain import Candidate
from vlkv.tune.verdict import Verdict


class Listed:
    """Gives a list's choices, one a call; those with functions are of that level."""

    name = "listed"

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts

    def propose(self, state: State) -> list[Proposal]:
        text = self.texts[state.calls]
        level = "functions" if "functions" in text else "constants"
        return [Proposal(Candidate(level, text, (), self.name))]

    def learn(self, proposal: Proposal, verdict: Verdict) -> None:
        return

    def remember(self, record: dict[str, Any]) -> None:
        return
