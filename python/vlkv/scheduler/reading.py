"""The prompt that is being read, part by part, between the steps of running answers."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from time import perf_counter

from vlkv.backend.base import Floats
from vlkv.cache import Cache
from vlkv.generate import Request
from vlkv.result import Result
from vlkv.scheduler.ticket import Ticket

Parts = Generator[int, None, tuple[Cache, Floats, Result]]


@dataclass(frozen=True)
class Waiting:
    """A request in the queue."""

    ticket: Ticket
    request: Request


@dataclass(frozen=True)
class Read:
    """A prompt that was read: logits `[V]` of its last token, its cache in its slot, a result without answer."""

    cache: Cache
    logits: Floats
    result: Result


class Reading:
    """A prompt on its way into a slot.

    Attributes:
        ticket, request: whose it is.
        slot: where its cache ends.
        seconds: spent in it so far.
    """

    def __init__(self, waiting: Waiting, slot: int, parts: Parts) -> None:
        self.ticket, self.request, self.slot = waiting.ticket, waiting.request, slot
        self.seconds = 0.0
        self._parts = parts

    def advance(self) -> Read | None:
        """Runs one part; None until the last."""
        start = perf_counter()
        try:
            next(self._parts)
        except StopIteration as end:
            return Read(*end.value)
        finally:
            self.seconds += perf_counter() - start
        return None

    def close(self) -> None:
        """Lets go of all that it holds."""
        self._parts.close()
