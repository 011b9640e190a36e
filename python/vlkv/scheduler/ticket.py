"""One request's answer, as the threads see it that wait for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from queue import SimpleQueue
from time import monotonic

from vlkv.generation.result import Result

Listener = Callable[["Ticket", str | None], None]
"""Called with each piece of text, from the scheduler's thread; None is the end."""


class Ticket:
    """An answer in the making: iterate for pieces of text, `async for` too, or `wait` for all of it.

    Leaving a `with` block or an `async for` cancels what has not ended. Whoever iterates again gets all of it again.

    Attributes:
        result: grows along; whole when the answer has ended. `finish_reason` is `stop`, `length`, `cancelled` or
            `deadline`.
        submitted, started, first_token, ended: `time.monotonic()` of what happened so far, else None.

    Args:
        wake: lets an idle scheduler know of a cancellation.
        deadline: seconds after which the answer ends with what it has.
    """

    def __init__(self, wake: Callable[[], None] = lambda: None, deadline: float | None = None) -> None:
        self.result = Result()
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

    def listen(self, listener: Listener) -> None:
        """Tells the listener of all that came and will come. There is one: the last. One that fails has gone away."""
        with self._lock:
            self._listener = listener
            for piece in self._pieces:
                self._hand(listener, piece)

    def cancel(self) -> None:
        """Ends the answer; its lane is free after the step that runs now."""
        self._cancelled = True
        self._wake()

    @property
    def done(self) -> bool:
        """Whether the answer has ended, one way or another."""
        return self._done.is_set()

    @property
    def error(self) -> BaseException | None:
        """What went wrong with it, if anything."""
        return self._error

    def wait(self, timeout: float | None = None) -> Result:
        """The whole answer. An error of the request is raised, `TimeoutError` where it takes longer."""
        if not self._done.wait(timeout):
            raise TimeoutError(f"no answer within {timeout} s")
        if self._error is not None:
            raise self._error
        return self.result

    def __iter__(self) -> Iterator[str]:
        pieces: SimpleQueue[str | None] = SimpleQueue()
        self.listen(lambda _, piece: pieces.put(piece))
        while (piece := pieces.get()) is not None:
            yield piece
        self.wait()

    async def __aiter__(self) -> AsyncIterator[str]:
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        self.listen(lambda _, piece: (loop.call_soon_threadsafe(pieces.put_nowait, piece), None)[1])
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
        """Why the answer has to end now; for the scheduler, as are the methods below."""
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
        """Ends the answer; `reason` is for one that did not end by itself."""
        if self.done:
            return
        if reason is not None:
            self.result.finish_reason = reason
        self._error = error
        self.ended = monotonic()
        self._done.set()
        self._tell(None)

    def _tell(self, piece: str | None) -> None:
        """Hands over, or keeps it for a listener to come; one that fails has gone away, which cancels."""
        with self._lock:
            self._pieces.append(piece)
            if self._listener is not None:
                self._hand(self._listener, piece)

    def _hand(self, listener: Listener, piece: str | None) -> None:
        try:
            listener(self, piece)
        except Exception:
            self._cancelled = True
