"""Connects the scheduler to Triton: one thread sends the tickets' pieces, and polls for cancelled requests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any

import msgspec
import numpy as np

from vlkv.errors import ServerStoppedError
from vlkv.scheduler import Ticket
from vlkv.serving.wire import ErrorKind, error_kind, error_text, usage
from vlkv.storage.files import reason

POLL = 0.1
"""Seconds between two polls for cancelled requests."""
ASKED = 16
"""Requests per poll: each costs as much as two responses."""

CODES = {ErrorKind.INVALID: "INVALID_ARG", ErrorKind.FULL: "UNAVAILABLE", ErrorKind.INTERNAL: "INTERNAL"}
"""Triton's error codes by kind."""

Event = tuple[Ticket, str | None]


class Exchange(threading.Thread):
    """Sends responses; pieces of one answer that arrive while it sends others are joined.

    Args:
        utils: Triton's `triton_python_backend_utils`.
        tick: called about every `POLL` seconds, and before an answer's last response, so that metrics include it.
    """

    def __init__(self, utils: Any, tick: Callable[[], None]) -> None:
        super().__init__(name="vlkv-exchange", daemon=True)
        self._utils, self._tick = utils, tick
        self._events: SimpleQueue[Event | None] = SimpleQueue()
        self._open: dict[Ticket, tuple[Any, bool]] = {}
        self._lock = threading.Lock()
        self._died: ServerStoppedError | None = None

    def follow(self, ticket: Ticket, sender: Any, stream: bool) -> None:
        """Sends a ticket's answer, streamed or whole; sends an error if the thread has ended."""
        with self._lock:
            died = self._died
            if died is None:
                self._open[ticket] = (sender, stream)
        if died is not None:
            ticket.cancel()
            self.fail(sender, died)
            return

        def hear(ticket: Ticket, piece: str | None) -> None:
            if stream or piece is None:
                self._events.put((ticket, piece))

        ticket.listen(hear)

    def close(self, timeout: float | None = None, left: BaseException | None = None) -> bool:
        """Ends the thread after the pieces so far; returns whether it has ended within `timeout` seconds.

        If `left` is given, the answers that are still open end with that error.
        """
        self._events.put(None)
        self.join(timeout)
        if left is not None:
            self._abandon(left)
        return not self.is_alive()

    def fail(self, sender: Any, error: BaseException) -> None:
        """Sends an error as the only response."""
        kinds = self._utils.TritonError
        refused = kinds(error_text(error), getattr(kinds, CODES[error_kind(error)]))
        self._send(sender, self._utils.InferenceResponse(error=refused), last=True)

    def run(self) -> None:
        """The thread's loop. An error that ends it ends every open answer."""
        try:
            self._send_all()
        except BaseException as error:
            with self._lock:
                self._died = ServerStoppedError(
                    f"the sending thread has stopped by an error: {reason(error)}"
                )
            self._abandon(self._died)
            raise

    def _send_all(self) -> None:
        next_look = monotonic() + POLL
        while True:
            events = self._wait(max(0.0, next_look - monotonic()))
            said = _by_ticket(event for event in events if event is not None)
            if any(None in pieces for pieces in said.values()):
                self._count()
            for ticket, pieces in said.items():
                try:
                    self._say(ticket, pieces)
                except Exception as error:
                    self._lose(ticket, error)
            if None in events:
                return
            if monotonic() >= next_look:
                self._look()
                next_look = monotonic() + POLL

    def _wait(self, seconds: float) -> list[Event | None]:
        """Returns all events since the last call; an empty list after `seconds` without events."""
        events: list[Event | None] = []
        try:
            events.append(self._events.get(timeout=seconds))
            while True:
                events.append(self._events.get_nowait())
        except Empty:
            return events

    def _look(self) -> None:
        """Polls the requests whose last poll is the oldest."""
        for ticket in list(self._open)[:ASKED]:
            sender, stream = self._open.pop(ticket)
            self._open[ticket] = (sender, stream)
            try:
                gone = sender.is_cancelled()
            except Exception as error:
                self._lose(ticket, error)
                continue
            if gone:
                ticket.cancel()
        self._count()

    def _count(self) -> None:
        """Metrics that can't be brought up to date are no reason to lose answers."""
        try:
            self._tick()
        except Exception as error:
            self._utils.Logger.log_error(f"vlkv: no metrics: {reason(error)}")

    def _lose(self, ticket: Ticket, error: BaseException) -> None:
        """Ends one answer that can't be sent; the others go on."""
        self._utils.Logger.log_error(
            f"vlkv: an answer can't be sent: {type(error).__name__}: {reason(error)}"
        )
        sender, _ = self._open.pop(ticket, (None, False))
        ticket.cancel()
        if sender is not None:
            self.fail(sender, error)

    def _abandon(self, error: BaseException) -> None:
        """Ends all answers that are open."""
        with self._lock:
            left, self._open = self._open, {}
        for ticket, (sender, _) in left.items():
            ticket.cancel()
            self.fail(sender, error)

    def _say(self, ticket: Ticket, pieces: list[str | None]) -> None:
        """Sends one response for all pieces that have arrived; the last response if the answer has ended."""
        if ticket not in self._open:  # it was lost before
            return
        sender, stream = self._open[ticket]
        text = "".join(piece for piece in pieces if piece is not None)
        if None not in pieces:
            self._send(sender, self._response({"text": text}))
            return
        if ticket.error is not None:
            del self._open[ticket]
            self.fail(sender, ticket.error)
            return
        result = ticket.result
        values = {
            "text": text if stream else result.text,
            "finish_reason": result.finish_reason,
            "usage": msgspec.json.encode(usage(result)).decode(),
        }
        response = self._response(values)
        del self._open[ticket]
        self._send(sender, response, last=True)

    def _response(self, values: dict[str, str]) -> Any:
        tensors = [
            self._utils.Tensor(name, np.array([text.encode()], np.object_)) for name, text in values.items()
        ]
        return self._utils.InferenceResponse(tensors)

    def _send(self, sender: Any, response: Any, last: bool = False) -> None:
        """Sends a response; a client that has disconnected is not an error."""
        flags = self._utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0
        try:
            sender.send(response, flags=flags)
        except Exception as error:
            self._utils.Logger.log_verbose(f"vlkv: a response found no one: {error}")


def _by_ticket(events: Iterable[Event]) -> dict[Ticket, list[str | None]]:
    found: dict[Ticket, list[str | None]] = {}
    for ticket, piece in events:
        found.setdefault(ticket, []).append(piece)
    return found
