"""A prompt that is read once and answered under any number of policies.

Its full keys and values stay in memory, as `keep="reusable"` holds them in a conversation; each policy gets a cut copy.
What comes out equals `Engine.generate_batch` of the same policies, which reads the prompt for each of them.
L layers, S prompt tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vlkv.backend.base import Backend, Floats
from vlkv.backend.cache import Cache, join
from vlkv.generation.batch import Answer, Request, decode
from vlkv.generation.decode import Decoder
from vlkv.generation.prefill import Job, Prefilled, cut, embed, new_result, read
from vlkv.generation.result import Result
from vlkv.inputs.embedding import TokenEmbedding
from vlkv.inputs.tokenizer import Tokenizer
from vlkv.policies.observe import Observer, check_threshold, observed_rows
from vlkv.policies.policy import Policy, check_budget
from vlkv.storage.manifest import Manifest


@dataclass(frozen=True)
class Variant:
    """A policy and the share of the prompt's cache that it keeps."""

    policy: Policy
    budget: float


class Reading:
    """Made by `Engine.read`.

    Attributes:
        tokens: of the prompt, S.
        image_positions: `[N * P]`, which of them are image tokens.
    """

    def __init__(
        self,
        request: Request,
        backend: Backend,
        embedding: TokenEmbedding,
        tokenizer: Tokenizer,
        manifest: Manifest,
    ) -> None:
        self._request = request
        self._backend, self._embedding = backend, embedding
        self._tokenizer, self._manifest = tokenizer, manifest
        self.prompt = request.job.prompt
        self.tokens = len(self.prompt.token_ids)
        self._embeds = embed(self.prompt, request.job.images, backend, embedding, manifest)
        self._cache = Cache.empty(manifest.text, self.tokens, backend.store)
        self._logits: Floats | None = None
        self._seen: dict[tuple[int, int, float], Observer] = {}

    def answer(self, variants: Sequence[Variant]) -> list[Result]:
        """Answers under each variant; they decode together."""
        sampling, eos = self._request.sampling, self._manifest.tokens.eos
        ready = [self._cut(variant, self._request.job.room) for variant in variants]
        answers = []
        for begun in ready:
            answer = Answer(begun.result, sampling, self._tokenizer, eos, self._request.job.room)
            answer.take(begun.logits)
            answers.append(answer)
        if ready:
            cache = join([begun.cache for begun in ready])
            evictions = [begun.eviction for begun in ready]
            for _ in decode(answers, cache, evictions, self._backend, self._embedding):
                pass
        return [answer.result for answer in answers]

    def forced(self, variants: Sequence[Variant], tokens: Sequence[int]) -> Iterator[Floats]:
        """Logits `[len(variants), V]` at the prompt's end and after each of the given tokens, under each variant.

        `tokens` are at most as many as there are positions behind the prompt. What is yielded is overwritten next.
        """
        ready = [self._cut(variant, max(1, len(tokens))) for variant in variants]
        yield np.stack([begun.logits for begun in ready])
        cache = join([begun.cache for begun in ready])
        positions = np.full(len(ready), self.tokens, np.int64)
        decoder = Decoder(self._backend, cache, [begun.eviction for begun in ready], positions)
        active = np.ones(len(ready), bool)
        for token in tokens:
            embeds = self._embedding.rows(np.full(len(ready), token, np.int64))
            yield decoder.step(embeds, active)

    def _cut(self, variant: Variant, room: int) -> Prefilled:
        """What `prefill` would give, from what was read already where it was."""
        check_threshold(variant.policy, self._manifest)
        check_budget(variant.budget, variant.policy)
        job = replace(self._request.job, policy=variant.policy, budget=variant.budget, room=room)
        result = new_result(job, self._manifest)
        observer = self._observer(job, result)
        assert self._logits is not None
        cache, eviction = cut(job, self._cache, observer, self._backend, result, keep_source=True)
        return Prefilled(cache, self._logits, result, eviction)

    def _observer(self, job: Job, result: Result) -> Observer:
        """Scores of the rows that the policy observes; the prompt is run once for each choice of rows."""
        rows = observed_rows(job.policy, self.tokens, self.prompt.last_image)
        key = (rows.start, rows.stop, job.policy.threshold) if len(rows) else (0, 0, 0.0)
        if key not in self._seen or self._logits is None:
            observer = Observer(self._manifest.text, job.policy, self.tokens, rows, self._backend.threads)
            self._cache.length[:] = 0
            self._logits = read(self._embeds, 0, self._cache, observer, self._backend, result).copy()
            self._seen[key] = observer
        return self._seen[key]


def positions_or_all(result: Result, heads: int) -> list[NDArray[np.int32]]:
    """Kept prompt positions per layer `[Hkv, kept]`, where the result has none all of them."""
    if result.positions is not None:
        return result.positions
    every = np.arange(result.prompt_tokens, dtype=np.int32)
    return [np.broadcast_to(every, (heads, len(every))) for _ in result.kept_tokens]
