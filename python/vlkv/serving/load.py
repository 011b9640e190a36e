"""A load test of a running server: a number of requests at once (closed loop), a rate (open loop), or a trace.

TTFT is the time to the first text; TPOT is the time from there to the end, divided by the tokens after the first. In
an open loop, requests arrive at random times (a Poisson process), whether or not earlier ones are done.
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

from vlkv.serving.openai import client as openai
from vlkv.serving.reply import Reply
from vlkv.serving.triton.client import ask

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class Load:
    """The description of a load test.

    Fields:
        requests: the number of requests.
        concurrency: requests at once in a closed loop.
        rate: requests per second in an open loop; None for a closed loop.
        bodies: inputs of the requests, used in turn.
        seed: the seed of the open loop's times.
        moments: the times in seconds at which a trace sends its requests, ascending; None for a loop.
        most_ttft: the largest TTFT in seconds of a good answer.
        most_tpot: the largest TPOT in seconds of a good answer.
    """

    requests: int
    concurrency: int
    bodies: Sequence[dict[str, Any]]
    rate: float | None = None
    seed: int = 0
    moments: Sequence[float] | None = None
    most_ttft: float | None = None
    most_tpot: float | None = None


@dataclass
class Report:
    """The results, in seconds and tokens per second; `goodput` is good answers per second, if bounds are given."""

    requests: int
    answered: int
    errors: dict[str, int]
    seconds: float
    requests_per_second: float
    tokens_per_second: float
    generated_tokens: int
    goodput: float | None = None
    ttft: dict[str, float] = field(default_factory=dict)
    tpot: dict[str, float] = field(default_factory=dict)
    whole: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return asdict(self)


def run_load(
    url: str,
    load: Load,
    model: str = "vlkv",
    progress: Callable[[int], None] | None = None,
    key: str = "x",
) -> tuple[Report, list[Reply]]:
    """Sends all requests and waits for all replies; `progress` is called with the number of finished ones.

    A URL that ends in /v1 is asked through OpenAI's API, any other through Triton's.
    """
    return asyncio.run(_run(url, load, model, progress, key))


async def _run(
    url: str, load: Load, model: str, progress: Callable[[int], None] | None, key: str
) -> tuple[Report, list[Reply]]:
    replies: list[Reply] = []
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(None)) as session:

        async def one(number: int) -> None:
            body = load.bodies[number % len(load.bodies)]
            if is_openai(url):
                replies.append(await openai.ask(session, url, body, key))
            else:
                replies.append(await ask(session, url, body, model))
            if progress is not None:
                progress(len(replies))

        start = perf_counter()
        if load.rate is None and load.moments is None:
            numbers = iter(range(load.requests))

            async def worker() -> None:
                for number in numbers:
                    await one(number)

            await asyncio.gather(*(worker() for _ in range(load.concurrency)))
        else:
            tasks = []
            for number, moment in enumerate(_moments(load)):
                await asyncio.sleep(max(0.0, start + moment - perf_counter()))
                tasks.append(asyncio.create_task(one(number)))
            await asyncio.gather(*tasks)
        return report(replies, perf_counter() - start, load), replies


def is_openai(url: str) -> bool:
    """Whether the URL is that of OpenAI's API: it ends in /v1, as clients of that API expect."""
    return url.rstrip("/").endswith("/v1")


def _moments(load: Load) -> Sequence[float]:
    """The times in seconds at which requests are sent."""
    if load.moments is not None:
        return load.moments
    gaps = np.random.default_rng(load.seed).exponential(1 / (load.rate or 1.0), load.requests)
    moments: Sequence[float] = (np.cumsum(gaps) - gaps[0]).tolist()
    return moments


def _is_good(reply: Reply, load: Load) -> bool:
    token = (
        (reply.pieces[-1] - reply.first) / (reply.tokens - 1) if reply.tokens > 1 and reply.pieces else 0.0
    )
    return reply.first <= (load.most_ttft or np.inf) and token <= (load.most_tpot or np.inf)


def report(replies: Sequence[Reply], seconds: float, load: Load | None = None) -> Report:
    """Computes the report of the replies."""
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
        goodput=None
        if load is None or (load.most_ttft is None and load.most_tpot is None)
        else sum(_is_good(reply, load) for reply in good) / seconds,
        ttft=_percentiles([reply.first for reply in good if reply.pieces]),
        tpot=_percentiles(later),
        whole=_percentiles([reply.whole for reply in good]),
    )


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    return {f"p{rank}": float(np.percentile(values, rank)) for rank in PERCENTILES}
