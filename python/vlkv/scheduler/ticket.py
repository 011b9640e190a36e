"""One request's answer, as the threads that wait for it see it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from time import monotonic

from vlkv.generation.result import Result
from vlkv.inputs.layouts import Layout

Listener = Callable[["Ticket", str | None], None]
"""Called in the scheduler's thread with the ticket and each piece of text; None marks the end."""


class Ticket:
    """An answer in progress. Iterate (`for` or `async for`) over its pieces of text, or `wait` for the whole answer.

    Leaving a `with` block or an `async for` cancels an answer that has not ended. Every iteration yields the whole
    text, a second one too, and several at once.

    Attributes:
        result: grows with the answer and is complete when the answer has ended. `finish_reason` is `stop`, `length`,
            `cancelled` or `deadline`.
        pictures: the prompt position and the layout of each picture and frame.
        read: `time.monotonic()` when its pictures began to be decoded, and when they were; None without pictures.
        submitted, started, first_token, ended: `time.monotonic()` of each event; None before it.

    Args:
        wake: called on cancellation, so that an idle scheduler notices it.
        deadline: seconds after which the answer ends with the tokens that it has.
    """

    def __init__(self, wake: Callable[[], None] = lambda: None, deadline: float | None = None) -> None:
        self.result = Result()
        self.read: tuple[float, float] | None = None
        self.pictures: tuple[tuple[int, Layout], ...] = ()
        self._wake = wake
        self.submitted = monotonic()
        self.started: float | None = None
        self.first_token: float | None = None
        self.ended: float | None = None
        self._deadline = None if deadline is None else self.submitted + deadline
        self._cancelled = False
        self._error: BaseException | None = None
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._pieces: list[str | None] = []
        self._listener: Listener | None = None
        self._readers: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        """Passes every piece of text so far, and every later one, to the listener, which replaces an earlier one.

        An exception in the listener cancels the answer.
        """
        with self._lock:
            self._listener = listener
            self._hand_all(listener)

    def cancel(self) -> None:
        """Ends the answer; its lane is free after the current step."""
        self._cancelled = True
        self._wake()

    @property
    def done(self) -> bool:
        """Whether the answer has ended, for whatever reason."""
        return self._done.is_set()

    @property
    def error(self) -> BaseException | None:
        """The exception that ended the answer, or None."""
        return self._error

    def wait(self, timeout: float | None = None) -> Result:
        """Waits for the whole answer. Raises the request's error, or `TimeoutError` after `timeout` seconds."""
        if not self._done.wait(None if timeout is None else min(timeout, threading.TIMEOUT_MAX)):
            raise TimeoutError(f"no answer within {timeout} s")
        if self._error is not None:
            raise self._error
        return self.result

    def __iter__(self) -> Iterator[str]:
        pieces: SimpleQueue[str | None] = SimpleQueue()
        with self._following(lambda _, piece: pieces.put(piece)):
            while (piece := pieces.get()) is not None:
                yield piece
        self.wait()

    async def __aiter__(self) -> AsyncIterator[str]:
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        with self._following(lambda _, piece: (loop.call_soon_threadsafe(pieces.put_nowait, piece), None)[1]):
            try:
                while (piece := await pieces.get()) is not None:
                    yield piece
            finally:
                if not self.done:
                    self.cancel()
        self.wait()

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.done:
            self.cancel()

    def over(self, now: float) -> str | None:
        """Why the answer has to end now, or None. For the scheduler alone, like the methods below."""
        if self._cancelled:
            return "cancelled"
        return "deadline" if self._deadline is not None and now >= self._deadline else None

    def push(self, piece: str) -> None:
        """Adds a piece of text."""
        if self.first_token is None:
            self.first_token = monotonic()
        if piece:
            self._tell(piece)

    def end(self, reason: str | None = None, error: BaseException | None = None) -> None:
        """Ends the answer; `reason` is the finish reason of an answer that is ended from outside."""
        if self.done:
            return
        if reason is not None:
            self.result.finish_reason = reason
        self._error = error
        self.ended = monotonic()
        self._done.set()
        self._tell(None)

    def _tell(self, piece: str | None) -> None:
        """Keeps a piece for later listeners and readers, and passes it to the present ones."""
        with self._lock:
            self._pieces.append(piece)
            for listener in self._readers if self._listener is None else (self._listener, *self._readers):
                self._hand(listener, piece)

    @contextmanager
    def _following(self, reader: Listener) -> Iterator[None]:
        """Passes every piece so far and every later one to a reader, beside others and the listener."""
        with self._lock:
            self._readers.append(reader)
            self._hand_all(reader)
        try:
            yield
        finally:
            with self._lock:
                self._readers.remove(reader)

    def _hand_all(self, listener: Listener) -> None:
        for piece in self._pieces:
            self._hand(listener, piece)

    def _hand(self, listener: Listener, piece: str | None) -> None:
        try:
            listener(self, piece)
        except Exception:
            self._cancelled = True
