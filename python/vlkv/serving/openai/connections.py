"""What a client may do before its request is there: heads, bodies and time have limits. Times are in seconds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import h11
from starlette.requests import Request
from uvicorn.protocols.http.h11_impl import H11Protocol

from vlkv.errors import ServerFullError
from vlkv.serving.openai.protocol import RequestError

HEAD_SECONDS = 20.0
"""For a request's line and headers."""
HEAD_BYTES = 1 << 16
"""Of a request's line and headers."""
PIECE_SECONDS = 20.0
"""For the next piece of a body."""
BODY_SECONDS = 300.0
"""For a whole body."""
BODIES = 4
"""Bodies of the largest size that are held at once, until their questions are in the queue."""


class Connection(H11Protocol):
    """A connection whose client has `HEAD_SECONDS` for each head; then it is closed.

    Clients that send a byte now and then would otherwise keep the server's file descriptors for ever. `httptools`,
    which uvicorn prefers where it is installed, has no limit of a head's size either.
    """

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for the first head."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Takes bytes, and waits for the rest of a head that is not complete."""
        super().data_received(data)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits no more."""
        super().connection_lost(exc)
        self._stop()

    def _wait(self) -> None:
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._stop()
        elif self._late is None:
            self._late = self.loop.call_later(HEAD_SECONDS, self._close)

    def _stop(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _close(self) -> None:
        self._late = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()


class Bodies:
    """Reads bodies, each to a limit, and all together to `BODIES` of the largest.

    Args:
        limit: bytes of one.

    Attributes:
        held: bytes of the bodies that are read, or wait for their pictures to be decoded.
    """

    def __init__(self, limit: int) -> None:
        self.held = 0
        self._limit = limit

    @asynccontextmanager
    async def reading(self, request: Request) -> AsyncIterator[bytearray]:
        """Reads a body; its bytes count until the block ends.

        Raises:
            RequestError: it is too large (413), too slow (408) or compressed (415).
            ServerFullError: others take too much memory.
        """
        coding = request.headers.get("content-encoding", "identity")
        if coding.strip().lower() not in {"", "identity"}:
            raise RequestError(
                f"content-encoding {coding!a:.40} is not supported: send the body as it is", status=415
            )
        said = request.headers.get("content-length", "")
        if said.isdecimal() and int(said) > self._limit:
            raise self._large()
        found = bytearray()
        try:
            await self._read(request, found)
            yield found
        finally:
            self.held -= len(found)

    async def _read(self, request: Request, found: bytearray) -> None:
        """Appends the body to `found`, and its bytes to `held`."""
        pieces = request.stream()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    async with asyncio.timeout(PIECE_SECONDS):
                        piece = await anext(pieces, None)
                    if piece is None:
                        return
                    found += piece
                    self.held += len(piece)
                    self._check(len(found))
        except TimeoutError:
            raise RequestError(
                f"the body did not come: {PIECE_SECONDS:g} s without a byte, or {BODY_SECONDS:g} s in all",
                status=408,
            ) from None

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise self._large()
        if self.held > BODIES * self._limit:
            raise ServerFullError(
                f"server is full: bodies of requests take {self.held} bytes, the limit is {BODIES * self._limit}; "
                "try again later"
            )

    def _large(self) -> RequestError:
        return RequestError(f"the body has more than {self._limit} bytes", status=413)
