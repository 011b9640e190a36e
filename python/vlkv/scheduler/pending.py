"""One request on its way through the scheduler: in the queue, in prefill, among the running answers."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from vlkv.backend.cache import Cache
from vlkv.generation.prefill import Parts, prefilling
from vlkv.generation.sequence import Sequence
from vlkv.model import Model
from vlkv.scheduler.pixels import Held
from vlkv.scheduler.plan import Plan
from vlkv.scheduler.ticket import Ticket


class Pending:
    """What ties a sequence to those who wait for it.

    Attributes:
        ticket, sequence: whose it is, and what it is.
        lane: where its cache lies or is to end; -1 until its first tokens are to be written there.
        view: that lane as a cache, from then on.
        left: prompt tokens that are not prefilled yet.
        passed: how many requests have gone before it that came later.
        lane_bytes, prefill_bytes: what its answer takes at most, and its prefill beside that.
        prefill_seconds: spent in its prefill so far.
        token_seconds: of a prompt token, in its last chunk; 0 before it.

    Args:
        plan: says what it takes.
        held: what its pictures take; given back when prefill has read them, or it is closed.
    """

    def __init__(self, ticket: Ticket, sequence: Sequence, plan: Plan, held: Held | None = None) -> None:
        self.ticket, self.sequence = ticket, sequence
        self.lane = -1
        self.view: Cache | None = None
        self.left = len(sequence.prompt.token_ids)
        self.passed = 0
        self.lane_bytes, self.prefill_bytes = plan.lane_bytes(sequence), plan.prefill_bytes(sequence)
        self.prefill_seconds = self.token_seconds = 0.0
        self._chunk = 1
        self._held = held
        self._parts: Parts[None] | None = None

    def begin(self, model: Model, lane: Callable[[Pending], Cache]) -> None:
        """Makes ready to prefill; `lane` gives it the lane where its cache is to end."""

        def take() -> Cache:
            self.view = lane(self)
            return self.view

        self._parts = prefilling(model, self.sequence, lambda: self._chunk, take)

    def advance(self, chunk: int) -> bool:
        """Runs one part of the prefill, a picture's tile or about `chunk` tokens; whether it was the last."""
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
        """Lets go of all that the prefill holds, and the pictures."""
        self._free()
        if self._parts is not None:
            self._parts.close()
            self._parts = None

    def _free(self) -> None:
        """Lets the pictures go: once the first tokens are run nothing needs them."""
        self.sequence.images = ()
        if self._held is not None:
            self._held.release()
            self._held = None
