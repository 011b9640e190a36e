"""The thread that owns the backend; it alternates a part of one prompt's prefill and a step of all running answers."""

from __future__ import annotations

import threading
from collections import deque
from time import monotonic, perf_counter

from vlkv.backend.cache import HostStore
from vlkv.errors import ServerStoppedError
from vlkv.generation.reuse import Reuse
from vlkv.model import Model
from vlkv.scheduler.batch import Batch
from vlkv.scheduler.lanes import lanes_of
from vlkv.scheduler.pending import Pending
from vlkv.scheduler.plan import Plan
from vlkv.scheduler.prefills import Prefills
from vlkv.scheduler.stats import Stats
from vlkv.scheduler.ticket import Ticket
from vlkv.storage.files import reason

SCHEDULED_CHUNK = 256
"""The most prompt tokens between two steps: as fast as chunks of 1024."""


class Worker(threading.Thread):
    """Runs the requests of `queue` until it is stopped.

    Args:
        model: the opened engine; no other thread may use its backend meanwhile.
        plan: the number of lanes and their size.
        chunk: the most prompt tokens between two steps.
        reuse: the most bytes of contents that later requests may reuse. They have what requests leave of the memory.

    Attributes:
        changed: guards `queue` and `draining`, and is notified when they change.
        queue: the waiting requests.
        draining: the queue accepts no more requests, and the thread ends when all are done.
        aborting: every request ends at once.
        died: the error that ended the thread; None if there is none.
        stats: the counters.
        reuse: the contents that later requests may reuse.
    """

    def __init__(self, model: Model, plan: Plan, chunk: int = SCHEDULED_CHUNK, reuse: int = 0) -> None:
        super().__init__(name="vlkv-scheduler", daemon=True)
        self.changed = threading.Condition()
        self.queue: deque[Pending] = deque()
        self.draining = self.aborting = False
        self.died: ServerStoppedError | None = None
        self.stats = Stats(slots=plan.slots, cache_bytes_limit=plan.memory)
        self._model = model
        self._lanes = lanes_of(model, plan.slots, plan.capacity)
        self._batch = Batch(self._lanes, model, self.stats)
        native = model.manifest.operators == "native"
        self._prefills = Prefills(self._lanes, plan, chunk, not native)
        # keys and values are copied on the host, and function operators depend on the chunks
        store = model.backend.store
        # other dtypes' kernels have blocks of their own, and chunks end for float32's
        exact = native and isinstance(store, HostStore) and store.dtype == "float32"
        self.reuse = Reuse(reuse, beginnings=exact)

    def wake(self) -> None:
        """Wakes an idle thread."""
        with self.changed:
            self.changed.notify_all()

    def run(self) -> None:
        """The thread's loop."""
        try:
            while self._wait():
                self._round()
        except BaseException as error:
            self._fail_all(error)
            raise
        finally:
            self.reuse.clear()
            with self.changed:
                self.draining = True
            self._lanes.close()

    def _round(self) -> None:
        start, spent = perf_counter(), self._accounted()
        self._sweep()
        self._begin()
        self.reuse.fit(self._prefills.free(self._batch.running))
        self._advance()
        self._step()
        self._count()
        self.stats.own_seconds += perf_counter() - start - (self._accounted() - spent)

    def _wait(self) -> bool:
        """Waits until there is work; returns False when there will be no more."""
        with self.changed:
            while not (self._batch.running or self._prefills.running or self.queue):
                if self.draining:
                    return False
                self.changed.wait()
        return True

    def _accounted(self) -> float:
        stats = self.stats
        return stats.prefill_seconds + stats.step_seconds + stats.pick_seconds

    def _sweep(self) -> None:
        """Ends cancelled requests and those past their deadline, wherever they are."""
        late = [(one, reason) for one in self._batch.running if (reason := self._over(one.ticket))]
        for one, reason in late:
            self._batch.remove(one)
            self._finish(one.ticket, reason)
        stuck = [(one, reason) for one in self._prefills.running if (reason := self._over(one.ticket))]
        for one, reason in stuck:
            self._prefills.drop(one)
            self._finish(one.ticket, reason)
        with self.changed:
            gone = [(one, reason) for one in self.queue if (reason := self._over(one.ticket))]
            for one, _ in gone:
                self.queue.remove(one)
        for one, reason in gone:
            one.close()
            self._finish(one.ticket, reason)

    def _over(self, ticket: Ticket) -> str | None:
        return "cancelled" if self.aborting else ticket.over(monotonic())

    def _fail_all(self, error: BaseException) -> None:
        """Ends every request with the error, so that no caller waits forever."""
        died = ServerStoppedError(f"the scheduler has stopped by an error: {reason(error)}")
        with self.changed:
            self.draining, self.died = True, died
            waiting = list(self.queue)
            self.queue.clear()
        lost = [*self._batch.running, *self._prefills.running, *waiting]
        self._prefills.running.clear()
        self._batch.running.clear()
        self._count()
        self.stats.failed += len(lost)
        for one in lost:
            try:
                one.close()
            finally:
                one.ticket.end(error=died)

    def _begin(self) -> None:
        """Begins to prefill the prompts that may begin; each is in `running` before anything can fail."""
        while True:
            with self.changed:
                one = self._prefills.choose(self.queue, self._batch.running)
            if one is None:
                return
            one.ticket.started = monotonic()
            try:
                one.begin(
                    self._model, lambda it: self._prefills.take(it, len(self._batch.running)), self.reuse
                )
            except Exception as error:
                self._prefills.drop(one)
                self._finish(one.ticket, error=error)

    def _advance(self) -> None:
        """Runs one part of a prompt; after the last part the sequence joins the running answers."""
        answers = bool(self._batch.running)
        one = self._prefills.next()
        if one is None:
            return
        before = one.prefill_seconds
        try:
            ready = one.advance(self._prefills.tokens(one, self._batch.seconds if answers else 0.0))
            spent = one.prefill_seconds - before
            self.stats.prefill_seconds += spent
            self._prefills.spent(one, spent, answers)
            if ready:
                self._join(one)
        except Exception as error:
            self._prefills.drop(one)
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
            self._prefills.drop(one)
            self._finish(ticket)
            return
        self._prefills.vacate(len(self._batch.running), one)
        self._batch.add(one)
        self._prefills.remove(one)

    def _step(self) -> None:
        """Decodes one token for every running answer."""
        if not self._batch.running:
            self._prefills.idle()
            return
        if self._prefills.steps_wait(self._batch.running):
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
            self._prefills.stepped(self._batch.seconds)
        except Exception as error:
            tickets = [one.ticket for one in self._batch.running]
            self._batch.clear()
            for ticket in tickets:
                self._finish(ticket, error=error)

    def _finish(self, ticket: Ticket, reason: str | None = None, error: Exception | None = None) -> None:
        """Ends a ticket. Its memory is free and counted before the caller learns of the end."""
        self._count()
        if error is not None:
            self.stats.failed += 1
        else:
            self.stats.finished[reason or ticket.result.finish_reason] += 1
        ticket.end(reason, error)

    def _count(self) -> None:
        running, stats = self._batch.running, self.stats
        stats.slots_used = len(running) + len(self._prefills.running)
        stats.cache_bytes = sum(one.sequence.result.cache_bytes for one in running)
