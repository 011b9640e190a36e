"""The thread that owns the backend: a part of a prompt, then a step of all running answers, over and over."""

from __future__ import annotations

import threading
from collections import deque
from time import monotonic, perf_counter

from vlkv.errors import ServerStoppedError
from vlkv.model import Model
from vlkv.scheduler.batch import Batch
from vlkv.scheduler.lanes import LaneCache
from vlkv.scheduler.pending import Pending
from vlkv.scheduler.plan import Plan
from vlkv.scheduler.stats import Stats
from vlkv.scheduler.ticket import Ticket
from vlkv.storage.files import reason

SCHEDULED_CHUNK = 256
"""Prompt tokens between two steps: as fast as larger chunks, and running answers wait a quarter as long."""


class Worker(threading.Thread):
    """Takes requests from `queue` until it is stopped.

    Args:
        model: the opened engine; no other thread uses its backend meanwhile.
        plan: how many lanes of which size.
        chunk: most prompt tokens between two steps.

    Attributes:
        changed: guards `queue` and `draining`, and is notified when they change.
        queue: who waits.
        draining: no one may be put into the queue any more, and the thread ends when all is done.
        aborting: what is there ends at once.
        died: the error that ended the thread, if one did.
        stats: the counters.
    """

    def __init__(self, model: Model, plan: Plan, chunk: int = SCHEDULED_CHUNK) -> None:
        super().__init__(name="vlkv-scheduler", daemon=True)
        self.changed = threading.Condition()
        self.queue: deque[Pending] = deque()
        self.draining = self.aborting = False
        self.died: ServerStoppedError | None = None
        self.stats = Stats(slots=plan.slots, cache_bytes_limit=plan.memory)
        self._model, self._chunk = model, chunk
        self._lanes = LaneCache(model.manifest.text, plan.slots, plan.capacity)
        self._batch = Batch(self._lanes, model, self.stats)
        self._prefill: Pending | None = None
        self._plan = plan

    def wake(self) -> None:
        """Makes an idle thread look again."""
        with self.changed:
            self.changed.notify_all()

    def run(self) -> None:
        """The thread's work."""
        try:
            while self._wait():
                self._round()
        except BaseException as error:
            self._fail_all(error)
            raise
        finally:
            with self.changed:
                self.draining = True

    def _round(self) -> None:
        start, spent = perf_counter(), self._accounted()
        self._sweep()
        self._begin()
        self._advance()
        self._step()
        self._count()
        self.stats.own_seconds += perf_counter() - start - (self._accounted() - spent)

    def _wait(self) -> bool:
        """Sleeps while there is nothing to do; false when there will be nothing more."""
        with self.changed:
            while not (self._batch.running or self._prefill or self.queue):
                if self.draining:
                    return False
                self.changed.wait()
        return True

    def _accounted(self) -> float:
        stats = self.stats
        return stats.prefill_seconds + stats.step_seconds + stats.pick_seconds

    def _sweep(self) -> None:
        """Ends the cancelled and the late, wherever they are."""
        late = [(one, reason) for one in self._batch.running if (reason := self._over(one.ticket))]
        for one, reason in late:
            self._batch.remove(one)
            self._finish(one.ticket, reason)
        if self._prefill and (reason := self._over(self._prefill.ticket)):
            ticket = self._prefill.ticket
            self._drop_prefill()
            self._finish(ticket, reason)
        with self.changed:
            gone = [(one, reason) for one in self.queue if (reason := self._over(one.ticket))]
            for one, _ in gone:
                self.queue.remove(one)
        for one, reason in gone:
            self._finish(one.ticket, reason)

    def _over(self, ticket: Ticket) -> str | None:
        return "cancelled" if self.aborting else ticket.over(monotonic())

    def _fail_all(self, error: BaseException) -> None:
        """Lets no one wait for an answer that will not come."""
        died = ServerStoppedError(f"the scheduler has stopped by an error: {reason(error)}")
        with self.changed:
            self.draining, self.died = True, died
            waiting = list(self.queue)
            self.queue.clear()
        prefill = [self._prefill] if self._prefill else []
        lost = [*self._batch.running, *prefill, *waiting]
        self._prefill = None
        self._batch.running.clear()
        self._count()
        self.stats.failed += len(lost)
        for one in lost:
            one.ticket.end(error=died)

    def _begin(self) -> None:
        """Begins to prefill the next prompt where a lane is free and no other is in prefill."""
        place = len(self._batch.running)
        if self._prefill or place == self._lanes.lanes:
            return
        with self.changed:
            if not self.queue or not self._fits(self.queue[0]):
                return
            one = self.queue.popleft()
            self._prefill = one  # before anything can go wrong with it
        one.ticket.started = monotonic()
        try:
            one.begin(self._model, self._chunk, self._lanes, place)
        except Exception as error:
            self._drop_prefill()
            self._finish(one.ticket, error=error)

    def _fits(self, one: Pending) -> bool:
        """Whether the memory holds it beside the running answers; alone every request that was taken does."""
        used = sum(self._plan.lane_bytes(other.sequence) for other in self._batch.running)
        wanted = self._plan.lane_bytes(one.sequence) + self._plan.prefill_bytes(one.sequence)
        return used + wanted <= self._plan.memory

    def _advance(self) -> None:
        """One part of the prompt; after the last it joins the running answers with its first token."""
        one = self._prefill
        if one is None:
            return
        before = one.prefill_seconds
        try:
            ready = one.advance()
            self.stats.prefill_seconds += one.prefill_seconds - before
            if ready:
                self._prefill = None
                self._join(one)
        except Exception as error:
            self._drop_prefill()
            self._finish(one.ticket, error=error)

    def _join(self, one: Pending) -> None:
        ticket, sequence = one.ticket, one.sequence
        ticket.result = result = sequence.result
        self.stats.prompt_tokens += result.prompt_tokens
        self.stats.image_tokens += result.image_tokens
        self.stats.kept_tokens += sum(result.kept_tokens) // len(result.kept_tokens)
        piece = sequence.take(sequence.logits)
        self.stats.generated_tokens += 1
        ticket.push(piece)
        if sequence.done:
            sequence.cache = None
            self._lanes.release(one.lane)
            self._finish(ticket)
            return
        self._batch.add(one)

    def _step(self) -> None:
        """One token for every running answer."""
        if not self._batch.running:
            return
        try:
            for one, piece, error in self._batch.step():
                ticket, result = one.ticket, one.sequence.result
                if piece is not None:
                    self.stats.generated_tokens += 1
                    ticket.push(piece)
                    result.seconds.decode = monotonic() - (ticket.first_token or 0.0)
                    result.tokens_per_second = (len(result.token_ids) - 1) / max(result.seconds.decode, 1e-9)
                if error is not None or one.sequence.done:
                    self._batch.remove(one)
                    self._finish(ticket, error=error)
        except Exception as error:
            tickets = [one.ticket for one in self._batch.running]
            self._batch.clear()
            for ticket in tickets:
                self._finish(ticket, error=error)

    def _drop_prefill(self) -> None:
        if self._prefill is not None:
            self._prefill.close()
            if self._prefill.lane >= 0:
                self._lanes.release(self._prefill.lane)
            self._prefill = None

    def _finish(self, ticket: Ticket, reason: str | None = None, error: Exception | None = None) -> None:
        """Tells the end; what it held is free and counted before anyone hears of it."""
        self._count()
        if error is not None:
            self.stats.failed += 1
        else:
            self.stats.finished[reason or ticket.result.finish_reason] += 1
        ticket.end(reason, error)

    def _count(self) -> None:
        running, stats = self._batch.running, self.stats
        stats.slots_used = len(running) + (self._prefill is not None)
        stats.cache_bytes = sum(one.sequence.result.cache_bytes for one in running)
