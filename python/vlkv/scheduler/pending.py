"""One request inside the scheduler: first in the queue, then in prefill, then among the running answers."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from vlkv.backend.cache import Cache
from vlkv.generation.prefill import Parts, prefilling
from vlkv.generation.reuse import Names, Reading, Reuse
from vlkv.generation.sequence import Sequence
from vlkv.model import Model
from vlkv.scheduler.pixels import Held
from vlkv.scheduler.plan import Plan
from vlkv.scheduler.ticket import Ticket


class Pending:
    """A sequence together with the ticket of its caller.

    Attributes:
        ticket: receives the answer.
        sequence: the prompt and its answer.
        lane: the lane that receives its cache; -1 before the first token is written to it.
        view: that lane as a cache; None before that.
        left: prompt tokens that are not prefilled yet.
        brief: whether its prefill is expected to take no longer than some decode steps; known when it begins.
        passed: the number of later requests that began before this one.
        lane_bytes: the most bytes of its answer's cache.
        prefill_bytes: the bytes that its prefill needs in addition.
        step_bytes: the most bytes that a decode step adds to its cache.
        prefill_seconds: time spent in its prefill so far.
        token_seconds: time per prompt token in its last chunk; 0 before the first chunk.

    Args:
        plan: computes the bytes.
        held: the bytes of its pictures; released when prefill has read them or the request is closed.
        names: identify its pictures and beginnings.
        priority: requests of a higher one begin first.
    """

    def __init__(
        self,
        ticket: Ticket,
        sequence: Sequence,
        plan: Plan,
        held: Held | None = None,
        names: Names | None = None,
        priority: int = 0,
    ) -> None:
        self.ticket, self.sequence, self.priority = ticket, sequence, priority
        self.lane = -1
        self.view: Cache | None = None
        self.left = len(sequence.prompt.token_ids)
        self.passed = 0
        self.brief = False
        self.lane_bytes, self.prefill_bytes = plan.lane_bytes(sequence), plan.prefill_bytes(sequence)
        self.prefill_seconds = self.token_seconds = 0.0
        self._base_bytes, self.step_bytes = plan.held_bytes(sequence)
        self._chunk = 1
        self._held = held
        self._names = names
        self._parts: Parts[None] | None = None

    @property
    def held_bytes(self) -> int:
        """The most bytes of a running answer's cache after its next decode step."""
        return min(self.lane_bytes, self._base_bytes + len(self.sequence.result.token_ids) * self.step_bytes)

    def begin(self, model: Model, lane: Callable[[Pending], Cache], reuse: Reuse) -> None:
        """Prepares prefill; `lane` assigns the lane that receives the cache, `reuse` has what is known."""

        def take() -> Cache:
            self.view = lane(self)
            return self.view

        reading = None
        if self._names is not None:
            reuse.touch(self._names)
            reading = Reading(reuse, self._names)
        self._parts = prefilling(model, self.sequence, lambda: self._chunk, take, reading)

    def advance(self, chunk: int) -> bool:
        """Runs one part of the prefill, a picture's tile or about `chunk` tokens; returns whether it was the last."""
        assert self._parts is not None
        self._chunk = chunk
        start = perf_counter()
        try:
            done = next(self._parts)
        except StopIteration:
            self._parts = None
            self._free()
            return True
        finally:
            spent = perf_counter() - start
            self.prefill_seconds += spent
        if done:
            self._free()
            before, self.left = self.left, len(self.sequence.prompt.token_ids) - done
            self.token_seconds = spent / max(1, before - self.left)
        return False

    def close(self) -> None:
        """Releases everything that the prefill holds, and the pictures."""
        self._free()
        if self._parts is not None:
            self._parts.close()
            self._parts = None

    def _free(self) -> None:
        """Releases the pictures: nothing needs them after the first chunk of tokens."""
        self.sequence.images = ()
        if self._held is not None:
            self._held.release()
            self._held = None
