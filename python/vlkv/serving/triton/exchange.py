"""Connects the scheduler to Triton: one thread sends the tickets' pieces, and polls for cancelled requests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any

import msgspec
import numpy as np

from vlkv.scheduler import Ticket
from vlkv.serving.wire import ErrorKind, error_kind, error_text, usage

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

    def follow(self, ticket: Ticket, sender: Any, stream: bool) -> None:
        """Sends a ticket's answer, streamed or whole."""
        self._open[ticket] = (sender, stream)

        def hear(ticket: Ticket, piece: str | None) -> None:
            if stream or piece is None:
                self._events.put((ticket, piece))

        ticket.listen(hear)

    def close(self) -> None:
        """Ends the thread after the pieces so far."""
        self._events.put(None)
        self.join()

    def fail(self, sender: Any, error: BaseException) -> None:
        """Sends an error as the only response."""
        kinds = self._utils.TritonError
        refused = kinds(error_text(error), getattr(kinds, CODES[error_kind(error)]))
        self._send(sender, self._utils.InferenceResponse(error=refused), last=True)

    def run(self) -> None:
        """The thread's loop."""
        next_look = monotonic() + POLL
        while True:
            events = self._wait(max(0.0, next_look - monotonic()))
            said = _by_ticket(event for event in events if event is not None)
            if any(None in pieces for pieces in said.values()):
                self._tick()
            for ticket, pieces in said.items():
                self._say(ticket, pieces)
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
            if sender.is_cancelled():
                ticket.cancel()
        self._tick()

    def _say(self, ticket: Ticket, pieces: list[str | None]) -> None:
        """Sends one response for all pieces that have arrived; the last response if the answer has ended."""
        sender, stream = self._open[ticket]
        text = "".join(piece for piece in pieces if piece is not None)
        if None not in pieces:
            self._send(sender, self._response({"text": text}))
            return
        del self._open[ticket]
        if ticket.error is not None:
            self.fail(sender, ticket.error)
            return
        result = ticket.result
        values = {
            "text": text if stream else result.text,
            "finish_reason": result.finish_reason,
            "usage": msgspec.json.encode(usage(result)).decode(),
        }
        self._send(sender, self._response(values), last=True)

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
