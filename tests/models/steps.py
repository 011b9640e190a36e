"""Fixtures below `Engine.generate`: a prefilled prompt, and logits of given tokens."""

from __future__ import annotations

from collections import abc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from vlkv import POLICIES, Engine, Question, Result
from vlkv.backend.cache import Cache
from vlkv.errors import PolicyError
from vlkv.generation.chunks import PREFILL_CHUNK
from vlkv.generation.decode import Decoder
from vlkv.generation.prefill import prefill
from vlkv.generation.sequence import Sequence, prepare
from vlkv.policies.decode_eviction import Eviction
from vlkv.policies.observe import check_fit

ROUNDOFF = 2.0**-24
TERMS = 2500


def policies_of(engine: Engine) -> list[str]:
    """The built-in policies that the engine can serve."""
    found = []
    for name, policy in POLICIES.items():
        with suppress(PolicyError):
            check_fit(policy, engine.manifest, engine.model.backend)
            found.append(name)
    return found


@dataclass
class Prefilled:
    """A prompt's cache, the logits of its last token, and its result without an answer."""

    engine: Engine
    sequence: Sequence
    cache: Cache

    @property
    def logits(self) -> np.ndarray:
        return self.sequence.logits

    @property
    def result(self) -> Result:
        return self.sequence.result

    @property
    def eviction(self) -> Eviction | None:
        return self.sequence.eviction

    def decoder(self) -> Decoder:
        """Returns a decoder that continues after the prompt."""
        return Decoder(self.engine.model, self.cache, [self.sequence])

    def forced(self, tokens: abc.Sequence[int]) -> np.ndarray:
        """Returns logits `[1 + T, V]` of the prompt's last token and after each of the given tokens."""
        decoder = self.decoder()
        found = [self.logits]
        for token in tokens:
            found.append(decoder.step(np.array([token], np.int64), np.array([True]))[0].copy())
        return np.stack(found)


@pytest.fixture(scope="session")
def prefilled() -> Callable[..., Prefilled]:
    """Prefills a question on an engine. The arguments are those of `Question`, and `chunk`."""

    def make(
        engine: Engine, prompt: str, images: Any = (), chunk: int = PREFILL_CHUNK, **fields: Any
    ) -> Prefilled:
        sequence = prepare(engine.model, Question(prompt, images, **fields))
        prefill(engine.model, sequence, chunk=chunk)
        return Prefilled(engine, sequence, sequence.give_cache())

    return make


@pytest.fixture(scope="session")
def tolerance() -> Callable[[np.ndarray], float]:
    """Returns how far two float32 computations of these logits may differ.

    From a pixel to a logit, the successive dot products have about 2500 terms in total. Each term is rounded by at most
    2^-24 of its size, at random, so errors add up like a random walk. Both sides have this error.
    """
    return lambda logits: 2 * ROUNDOFF * TERMS**0.5 * float(np.abs(logits).max())
