"""What the pictures of requests take while these wait: bytes held until prefill has read them, and while decoding."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod

from vlkv.errors import MemoryLimitError, ServerFullError
from vlkv.inputs.layouts import Layout
from vlkv.scheduler.plan import show

PIXEL_MEMORY = 256 << 20
"""Bytes that the pixels of waiting requests may take."""
DECODING = 256 << 20
"""Bytes that pictures may take which are decoded at the same moment; one that takes more is decoded alone."""
BYTES_A_PIXEL = 6
"""Of a picture while it is decoded: as it is stored, and as RGB."""
CHANNELS, FLOAT = 3, 4


def held_bytes(layouts: Sequence[Layout]) -> int:
    """Bytes of the pixel values of pictures, float32, all tiles."""
    return sum(layout.count * CHANNELS * prod(layout.tiles) * FLOAT for layout in layouts)


class Held:
    """Bytes that a request holds; `release` gives them back, once."""

    def __init__(self, pixels: Pixels, size: int) -> None:
        self._pixels, self._size = pixels, size

    def release(self) -> None:
        """Gives them back."""
        size, self._size = self._size, 0
        self._pixels.give_back(size)


class Pixels:
    """A budget of bytes. Any thread may ask.

    Args:
        limit: of what waiting requests hold.

    Attributes:
        held: bytes, now.
    """

    def __init__(self, limit: int = PIXEL_MEMORY) -> None:
        self.held = 0
        self._limit = limit
        self._decoding = 0
        self._changed = threading.Condition()

    def hold(self, size: int) -> Held:
        """Takes bytes for a request.

        Raises:
            MemoryLimitError: it could never have so many.
            ServerFullError: others hold too many now.
        """
        if size > self._limit:
            raise MemoryLimitError(
                f"the pictures take {show(size)} as pixels, the limit is {show(self._limit)}: ask about fewer"
            )
        with self._changed:
            if self.held + size > self._limit:
                raise ServerFullError(
                    f"server is full: pictures of waiting requests take {show(self.held)}, these {show(size)}, "
                    f"the limit is {show(self._limit)}; try again later"
                )
            self.held += size
        return Held(self, size)

    def give_back(self, size: int) -> None:
        """For `Held`."""
        with self._changed:
            self.held -= size

    @contextmanager
    def decoding(self, pixels: int) -> Iterator[None]:
        """Waits until a picture of so many pixels may be decoded beside those that are; small ones seldom wait."""
        size = pixels * BYTES_A_PIXEL
        with self._changed:
            self._changed.wait_for(lambda: not self._decoding or self._decoding + size <= DECODING)
            self._decoding += size
        try:
            yield
        finally:
            with self._changed:
                self._decoding -= size
                self._changed.notify_all()
