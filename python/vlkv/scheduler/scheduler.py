"""`Scheduler`: takes requests from any thread and answers many at once."""

from __future__ import annotations

from collections import abc
from copy import copy
from numbers import Real
from time import monotonic
from typing import Any

from vlkv.backend.device.backend import DeviceBackend
from vlkv.errors import MemoryLimitError, SamplingError, ServerFullError, quoted
from vlkv.generation.question import Question
from vlkv.generation.reuse import Known, Names, names_of
from vlkv.generation.sequence import Sequence, prepare
from vlkv.generation.sources import Sources, digest_of
from vlkv.inputs.pictures import Limits, measure_visuals, read_visuals
from vlkv.model import Model
from vlkv.scheduler.device_plan import divide_device
from vlkv.scheduler.memory import default_memory
from vlkv.scheduler.pending import Pending
from vlkv.scheduler.pixels import PIXEL_MEMORY, Held, Pixels, held_bytes
from vlkv.scheduler.plan import SLOTS, check_sizes, divide
from vlkv.scheduler.stats import Stats
from vlkv.scheduler.ticket import Ticket
from vlkv.scheduler.worker import SCHEDULED_CHUNK, Worker

QUEUE = 64
MOST_PRIORITY = 10
"""The highest priority of a request; the lowest is its negative, and 0 is the default."""
FOREVER = 1e9
"""Seconds of the longest deadline; a longer one, such as infinity, is as long."""
REUSED = 0.25
"""The share of the memory that contents may take which later requests can reuse."""
CLOSE_SECONDS = 60.0
"""How long leaving a `with` block waits for the step that runs; a thread that hangs does not hang others."""
SERVED = Limits(picture=36_000_000, request=100_000_000, count=64)
"""Limits of a request's pictures, lower than the command line's: a server decodes many requests' pictures at once.

A large JPEG counts with the pixels that are decoded of it.
"""


