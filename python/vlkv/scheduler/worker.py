"""The thread that owns the backend: a part of a prompt, then a step of all running answers, over and over."""

from __future__ import annotations

import threading
from collections import deque
from time import monotonic, perf_counter

from vlkv.backend.base import Backend
from vlkv.generation.batch import Answer
from vlkv.generation.prefill import Prefilled, prefilling
from vlkv.inputs.embedding import TokenEmbedding
from vlkv.inputs.tokenizer import Tokenizer
from vlkv.scheduler.batch import Batch, Row
from vlkv.scheduler.lanes import SlotCache
from vlkv.scheduler.pending import Reading, Waiting
from vlkv.scheduler.plan import Plan
from vlkv.scheduler.stats import Stats
from vlkv.scheduler.ticket import Ticket
from vlkv.storage.manifest import Manifest

CHUNK = 256
"""Prompt tokens between two steps: as fast as larger chunks, and running answers wait a quarter as long."""


class Worker(threading.Thread):
    """Takes requests from `queue` until it is stopped.

    Args:
        backend, embedding, tokenizer, manifest: the engine's parts; no other thread uses the backend meanwhile.
        plan: how many slots of which size.
        chunk: most prompt tokens between two steps.

    Attributes:
        changed: guards `queue` and `draining`, and is notified when they change.
        queue: who waits.
        draining: no one may be put into the queue any more, and the thread ends when all is done.
        aborting: what is there ends at once.
        stats: the counters.
    """

    def __init__(
        self,
        backend: Backend,
        embedding: TokenEmbedding,
        tokenizer: Tokenizer,
        manifest: Manifest,
        plan: Plan,
        chunk: int = CHUNK,
    ) -> None:
        super().__init__(name="vlkv-scheduler", daemon=True)
        self.changed = threading.Condition()
        self.queue: deque[Waiting] = deque()
        self.draining = self.aborting = False
        self.stats = Stats(slots=plan.slots, cache_bytes_limit=plan.bytes)
        self._backend, self._embedding, self._tokenizer = backend, embedding, tokenizer
        self._manifest, self._chunk = manifest, chunk
        self._slots = SlotCache(manifest.text, plan.slots, plan.capacity)
        self._batch = Batch(self._slots, backend, embedding, self.stats)
        self._reading: Reading | None = None

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
            while not (self._batch.rows or self._reading or self.queue):
                if self.draining:
                    return False
                self.changed.wait()
        return True

    def _accounted(self) -> float:
        stats = self.stats
        return stats.prefill_seconds + stats.step_seconds + stats.pick_seconds

    def _sweep(self) -> None:
        """Ends the cancelled and the late, wherever they are."""
        late = [(row, reason) for row in self._batch.rows if (reason := self._over(row.ticket))]
        for row, reason in late:
            self._batch.remove(row)
            self._finish(row.ticket, reason)
        if self._reading and (reason := self._over(self._reading.ticket)):
            ticket = self._reading.ticket
            self._drop_reading()
            self._finish(ticket, reason)
        with self.changed:
            gone = [(waiting, reason) for waiting in self.queue if (reason := self._over(waiting.ticket))]
            for waiting, _ in gone:
                self.queue.remove(waiting)
        for waiting, reason in gone:
            self._finish(waiting.ticket, reason)

    def _over(self, ticket: Ticket) -> str | None:
        return "cancelled" if self.aborting else ticket.over(monotonic())

    def _fail_all(self, error: BaseException) -> None:
        """Lets no one wait for an answer that will not come."""
        with self.changed:
            self.draining = True
            waiting = [waiting.ticket for waiting in self.queue]
            self.queue.clear()
        reading = [self._reading.ticket] if self._reading else []
        for ticket in (*(row.ticket for row in self._batch.rows), *reading, *waiting):
            ticket.end(error=error)

    def _begin(self) -> None:
        """Starts to read the next prompt where a slot is free and no other is being read."""
        place = len(self._batch.rows)
        if self._reading or place == self._slots.slots:
            return
        with self.changed:
            if not self.queue:
                return
            waiting = self.queue.popleft()
        waiting.ticket.started = monotonic()
        parts = prefilling(
            waiting.request.job,
            self._backend,
            self._embedding,
            self._manifest,
            self._chunk,
            self._slots.one(place),
        )
        self._reading = Reading(waiting, place, parts)

    def _advance(self) -> None:
        """One part of the prompt; after the last it joins the running answers with its first token."""
        reading = self._reading
        if reading is None:
            return
        before = reading.seconds
        try:
            read = reading.advance()
            self.stats.prefill_seconds += reading.seconds - before
            if read is not None:
                self._reading = None
                self._join(reading, read)
        except Exception as error:
            self._drop_reading()
            self._finish(reading.ticket, error=error)

    def _join(self, reading: Reading, read: Prefilled) -> None:
        request, ticket = reading.request, reading.ticket
        tokens, limit = self._manifest.tokens, request.job.room
        answer = Answer(read.result, request.sampling, self._tokenizer, tokens.eos, limit)
        ticket.result = read.result
        self.stats.prompt_tokens += read.result.prompt_tokens
        self.stats.image_tokens += read.result.image_tokens
        self.stats.kept_tokens += sum(read.result.kept_tokens) // len(read.result.kept_tokens)
        piece = answer.take(read.logits)
        self.stats.generated_tokens += 1
        ticket.push(piece)
        if answer.done:
            self._finish(ticket)
            return
        self._slots.settle(read.cache, reading.slot)
        self._batch.add(Row(ticket, answer, read.eviction), reading.slot)

    def _step(self) -> None:
        """One token for every running answer."""
        if not self._batch.rows:
            return
        try:
            for row, piece, error in self._batch.step():
                ticket, result = row.ticket, row.answer.result
                if piece is not None:
                    self.stats.generated_tokens += 1
                    ticket.push(piece)
                    result.seconds.decode = monotonic() - (ticket.first_token or 0.0)
                    result.tokens_per_second = (len(result.token_ids) - 1) / max(result.seconds.decode, 1e-9)
                if error is not None or row.answer.done:
                    self._batch.remove(row)
                    self._finish(ticket, error=error)
        except Exception as error:
            tickets = [row.ticket for row in self._batch.rows]
            self._batch.clear()
            for ticket in tickets:
                self._finish(ticket, error=error)

    def _drop_reading(self) -> None:
        if self._reading is not None:
            self._reading.close()
            self._reading = None

    def _finish(self, ticket: Ticket, reason: str | None = None, error: Exception | None = None) -> None:
        """Tells the end; what it held is free and counted before anyone hears of it."""
        self._count()
        if error is not None:
            self.stats.failed += 1
        else:
            self.stats.finished[reason or ticket.result.finish_reason] += 1
        ticket.end(reason, error)

    def _count(self) -> None:
        rows, stats = self._batch.rows, self.stats
        stats.slots_used = len(rows) + (self._reading is not None)
        stats.cache_bytes = sum(row.answer.result.cache_bytes for row in rows)
