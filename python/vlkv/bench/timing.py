"""One timed run of one arm: the engine under a budget, or another program."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from time import perf_counter
from typing import Protocol

from vlkv.bench.probe import Peak
from vlkv.bench.prompts import Asked
from vlkv.bench.settings import Budget
from vlkv.dtypes import Float32
from vlkv.engine import Engine
from vlkv.generation.result import Result
from vlkv.generation.sampling import Sampling
from vlkv.generation.sequence import Sequence as Prepared
from vlkv.policies.auto import taken
from vlkv.policies.builtin import resolve
from vlkv.storage.manifest import token_bytes


@dataclass
class Run:
    """The measurements of one run, in seconds and bytes.

    Fields:
        first: time until every prompt of the batch has its first token; `vision`, `prefill` and `compress` are parts of
            it, or 0 if a program does not report them.
        steps: time of each decode step of the whole batch.
        whole: time from the prompts to the last token.
        cache_bytes: bytes of the caches' arrays during decoding, over all prompts; 0 if unknown.
        kept_bytes: bytes of the caches after prefill, over all prompts; 0 if unknown.
        grown_bytes: bytes that each step adds to them.
        peak_bytes: peak resident memory of the process during the run.
        bandwidth: read bandwidth in bytes per second, before and after the run.
        tokens: the answer's tokens of each prompt.
    """

    first: float
    steps: list[float]
    whole: float
    vision: float = 0.0
    prefill: float = 0.0
    compress: float = 0.0
    cache_bytes: int = 0
    kept_bytes: int = 0
    grown_bytes: int = 0
    peak_bytes: int = 0
    bandwidth: tuple[float, float] = (0.0, 0.0)
    tokens: list[list[int]] = field(default_factory=list)

    @property
    def read_bytes(self) -> int:
        """The bytes of the cache that a decode step reads, as a mean over steps."""
        return self.kept_bytes + self.grown_bytes * (len(self.steps) + 1) // 2

    def beginning(self, new_tokens: int) -> Run:
        """The same run up to `new_tokens`. The arrays keep the size for the whole answer."""
        if new_tokens > len(self.steps):
            return self
        steps = self.steps[: new_tokens - 1]
        tokens = [row[:new_tokens] for row in self.tokens]
        return replace(self, steps=steps, whole=self.first + sum(steps), tokens=tokens)


class Arm(Protocol):
    """An arm of the benchmark: a measured configuration.

    Attributes:
        label: its name in tables.
        own: whether it is an engine of this project.
    """

    label: str
    own: bool

    def run(self, asked: Sequence[Asked], new_tokens: int) -> Run:
        """Answers all prompts greedily with exactly `new_tokens` tokens."""
        ...


class EngineArm:
    """An engine under one budget; `name` distinguishes it from other engines of the same run."""

    own = True

    def __init__(self, engine: Engine, budget: Budget, policy: str, name: str = "") -> None:
        self.label, self.budget = f"{name}, {budget.label}" if name else budget.label, budget
        self.engine = engine
        self._policy = resolve("full" if budget == Budget(1.0) else policy)
        text = engine.manifest.text
        self._slot, self._layers = token_bytes(text, engine.manifest.cache_dtype), text.layers
        self._peak = Peak()

    def request(self, one: Asked, new_tokens: int) -> Prepared:
        """Prepares the prompt under this budget, for a greedy answer."""
        share, model = self.budget.of(len(one.prompt.token_ids)), self.engine.model
        policy = taken(self._policy, one.prompt, model.manifest, model.backend)
        sampling = Sampling(max_new_tokens=new_tokens)
        return Prepared(one.prompt, one.pictures, policy, share, new_tokens, sampling)

    def forced(self, one: Asked, tokens: Sequence[int]) -> Iterator[Float32]:
        """Yields logits `[V]` at the prompt's end and after each of the given tokens."""
        for step in self.engine.forced(self.request(one, max(1, len(tokens))), tokens):
            yield step.logits

    def run(self, asked: Sequence[Asked], new_tokens: int) -> Run:
        """See `Arm.run`: prompts are prefilled one after the other, then decode together."""
        requests = [self.request(one, new_tokens) for one in asked]
        self._peak.reset()
        marks: list[float] = []
        results: dict[int, Result] = {}
        start = perf_counter()
        for number, _, result in self.engine.answers(requests, endless=True):
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
            kept_bytes=self._slot * sum(sum(result.kept_tokens) for result in results.values()),
            grown_bytes=self._slot * self._layers * len(asked) if self._policy.decode == "append" else 0,
            peak_bytes=self._peak.bytes(),
            tokens=[results[number].token_ids for number in sorted(results)],
        )
