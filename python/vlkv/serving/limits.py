"""Limits for each client of a server: requests at once, and tokens a minute. A client is an API key or another name.

Tokens are counted with a bucket that holds a minute's tokens and fills steadily. A request takes the tokens that its
answers may have before it begins. When they have ended, it has used its prompts and the tokens that were generated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from threading import Lock
from time import monotonic

from vlkv.errors import LimitError
from vlkv.scheduler import Ticket

MINUTE = 60.0
MANY = 1024
"""Clients that are remembered before those are looked for that have nothing running and a full bucket."""


@dataclass(frozen=True)
class ClientLimits:
    """What one client may use; None is no limit.

    Fields:
        requests: its requests that wait or are answered at the same time.
        tokens: prompt and generated tokens a minute.
    """

    requests: int | None = None
    tokens: int | None = None


@dataclass(eq=False)
class Running:
    """A request that counts until all its answers have ended.

    Fields:
        tokens: what it took from the bucket.
        tickets: its answers; None until they are known.
    """

    tokens: int
    tickets: Sequence[Ticket] | None = None

    @property
    def ended(self) -> float | None:
        """When the last answer ended, `time.monotonic()`; None before that."""
        if self.tickets is None or not all(ticket.done for ticket in self.tickets):
            return None
        return max((ticket.ended or 0.0 for ticket in self.tickets), default=0.0)

    @property
    def used(self) -> int:
        """Its prompts' tokens and the generated ones."""
        results = [ticket.result for ticket in self.tickets or ()]
        return sum(result.prompt_tokens + len(result.token_ids) for result in results)


@dataclass
class _Client:
    """The state of a client: what is in its bucket, as of when, and its requests."""

    tokens: float
    at: float
    running: list[Running] = field(default_factory=list)


class Clients:
    """The clients of a server and what they use. Any thread may call it.

    Args:
        limits: of every client.
        clock: as `time.monotonic`.
        called: what errors call a client.
    """

    def __init__(
        self, limits: ClientLimits, clock: Callable[[], float] = monotonic, called: str = "API key"
    ) -> None:
        self._limits, self._clock, self._called = limits, clock, called
        self._clients: dict[str, _Client] = {}
        self._many = MANY
        self._lock = Lock()

    def begin(self, client: str, tokens: int) -> Running:
        """Counts a request that may generate so many tokens. Its `tickets` must be set, to none if it fails.

        Raises:
            LimitError: the client is at a limit.
        """
        if self._limits == ClientLimits():
            return Running(tokens)  # nothing to count; names of clients that nobody checks would pile up
        with self._lock:
            self._forget()
            one = self._settled(client)
            self._check_requests(len(one.running))
            self._check_tokens(one.tokens, tokens)
            one.tokens -= tokens
            one.running.append(running := Running(tokens))
        return running

    def _forget(self) -> None:
        """Forgets clients that are as new ones. The next look is when there are twice as many as stayed."""
        if len(self._clients) < self._many:
            return
        for name in list(self._clients):
            one = self._settled(name)
            if not one.running and one.tokens >= float(self._limits.tokens or 0):
                del self._clients[name]
        self._many = max(MANY, 2 * len(self._clients))

    def _settled(self, client: str) -> _Client:
        """The client's state as of now."""
        now = self._clock()
        one = self._clients.setdefault(client, _Client(float(self._limits.tokens or 0), now))
        ended = [(running.ended, running) for running in one.running]
        for when, running in sorted(((w, r) for w, r in ended if w is not None), key=lambda pair: pair[0]):
            self._fill(one, when)
            one.tokens += running.tokens - running.used
            one.running.remove(running)
        self._fill(one, now)
        return one

    def _fill(self, one: _Client, now: float) -> None:
        most = self._limits.tokens or 0
        one.tokens = min(float(most), one.tokens + most * max(0.0, now - one.at) / MINUTE)
        one.at = max(one.at, now)

    def _check_requests(self, running: int) -> None:
        most = self._limits.requests
        if most is not None and running >= most:
            raise LimitError(
                f"{running} requests of this {self._called} are running, the limit is {most}: wait until one has ended",
                "requests",
                1,
            )

    def _check_tokens(self, left: float, tokens: int) -> None:
        most = self._limits.tokens
        if most is None:
            return
        if tokens > most:
            raise LimitError(
                f"the request asks for {tokens} new tokens, the limit of one {self._called} is {most} tokens a minute: "
                "ask for fewer",
                "tokens",
                None,
            )
        if tokens > left:
            wait = max(1, ceil((tokens - left) * MINUTE / most))
            raise LimitError(
                f"{tokens} new tokens are more than what is left of this {self._called}'s {most} tokens a minute: "
                f"try again in {wait} s",
                "tokens",
                wait,
            )
