"""Requests on their way from Triton's thread to the scheduler: those with pictures go by threads that decode them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from queue import SimpleQueue
from time import monotonic
from typing import Any

from vlkv.errors import ServerFullError
from vlkv.serving.limits import Running
from vlkv.serving.triton.inputs import Tensors

THREADS = 2
"""That decode pictures."""
MOST = 64
"""Requests whose pictures may wait for one of them."""
MOST_BYTES = 256 << 20
"""Of these pictures' files; one request may have more if no other waits."""


@dataclass(frozen=True)
class Asked:
    """A request.

    Fields:
        tensors: the given inputs.
        deadline: seconds from now; None for none.
        sender: who sends its responses.
        running: what counts for its client.
    """

    tensors: Tensors
    deadline: float | None
    sender: Any
    running: Running


class Admission:
    """Submits requests; one without pictures never waits for those with some.

    Args:
        submit: puts a request into the queue, and answers it where that fails.
        refuse: sends an error as the only response.
    """

    def __init__(
        self, submit: Callable[[Asked], None], refuse: Callable[[Asked, BaseException], None]
    ) -> None:
        self._submit, self._refuse = submit, refuse
        self._waiting: SimpleQueue[tuple[Asked, float] | None] = SimpleQueue()
        self._ending = False
        self._lock, self._held = threading.Lock(), 0
        self._threads: list[threading.Thread] = []

    def admit(self, asked: Asked) -> None:
        """Submits it now, or soon.

        Raises:
            ServerFullError: the pictures of too many wait to be decoded.
        """
        images = asked.tensors.get("images")
        late = asked.deadline is not None and not asked.deadline > 0
        if images is None or not images.size or late:
            self._submit(asked)
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
        self._waiting.put((asked, monotonic()))
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
            asked, came = request
            size = sum(map(len, asked.tensors["images"].reshape(-1)))
            try:
                if self._ending:
                    raise ServerFullError("the server is shutting down and takes no more requests")
                if asked.deadline is not None:
                    asked = replace(asked, deadline=max(1e-6, came + asked.deadline - monotonic()))
                self._submit(asked)
            except BaseException as error:
                self._refuse(asked, error)
                if not isinstance(error, Exception):
                    raise
            finally:
                with self._lock:
                    self._held -= size
