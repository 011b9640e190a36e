"""`Scheduler`: takes requests from any thread and answers many at once."""

from __future__ import annotations

from collections import abc
from copy import copy
from typing import Any

from vlkv.errors import SamplingError, ServerFullError
from vlkv.generation.question import Question
from vlkv.generation.sequence import Sequence, prepare
from vlkv.inputs.pictures import Limits, measure_pictures, read_pictures
from vlkv.model import Model
from vlkv.scheduler.memory import default_memory
from vlkv.scheduler.pending import Pending
from vlkv.scheduler.pixels import PIXEL_MEMORY, Held, Pixels, held_bytes
from vlkv.scheduler.plan import SLOTS, divide
from vlkv.scheduler.stats import Stats
from vlkv.scheduler.ticket import Ticket
from vlkv.scheduler.worker import SCHEDULED_CHUNK, Worker

QUEUE = 64
CLOSE_SECONDS = 60.0
"""How long leaving a `with` block waits for the step that runs; a thread that hangs does not hang others."""
SERVED = Limits(picture=36_000_000, request=100_000_000, count=64)
"""Lower than the command line's, as many requests are decoded at once; a large JPEG counts as what is decoded."""


class Scheduler:
    """Answers over a fixed number of lanes, in a thread of its own. `Engine.scheduler` makes one.

    Prompts are prefilled in chunks between the steps of running answers, for 1.5 times as long as these take; a short
    prompt passes a long one (`vlkv.scheduler.prefills`). A greedy answer is the one that `Engine.generate` gives,
    whatever else runs, unless a lane cuts a layer's share (`capacity`).

    Args:
        model: the opened engine.
        slots: lanes, the answers that run at once.
        memory: bytes that caches may take: all lanes, and the whole caches of the prompts in prefill; None for half of
            what is at hand.
        queue: requests that may wait.
        capacity: tokens of a lane in each layer, one number or `[L]`; None for what the memory gives.
        prompt_tokens: the longest prompt to compress; None for what the memory gives.
        chunk: the most prompt tokens between two steps.
        limits: of a request's pictures.
        pixel_memory: bytes that the pictures of waiting requests may take, as pixels.

    Raises:
        MemoryLimitError: the memory does not hold what is asked for.
    """

    def __init__(
        self,
        model: Model,
        *,
        slots: int = SLOTS,
        memory: int | None = None,
        queue: int = QUEUE,
        capacity: int | abc.Sequence[int] | None = None,
        prompt_tokens: int | None = None,
        chunk: int = SCHEDULED_CHUNK,
        limits: Limits = SERVED,
        pixel_memory: int = PIXEL_MEMORY,
    ) -> None:
        text = model.manifest.text
        memory = default_memory(text, slots) if memory is None else memory
        self.plan = divide(text, text.hidden, slots, memory, capacity, prompt_tokens)
        self._model, self._queue, self._limits = model, queue, limits
        self._pixels = Pixels(pixel_memory)
        self._worker = Worker(model, self.plan, chunk)
        self._worker.start()

    def submit(self, question: Question, *, deadline: float | None = None) -> Ticket:
        """Puts a question into the queue. Text and pictures are made ready here, in the caller's thread.

        What can be refused is refused before a picture is decoded.

        Args:
            question: the prompt, its pictures and how to answer.
            deadline: seconds from now after which the answer ends with what it has.

        Raises:
            ServerFullError: too many wait already, or the scheduler is closed.
            ServerStoppedError: its thread has ended by an error.
            MemoryLimitError: it can never run here.
            SamplingError: a deadline that is no number above 0.
            PromptError, ImageError, PolicyError: what was given can't be used.
        """
        if deadline is not None and not deadline > 0:
            raise SamplingError(f"deadline {deadline!r} is not a number of seconds above 0")
        ticket = Ticket(self._worker.wake, deadline)
        self._admit()
        asked: list[tuple[Any, Any, Any, Any]] = []

        def later(*given: Any) -> tuple[()]:
            asked.append(given)
            return ()

        sequence = prepare(self._model, question, limits=self._limits, read=later)
        self.plan.check(sequence)
        one = Pending(
            ticket, sequence, self.plan, self._read(sequence, *asked[0]) if question.images else None
        )
        try:
            with self._worker.changed:
                self._admit()
                self._worker.stats.submitted += 1
                self._worker.queue.append(one)
                self._worker.changed.notify_all()
        except BaseException:
            one.close()
            raise
        return ticket

    def _read(self, sequence: Sequence, sources: Any, layouts: Any, facts: Any, limits: Limits) -> Held:
        """Decodes the pictures of a sequence when there is room for them; what they hold from now on."""
        most = max(measure_pictures(sources, layouts, facts, limits))
        try:
            held = self._pixels.hold(held_bytes(layouts))
        except ServerFullError:
            self._worker.stats.refused += 1
            raise
        try:
            with self._pixels.decoding(most):
                sequence.images = read_pictures(sources, layouts, facts, limits)
        except BaseException:
            held.release()
            raise
        return held

    @property
    def alive(self) -> bool:
        """Whether its thread runs and takes requests."""
        return self._worker.is_alive() and not self._worker.draining

    def stats(self) -> Stats:
        """The counters, as a copy."""
        found = copy(self._worker.stats)
        found.finished = found.finished.copy()
        found.waiting = len(self._worker.queue)
        found.alive = int(self.alive)
        found.pixel_bytes = self._pixels.held
        return found

    def close(self, *, drain: bool = True, timeout: float | None = None) -> bool:
        """Takes no more requests, and ends: with `drain` after all answers, else at once. True when it has ended."""
        worker = self._worker
        with worker.changed:
            worker.draining = True
            worker.aborting |= not drain
            worker.changed.notify_all()
        worker.join(timeout)
        return not worker.is_alive()

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close(drain=False, timeout=CLOSE_SECONDS)

    def _admit(self) -> None:
        with self._worker.changed:
            if self._worker.died is not None:
                raise self._worker.died
            if self._worker.draining:
                raise ServerFullError("the server is shutting down and takes no more requests")
            waiting = len(self._worker.queue)
            if waiting >= self._queue:
                self._worker.stats.refused += 1
                raise ServerFullError(
                    f"server is full: {waiting} requests wait for {self.plan.slots} slots, the limit is "
                    f"{self._queue}; try again later"
                )
