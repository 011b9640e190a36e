"""Steps below `Engine.generate`: a prefilled prompt, and logits of tokens that are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from vlkv import Engine, Question, Result
from vlkv.backend.cache import Cache
from vlkv.generation.decode import Decoder
from vlkv.generation.prefill import CHUNK, prefill
from vlkv.policies.decode_eviction import Eviction

ROUNDOFF = 2.0**-24
TERMS = 2500


@dataclass
class Prefilled:
    """A prompt's cache, the logits of its end, and its result without an answer."""

    engine: Engine
    cache: Cache
    logits: np.ndarray
    result: Result
    eviction: Eviction | None

    def forced(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits `[1 + T, V]` of the prompt's end and after each of the given tokens."""
        positions = np.array([self.result.prompt_tokens])
        decoder = Decoder(self.engine._backend, self.cache, [self.eviction], positions)
        found = [self.logits]
        for token in tokens:
            embeds = self.engine._embedding.rows(np.array([token], np.int64))
            found.append(decoder.step(embeds, np.array([True]))[0].copy())
        return np.stack(found)


@pytest.fixture(scope="session")
def prefilled() -> Callable[..., Prefilled]:
    """Prefills a question on an engine; the arguments are those of `Question`, and `chunk`."""

    def make(engine: Engine, prompt: str, images: Any = (), chunk: int = CHUNK, **fields: Any) -> Prefilled:
        job = engine._prepare(Question(prompt, images, **fields)).job
        got = prefill(job, engine._backend, engine._embedding, engine.manifest, chunk=chunk)
        return Prefilled(engine, got.cache, got.logits, got.result, got.eviction)

    return make


@pytest.fixture(scope="session")
def tolerance() -> Callable[[np.ndarray], float]:
    """How far two float32 computations of these logits may differ.

    The dot products that follow each other from a pixel to a logit have about 2500 terms together. Each term is
    rounded by at most 2^-24 of its size, at random, so that errors add up like a random walk; both sides err.
    """
    return lambda logits: 2 * ROUNDOFF * TERMS**0.5 * float(np.abs(logits).max())
