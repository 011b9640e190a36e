"""From prompts to answers: each prompt is prefilled and compressed alone, then all decode together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from vlkv.backend.base import Backend, Floats
from vlkv.backend.cache import Cache, join
from vlkv.generation.decode import Decoder
from vlkv.generation.prefill import Job, Prefilled, Progress, prefill
from vlkv.generation.result import Result
from vlkv.generation.sampling import Sampler, Sampling
from vlkv.generation.stopping import Stopping
from vlkv.inputs.embedding import TokenEmbedding
from vlkv.inputs.tokenizer import Tokenizer
from vlkv.policies.decode_eviction import Eviction
from vlkv.storage.manifest import Manifest


@dataclass(frozen=True)
class Request:
    """A prepared prompt and how to answer it."""

    job: Job
    sampling: Sampling


class Answer:
    """One prompt's growing answer: picks tokens, turns them into text, knows when it is done."""

    def __init__(
        self, result: Result, sampling: Sampling, tokenizer: Tokenizer, eos: Sequence[int], limit: int
    ) -> None:
        self.result = result
        self._sampler = Sampler(sampling)
        self._stopping = Stopping(tokenizer.detokenizer(), eos, sampling.stop, limit)

    @property
    def done(self) -> bool:
        """Whether the answer has ended."""
        return self._stopping.finish_reason is not None

    @property
    def last_token(self) -> int:
        """The token to decode from."""
        return self.result.token_ids[-1]

    def take(self, logits: Floats) -> str:
        """Picks a token from logits `[V]`; the text that is certain now."""
        token = self._sampler.pick(logits)
        self.result.token_ids.append(token)
        piece = self._stopping.push(token)
        self.result.text += piece
        self.result.finish_reason = self._stopping.finish_reason or ""
        return piece


class Stream:
    """An answer as it comes: iterate for pieces of text; `result` grows along and is whole at the end."""

    def __init__(self, pieces: Iterator[tuple[int, str, Result]]) -> None:
        self._pieces = pieces
        self.result = Result()

    def __iter__(self) -> Iterator[str]:
        for _, piece, result in self._pieces:
            self.result = result
            if piece:
                yield piece


def generate(
    requests: Sequence[Request],
    backend: Backend,
    embedding: TokenEmbedding,
    tokenizer: Tokenizer,
    manifest: Manifest,
    progress: Progress | None = None,
) -> Iterator[tuple[int, str, Result]]:
    """Answers a batch.

    Yields:
        Request number, new text, and that request's result so far, after each of its tokens.
    """
    answers: list[Answer] = []
    ready: list[Prefilled] = []
    for number, request in enumerate(requests):
        begun = prefill(request.job, backend, embedding, manifest, progress)
        answer = Answer(begun.result, request.sampling, tokenizer, manifest.tokens.eos, request.job.room)
        answers.append(answer)
        ready.append(begun)
        yield number, answer.take(begun.logits), begun.result
    cache = join([begun.cache for begun in ready])
    evictions = [begun.eviction for begun in ready]
    ready.clear()
    for answer in answers:
        answer.result.cache_bytes = cache.bytes // len(answers)
    yield from decode(answers, cache, evictions, backend, embedding)


def decode(
    answers: Sequence[Answer],
    cache: Cache,
    evictions: Sequence[Eviction | None],
    backend: Backend,
    embedding: TokenEmbedding,
) -> Iterator[tuple[int, str, Result]]:
    """Lets begun answers go on until all are done; yields as `generate` does."""
    active = np.array([not answer.done for answer in answers])
    if not active.any():
        return
    positions = np.array([answer.result.prompt_tokens for answer in answers], np.int64)
    decoder = Decoder(backend, cache, evictions, positions)
    seconds = 0.0
    while active.any():
        start = perf_counter()
        tokens = np.array([answer.last_token for answer in answers], np.int64)
        logits = decoder.step(embedding.rows(tokens), active)
        pieces = [(n, answers[n].take(logits[n])) for n in np.flatnonzero(active).tolist()]
        seconds += perf_counter() - start
        for number, piece in pieces:
            result = answers[number].result
            active[number] = not answers[number].done
            result.seconds.decode = seconds
            result.tokens_per_second = (len(result.token_ids) - 1) / seconds
            yield number, piece, result