class Scheduler:
    """Answers requests over a fixed number of lanes, in a thread of its own. `Engine.scheduler` makes one.

    Prompts are prefilled in chunks, between the decode steps of running answers and for 1.5 times as long as they take;
    a short prompt passes a long one (`vlkv.scheduler.prefills`). A greedy answer equals that of `Engine.generate`,
    whatever else runs, unless `capacity` limits a layer's share of the budget.

    Args:
        model: the opened engine.
        slots: the number of lanes: the most answers that run at once. On a device at most the engine's `--max-batch`.
        memory: bytes that caches may occupy: all lanes, and the whole caches of the prompts in prefill. None is half
            of what is available, on a device four fifths of its free memory.
        queue: the most requests that may wait.
        capacity: tokens of a lane in each layer, one number or `[L]`; None for what the memory allows.
        prompt_tokens: the longest prompt that can be compressed; None for what the memory allows.
        chunk: the most prompt tokens between two decode steps.
        limits: limits of a request's pictures.
        pixel_memory: bytes that the pixels of waiting requests may occupy.
        reuse: the most bytes of pictures' features and of prompts' keys and values that are kept for later requests;
            None for `REUSED` of the memory, 0 for none. They are part of `memory`, and give way to requests.

    Raises:
        MemoryLimitError: the memory is too small for the other arguments.
        EngineError: the engine's caches are on a device and are not updated in place.
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
        reuse: int | None = None,
    ) -> None:
        check_sizes(slots, memory, capacity, prompt_tokens)
        text, asked = model.manifest.text, (capacity, prompt_tokens)
        if isinstance(model.backend, DeviceBackend):
            self.plan = divide_device(model.backend, text.hidden, slots, memory, *asked)
        else:
            dtype = model.manifest.cache_dtype
            memory = default_memory(text, slots, dtype=dtype) if memory is None else memory
            self.plan = divide(text, text.hidden, slots, memory, *asked, dtype)
        self._model, self._queue, self._limits = model, queue, limits
        self._pixels, self._sources = Pixels(pixel_memory), Sources()
        reuse = int(self.plan.memory * REUSED) if reuse is None else min(reuse, self.plan.memory)
        self._worker = Worker(model, self.plan, chunk, reuse)
        self._worker.start()

    def submit(
        self, question: Question, *, deadline: float | None = None, owner: str = "", priority: int = 0
    ) -> Ticket:
        """Puts a question into the queue. The caller's thread prepares its text and pictures.

        What can be refused is refused before a picture is decoded.

        Args:
            question: the prompt, its pictures and how to answer.
            deadline: seconds from now after which the answer ends with the tokens that it has.
            owner: who asks; requests reuse only what those of the same owner left.
            priority: -`MOST_PRIORITY` to `MOST_PRIORITY`; requests of a higher one begin first, see
                `vlkv.scheduler.prefills`.

        Raises:
            ServerFullError: too many requests wait, or the scheduler is closed.
            ServerStoppedError: an error has ended the scheduler's thread.
            MemoryLimitError: the request needs more memory than the plan has.
            SamplingError: the deadline is not a number above 0, or the priority is out of range.
            PromptError, ImageError, PolicyError: the question is invalid.
        """
        if deadline is not None and (
            isinstance(deadline, bool) or not isinstance(deadline, Real) or not deadline > 0
        ):
            raise SamplingError(f"deadline {quoted(deadline)} is not a number of seconds above 0")
        if (
            isinstance(priority, bool)
            or not isinstance(priority, int)
            or not -MOST_PRIORITY <= priority <= MOST_PRIORITY
        ):
            raise SamplingError(
                f"priority {quoted(priority)} is not a whole number from {-MOST_PRIORITY} to {MOST_PRIORITY}"
            )
        ticket = Ticket(self._worker.wake, None if deadline is None else float(min(deadline, FOREVER)))
        self._admit()
        asked: list[tuple[Any, ...]] = []

        def later(*given: Any) -> tuple[()]:
            asked.append(given)
            return ()

        sequence = prepare(self._model, question, limits=self._limits, read=later)
        self.plan.check(sequence)
        ticket.pictures = sequence.prompt.placed
        begun = monotonic()
        held, names = self._read(sequence, owner, *asked[0])
        if ticket.pictures:
            ticket.read = begun, monotonic()
        one = Pending(ticket, sequence, self.plan, held, names, priority)
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

    def _read(
        self,
        sequence: Sequence,
        owner: str,
        images: Any,
        clips: Any,
        layouts: Any,
        facts: Any,
        limits: Limits,
    ) -> tuple[Held | None, Names | None]:
        """Decodes pictures and videos once there is room for them; pictures whose features are known are not decoded.

        Returns the bytes that they hold from now on, and what identifies them for reuse.
        """
        if not layouts:
            return None, None
        pixels = measure_visuals(images, clips, layouts, facts, limits)
        reuse = self._worker.reuse
        digests: list[bytes | None] = [None] * len(layouts)
        if reuse.limit and not clips and sequence.pruner is None:
            digests = [digest_of(image, layout, owner) for image, layout in zip(images, layouts, strict=True)]
        found = [reuse.peek(self._sources.name(digest)) for digest in digests]
        held, known = self._hold(layouts, {n: one for n, one in enumerate(found) if one is not None})
        most = max((size for n, size in enumerate(pixels) if n not in known), default=0)
        try:
            with self._pixels.decoding(most):
                sequence.images = read_visuals(images, clips, layouts, facts, limits, known)
            names = names_of(sequence.prompt, sequence.images, owner) if reuse.limit else None
        except BaseException:
            held.release()
            raise
        if names is not None:
            for digest, name in zip(digests, names.pictures, strict=True):
                self._sources.learn(digest, name)
        return held, names

    def _hold(self, layouts: Any, known: dict[int, Known]) -> tuple[Held, dict[int, Known]]:
        """Takes the bytes of the pictures: features of known ones, or all pixels if there is no room for these."""
        pixels = [held_bytes([layout]) for layout in layouts]
        features = {n: one.features.nbytes for n, one in known.items()}
        try:
            return self._pixels.hold(sum(features.get(n, size) for n, size in enumerate(pixels))), known
        except (MemoryLimitError, ServerFullError) as error:
            if known:
                return self._hold(layouts, {})
            self._worker.stats.refused += isinstance(error, ServerFullError)
            raise

    @property
    def alive(self) -> bool:
        """Whether the thread runs and accepts requests."""
        return self._worker.is_alive() and not self._worker.draining

    def stats(self) -> Stats:
        """A copy of the counters."""
        found = copy(self._worker.stats)
        found.finished = found.finished.copy()
        found.waiting = len(self._worker.queue)
        found.alive = int(self.alive)
        found.pixel_bytes = self._pixels.held
        reuse = self._worker.reuse
        found.reuse_hits, found.reuse_misses, found.reused_tokens = reuse.hits, reuse.misses, reuse.tokens
        found.picture_hits, found.picture_misses = reuse.picture_hits, reuse.picture_misses
        found.reuse_bytes, found.reuse_bytes_limit = reuse.bytes, reuse.limit
        return found

    def close(self, *, drain: bool = True, timeout: float | None = None) -> bool:
        """Accepts no more requests and ends the thread: with `drain` after all answers have ended, else at once.

        Returns whether the thread has ended within `timeout` seconds.
        """
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
                    f"server is full: {waiting} requests wait for {self.plan.slots} lanes, the limit is "
                    f"{self._queue}; try again later"
                )
