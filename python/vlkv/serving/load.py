"""A load test of a running server: so many requests at once (closed loop), or so many a second (open loop).

TTFT is the time to the first text, TPOT the time from there to the end by the tokens after the first. Under an open
loop, requests come at random moments (a Poisson process), whether or not earlier ones are done.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

import aiohttp
import numpy as np

from vlkv.serving.triton.client import Reply, ask

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class Load:
    """What is asked for.

    Fields:
        requests: how many.
        concurrency: at once, of a closed loop.
        rate: requests a second of an open loop, which it then is; None for a closed one.
        bodies: inputs of the requests, by turns.
        seed: of the open loop's moments.
    """

    requests: int
    concurrency: int
    bodies: Sequence[dict[str, Any]]
    rate: float | None = None
    seed: int = 0


@dataclass
class Report:
    """What came of it. Seconds, and tokens a second."""

    requests: int
    answered: int
    errors: dict[str, int]
    seconds: float
    requests_per_second: float
    tokens_per_second: float
    generated_tokens: int
    ttft: dict[str, float] = field(default_factory=dict)
    tpot: dict[str, float] = field(default_factory=dict)
    whole: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def run_load(
    url: str, load: Load, model: str = "vlkv", progress: Callable[[int], None] | None = None
) -> tuple[Report, list[Reply]]:
    """Sends all, waits for all; `progress` is told how many are done."""
    return asyncio.run(_run(url, load, model, progress))


async def _run(
    url: str, load: Load, model: str, progress: Callable[[int], None] | None
) -> tuple[Report, list[Reply]]:
    replies: list[Reply] = []
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(None)) as session:

        async def one(number: int) -> None:
            replies.append(await ask(session, url, load.bodies[number % len(load.bodies)], model))
            if progress is not None:
                progress(len(replies))

        start = perf_counter()
        if load.rate is None:
            numbers = iter(range(load.requests))

            async def worker() -> None:
                for number in numbers:
                    await one(number)

            await asyncio.gather(*(worker() for _ in range(load.concurrency)))
        else:
            gaps = np.random.default_rng(load.seed).exponential(1 / load.rate, load.requests)
            tasks = []
            for number, moment in enumerate(np.cumsum(gaps) - gaps[0]):
                await asyncio.sleep(max(0.0, start + moment - perf_counter()))
                tasks.append(asyncio.create_task(one(number)))
            await asyncio.gather(*tasks)
        return report(replies, perf_counter() - start), replies


def report(replies: Sequence[Reply], seconds: float) -> Report:
    """Sums up."""
    good = [reply for reply in replies if not reply.error]
    tokens = sum(reply.tokens for reply in good)
    later = [
        (reply.pieces[-1] - reply.first) / (reply.tokens - 1)
        for reply in good
        if reply.tokens > 1 and len(reply.pieces) > 1
    ]
    return Report(
        requests=len(replies),
        answered=len(good),
        errors=dict(Counter(reply.error for reply in replies if reply.error)),
        seconds=seconds,
        requests_per_second=len(good) / seconds,
        tokens_per_second=tokens / seconds,
        generated_tokens=tokens,
        ttft=_percentiles([reply.first for reply in good if reply.pieces]),
        tpot=_percentiles(later),
        whole=_percentiles([reply.whole for reply in good]),
    )


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    return {f"p{rank}": float(np.percentile(values, rank)) for rank in PERCENTILES}
