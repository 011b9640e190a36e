"""The prompt that is being read, part by part, between the steps of running answers."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

from vlkv.generation.batch import Request
from vlkv.generation.prefill import Parts, Prefilled
from vlkv.scheduler.ticket import Ticket


@dataclass(frozen=True)
class Waiting:
    """A request in the queue."""

    ticket: Ticket
    request: Request


class Reading:
    """A prompt on its way into a slot.

    Attributes:
        ticket, request: whose it is.
        slot: where its cache ends.
        seconds: spent in it so far.
    """

    def __init__(self, waiting: Waiting, slot: int, parts: Parts[Prefilled]) -> None:
        self.ticket, self.request, self.slot = waiting.ticket, waiting.request, slot
        self.seconds = 0.0
        self._parts = parts

    def advance(self) -> Prefilled | None:
        """Runs one part; None until the last."""
        start = perf_counter()
        try:
            next(self._parts)
        except StopIteration as end:
            ready: Prefilled = end.value
            return ready
        finally:
            self.seconds += perf_counter() - start
        return None

    def close(self) -> None:
        """Lets go of all that it holds."""
        self._parts.close()
