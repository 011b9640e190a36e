"""One run of one arm, whoever runs it: the engine under a budget, or another program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from time import perf_counter
from typing import Protocol

from vlkv.bench.probe import Peak
from vlkv.bench.prompts import Asked
from vlkv.bench.settings import Budget
from vlkv.engine import Engine
from vlkv.generate import Request
from vlkv.manifest import BYTES
from vlkv.policy import resolve
from vlkv.prefill import Job
from vlkv.result import Result
from vlkv.sampling import Sampling


@dataclass
class Run:
    """What one run took. Seconds and bytes.

    Fields:
        first: until every prompt of the batch has its first token; `vision`, `prefill` and `compress` are parts of it,
            and 0 where a program does not tell them apart.
        steps: of each decode step of the whole batch.
        whole: from the prompts to the last token.
        cache_bytes: of the arrays that are alive while decoding, all prompts together; 0 where unknown.
        read_bytes: of the cache that a decode step reads, the mean over the steps; 0 where unknown.
        peak_bytes: peak resident memory of the process during the run.
        bandwidth: bytes a second, before and after the run.
        tokens: of each prompt.
    """

    first: float
    steps: list[float]
    whole: float
    vision: float = 0.0
    prefill: float = 0.0
    compress: float = 0.0
    cache_bytes: int = 0
    read_bytes: int = 0
    peak_bytes: int = 0
    bandwidth: tuple[float, float] = (0.0, 0.0)
    tokens: list[list[int]] = field(default_factory=list)


class Arm(Protocol):
    """Something that is measured.

    Attributes:
        label: its name in tables.
        own: whether it is this engine.
    """

    label: str
    own: bool

    def run(self, asked: Sequence[Asked], new_tokens: int) -> Run:
        """Answers the prompts, all with exactly that many tokens, greedily."""
        ...


class EngineArm:
    """The engine under one budget."""

    own = True

    def __init__(self, engine: Engine, budget: Budget, policy: str) -> None:
        self.label, self.budget = budget.label, budget
        self._engine = engine
        self._policy = resolve("full" if budget == Budget(1.0) else policy)
        self._peak = Peak()

    def run(self, asked: Sequence[Asked], new_tokens: int) -> Run:
        """See `Arm.run`: prompts are read one after the other, then decode together."""
        sampling = Sampling(max_new_tokens=new_tokens)
        requests = []
        for one in asked:
            share = self.budget.of(len(one.prompt.token_ids))
            job = Job(one.prompt, [one.picture], self._policy, share, new_tokens)
            requests.append(Request(job, sampling))
        self._peak.reset()
        marks: list[float] = []
        results: dict[int, Result] = {}
        start = perf_counter()
        for number, _, result in self._engine.answers(requests, endless=True):
            marks.append(perf_counter())
            results[number] = result
        ends = marks[len(asked) - 1 :: len(asked)]
        return Run(
            first=ends[0] - start,
            steps=[later - earlier for earlier, later in pairwise(ends)],
            whole=ends[-1] - start,
            vision=sum(result.seconds.vision for result in results.values()),
            prefill=sum(result.seconds.prefill for result in results.values()),
            compress=sum(result.seconds.compress for result in results.values()),
            cache_bytes=sum(result.cache_bytes for result in results.values()),
            read_bytes=sum(self._read(result.kept_tokens, new_tokens) for result in results.values()),
            peak_bytes=self._peak.bytes(),
            tokens=[results[number].token_ids for number in sorted(results)],
        )

    def _read(self, kept: Sequence[int], new_tokens: int) -> int:
        """Bytes of the cache that a step reads of one prompt: step n reads what was kept and n new tokens."""
        manifest = self._engine.manifest
        slot = 2 * manifest.text.kv_heads * manifest.text.head_dim * BYTES[manifest.cache_dtype]
        grown = new_tokens / 2 if self._policy.decode == "append" else 1
        return round(slot * sum(count + grown for count in kept))
