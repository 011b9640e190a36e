"""Tokens that are given, not chosen: logits of each step under a policy, and what each step attends to.

For perplexity, for agreement with the full cache, and for cache hit rates (VL-Cache, arXiv 2410.23317, section 3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp

import numpy as np
from numpy.typing import NDArray

from vlkv.backend.base import Backend, Floats
from vlkv.backend.cache import Cache
from vlkv.errors import PolicyError, PromptError
from vlkv.generation.decode import Decoder
from vlkv.generation.prefill import Job, prefill
from vlkv.generation.result import Result
from vlkv.inputs.embedding import TokenEmbedding
from vlkv.ops.native import native
from vlkv.storage.manifest import Manifest

MOST_LOSS = 700.0
"""Of a token on average: its exponential is still a number."""


@dataclass(frozen=True)
class ForcedStep:
    """The prompt's end, or one given token.

    Fields:
        logits: `[V]`, of what follows it.
        attention: where asked for, per layer `[Hkv, C]`: this token's attention to the C valid slots, its own the last,
            summed over the query heads of each KV head; None at the prompt's end. With the full cache slot n holds
            token n, after compression the first hold `result.positions`, in order.
    """

    logits: Floats
    attention: list[Floats] | None = None


class Forced:
    """Iterate for a step at the prompt's end and one after each token; `result` is there from the first on.

    Attributes:
        result: of the prompt; without an answer.
    """

    def __init__(
        self,
        job: Job,
        tokens: Sequence[int],
        backend: Backend,
        embedding: TokenEmbedding,
        manifest: Manifest,
        attention: bool = False,
    ) -> None:
        room = manifest.text.max_positions - len(job.prompt.token_ids)
        if len(tokens) > room:
            raise PromptError(
                f"{len(tokens)} given tokens are more than the {room} positions behind the prompt"
            )
        wrong = [token for token in tokens if not 0 <= token < manifest.text.vocab]
        if wrong:
            raise PromptError(f"token {wrong[0]} is outside 0 to {manifest.text.vocab - 1}")
        if attention and job.policy.decode != "append":
            raise PolicyError(
                f"policy {job.policy.name!r}: attention is given for decode 'append' only, not {job.policy.decode!r}"
            )
        self.result = Result()
        self._job, self._tokens, self._attention = job, tokens, attention
        self._parts = backend, embedding, manifest

    def __iter__(self) -> Iterator[ForcedStep]:
        backend, embedding, manifest = self._parts
        ready = prefill(self._job, backend, embedding, manifest)
        self.result = ready.result
        yield ForcedStep(ready.logits)
        positions = np.array([ready.result.prompt_tokens], np.int64)
        decoder = Decoder(backend, ready.cache, [ready.eviction], positions)
        active = np.array([True])
        for token in self._tokens:
            embeds = embedding.rows(np.array([token], np.int64))
            logits = decoder.step(embeds, active, active if self._attention else None)[0].copy()
            seen = attention_of(decoder, ready.cache, 0) if self._attention else None
            yield ForcedStep(logits, seen)


def token_loss(logits: Floats, token: int) -> NDArray[np.float64]:
    """-ln of the probability that each row of logits `[N, V]` gives the token, `[N]`."""
    rows = logits.astype(np.float64)
    highest = rows.max(axis=1)
    loss: NDArray[np.float64] = (
        highest + np.log(np.exp(rows - highest[:, np.newaxis]).sum(axis=1)) - rows[:, token]
    )
    return loss


def perplexity(loss: float, tokens: int) -> float:
    """Of that many tokens whose losses add up to `loss`."""
    return exp(min(loss / tokens, MOST_LOSS))


def attention_of(decoder: Decoder, cache: Cache, row: int) -> list[Floats]:
    """What one prompt's newest token attended to, per layer `[Hkv, C]` over the valid slots, after a watched step."""
    seen, found = decoder.steps.observation, []
    for layer, length in enumerate(cache.length[:, row].tolist()):
        key = cache.keys[layer][row : row + 1, :, :length]
        if seen.sparsity is not None:
            found.append(seen.scores[layer][row, :, :length].copy())
            continue
        query = seen.queries[layer][row : row + 1]
        total = np.zeros((1, key.shape[1], length), np.float32)
        counts = np.zeros((2, 1), np.int64)
        last = np.array([[length - 1]], np.int64)
        native().score(query, key, last, query.shape[3] ** -0.5, 0.0, total, counts[0], counts[1], 0)
        found.append(total[0])
    return found
