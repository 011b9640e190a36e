"""What proposers see, and what they give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vlkv.tune.toolchain import Built, Candidate
from vlkv.tune.verdict import Verdict


class Builder(Protocol):
    """Makes what is judged of a candidate: a library, or at the graph level an engine."""

    def build(self, candidate: Candidate) -> Built:
        """Returns what was built, or why nothing was."""
        ...

    def lower(self, candidate: Candidate, level: str) -> str:
        """Returns a candidate of level source as the text of a lower level."""
        ...


@dataclass
class State:
    """The state of a run. `relative` is the best's time over the source's at BASE_FLAGS, as far as it is known.

    `at` holds each level's fastest right version with its relative time, admitted or not: the next of its level starts
    from there. `lowered` holds the source's version that a lower level was made of last. Libraries of held-out inputs
    and their sizes are not in it: proposers read nothing else.
    """

    toolchain: Builder
    best: Candidate
    library: Path
    levels: tuple[str, ...]
    relative: float = 1.0
    at: dict[str, tuple[Candidate, float]] = field(default_factory=dict)
    calls: int = 0
    lowered: dict[str, Candidate] = field(default_factory=dict)

    def note(self, candidate: Candidate, verdict: Verdict, library: Path | None) -> None:
        """Takes in a verdict."""
        if verdict.ratio is None or not verdict.correct:
            return
        relative = self.relative * verdict.ratio.value
        if candidate.level not in self.at or relative < self.at[candidate.level][1]:
            self.at[candidate.level] = candidate, relative
        if verdict.admitted and library is not None:
            self.best, self.library, self.relative = candidate, library, relative

    def start(self, level: str) -> Candidate:
        """Returns the version of a level to begin with: its fastest, or what the compiler makes of a faster source."""
        source, relative = self.at["source"]
        if level not in self.at or (relative < self.at[level][1] and self.lowered.get(level) is not source):
            self.lowered[level] = source
            flags = ("-O3",) if level == "ir" else source.flags
            self.at[level] = Candidate(level, self.toolchain.lower(source, level), flags), relative
        return self.at[level][0]


@dataclass(frozen=True)
class Proposal:
    """A candidate, or None and the reason; `record` is written to the ledger."""

    candidate: Candidate | None
    reason: str = ""
    record: dict[str, Any] = field(default_factory=dict)


class Proposer(Protocol):
    """A source of candidates."""

    name: str

    def propose(self, state: State) -> Sequence[Proposal]:
        """Makes one call; returns its samples, at least one."""
        ...

    def learn(self, proposal: Proposal, verdict: Verdict) -> None:
        """Takes in what became of the proposal."""
        ...

    def remember(self, record: dict[str, Any]) -> None:
        """Takes in a record of an earlier run."""
        ...
