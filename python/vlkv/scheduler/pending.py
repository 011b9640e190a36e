"""One request inside the scheduler: first in the queue, then in prefill, then among the running answers."""

from __future__ import annotations

from time import perf_counter

from vlkv.generation.prefill import Parts, prefilling
from vlkv.generation.sequence import Sequence
from vlkv.model import Model
from vlkv.scheduler.lanes import Lanes
from vlkv.scheduler.ticket import Ticket


class Pending:
    """A sequence together with the ticket of its caller.

    Attributes:
        ticket: receives the answer.
        sequence: the prompt and its answer.
        lane: the lane that receives its cache; -1 before prefill begins.
        prefill_seconds: time spent in its prefill so far.
    """

    def __init__(self, ticket: Ticket, sequence: Sequence) -> None:
        self.ticket, self.sequence = ticket, sequence
        self.lane = -1
        self.prefill_seconds = 0.0
        self._parts: Parts[None] | None = None

    def begin(self, model: Model, chunk: int, lanes: Lanes, lane: int) -> None:
        """Prepares prefill into a lane, in parts of at most `chunk` tokens."""
        self.lane = lane
        self._parts = prefilling(model, self.sequence, chunk, lanes.one(lane))

    def advance(self) -> bool:
        """Runs one part of the prefill; returns whether it was the last."""
        assert self._parts is not None
        start = perf_counter()
        try:
            next(self._parts)
        except StopIteration:
            self._parts = None
            self.sequence.images = ()  # nothing needs the pictures while the answer runs
            return True
        finally:
            self.prefill_seconds += perf_counter() - start
        return False

    def close(self) -> None:
        """Releases everything that the prefill holds."""
        if self._parts is not None:
            self._parts.close()
            self._parts = None
