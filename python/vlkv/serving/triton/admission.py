"""Requests on their way from Triton's thread to the scheduler: those with pictures go by threads that decode them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from time import monotonic
from typing import Any

from vlkv.errors import ServerFullError
from vlkv.serving.triton.inputs import Tensors

THREADS = 2
"""That decode pictures."""
MOST = 64
"""Requests whose pictures may wait for one of them."""
MOST_BYTES = 256 << 20
"""Of these pictures' files; one request may have more if no other waits."""

Request = tuple[Tensors, float | None, Any]
"""Its tensors, its deadline in seconds, and who sends its responses."""


class Admission:
    """Submits requests; one without pictures never waits for those with some.

    Args:
        submit: puts a request into the queue, and answers it where that fails.
        refuse: sends an error as the only response.
    """

    def __init__(
        self,
        submit: Callable[[Tensors, float | None, Any], None],
        refuse: Callable[[Any, BaseException], None],
    ) -> None:
        self._submit, self._refuse = submit, refuse
        self._waiting: SimpleQueue[Request | None] = SimpleQueue()
        self._ending = False
        self._lock, self._held = threading.Lock(), 0
        self._threads: list[threading.Thread] = []

    def admit(self, tensors: Tensors, deadline: float | None, sender: Any) -> None:
        """Submits it now, or soon.

        Raises:
            ServerFullError: the pictures of too many wait to be decoded.
        """
        images = tensors.get("images")
        late = deadline is not None and not deadline > 0
        if images is None or not images.size or late:
            self._submit(tensors, deadline, sender)
            return
        if self._waiting.qsize() >= MOST:
            raise ServerFullError(
                f"server is full: the pictures of {MOST} requests wait to be decoded; try again later"
            )
        size = sum(map(len, images.reshape(-1)))
        with self._lock:
            if self._held + size > MOST_BYTES and self._held:
                raise ServerFullError(
                    f"server is full: files of waiting pictures take {self._held} bytes, these {size}, the limit is "
                    f"{MOST_BYTES}; try again later"
                )
            self._held += size
        self._waiting.put((tensors, None if deadline is None else monotonic() + deadline, sender))
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        while len(self._threads) < THREADS:
            thread = threading.Thread(target=self._run, name="vlkv-pictures", daemon=True)
            thread.start()
            self._threads.append(thread)

    def close(self, timeout: float) -> None:
        """Refuses what waits still, and ends the threads within so many seconds."""
        self._ending = True
        for _ in self._threads:
            self._waiting.put(None)
        end = monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, end - monotonic()))

    def _run(self) -> None:
        while (request := self._waiting.get()) is not None:
            tensors, end, sender = request
            size = sum(map(len, tensors["images"].reshape(-1)))
            try:
                if self._ending:
                    raise ServerFullError("the server is shutting down and takes no more requests")
                self._submit(tensors, None if end is None else max(1e-6, end - monotonic()), sender)
            except BaseException as error:
                self._refuse(sender, error)
                if not isinstance(error, Exception):
                    raise
            finally:
                with self._lock:
                    self._held -= size
