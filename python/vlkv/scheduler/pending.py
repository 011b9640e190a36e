"""One request on its way through the scheduler: in the queue, in prefill, among the running answers."""

from __future__ import annotations

from time import perf_counter

from vlkv.generation.prefill import Parts, prefilling
from vlkv.generation.sequence import Sequence
from vlkv.model import Model
from vlkv.scheduler.lanes import Lanes
from vlkv.scheduler.ticket import Ticket


class Pending:
    """What ties a sequence to those who wait for it.

    Attributes:
        ticket, sequence: whose it is, and what it is.
        lane: where its cache is to end, once its prefill has begun.
        prefill_seconds: spent in its prefill so far.
    """

    def __init__(self, ticket: Ticket, sequence: Sequence) -> None:
        self.ticket, self.sequence = ticket, sequence
        self.lane = -1
        self.prefill_seconds = 0.0
        self._parts: Parts[None] | None = None

    def begin(self, model: Model, chunk: int, lanes: Lanes, lane: int) -> None:
        """Makes ready to prefill into a lane, at most `chunk` tokens a part."""
        self.lane = lane
        self._parts = prefilling(model, self.sequence, chunk, lanes.one(lane))

    def advance(self) -> bool:
        """Runs one part of the prefill; whether it was the last."""
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
        """Lets go of all that the prefill holds."""
        if self._parts is not None:
            self._parts.close()
            self._parts = None
