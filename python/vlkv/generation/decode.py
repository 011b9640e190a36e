"""Decoding: single-token steps of a batch; each sequence evicts under its own policy, or not at all.

B sequences, V vocabulary, L layers, Hkv key/value heads.
"""

from __future__ import annotations

from collections import abc
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from vlkv.backend.base import Observation
from vlkv.backend.cache import HOST, Cache
from vlkv.dtypes import Float32, Int64
from vlkv.generation.result import Result
from vlkv.generation.sequence import Sequence
from vlkv.model import Model

Piece = tuple[int, str, Result]
"""A sequence's number, its new text, and its result so far."""


class Decoder:
    """Single-token steps over one cache.

    Args:
        model: runs the steps.
        cache: the cache of B sequences.
        sequences: the prefilled sequences, in the cache's order.

    Attributes:
        cache: the cache of the B sequences.
        positions: the position `[B]` of each sequence's next token.
    """

    def __init__(self, model: Model, cache: Cache, sequences: abc.Sequence[Sequence]) -> None:
        self.cache, self.sequences = cache, list(sequences)
        self.positions: Int64 = np.array([sequence.position for sequence in sequences], np.int64)
        self._embedding = model.embedding
        self._steps = model.backend.steps(cache)
        evictions = [sequence.eviction for sequence in sequences]
        self._evictions = [(row, eviction) for row, eviction in enumerate(evictions) if eviction is not None]
        self._watched = np.array([eviction is not None and eviction.watches for eviction in evictions])
        self._watches = bool(self._watched.any())
        layers, batch = cache.length.shape
        heads = cache.keys[0].shape[1]
        self._slots = np.full((layers, batch, heads), -1, np.int64)

    @property
    def observation(self) -> Observation:
        """The observation of the last step that observed any sequence."""
        return self._steps.observation

    def step(
        self, tokens: Int64, active: NDArray[np.bool_], watched: NDArray[np.bool_] | None = None
    ) -> Float32:
        """Runs one token `[B]` of each active sequence `[B]`; returns logits `[B, V]`, which the next step overwrites.

        `watched` `[B]` marks sequences to observe in addition to those whose policy observes; see `observation`.
        """
        asked = watched
        if self._watches:
            asked = self._watched & active if watched is None else (self._watched & active) | watched
            asked = asked if asked.any() else None
        logits = self._steps.step(self._embedding.rows(tokens), self.positions, active, asked)
        drops = False
        for row, eviction in self._evictions:
            self._slots[:, row] = -1
            if active[row]:
                eviction.append(self.cache.length[:, row], int(self.positions[row]))
                if eviction.watches:
                    eviction.observe(self.observation, self.cache, row)
                drops |= eviction.choose(self.cache.length[:, row], self._slots[:, row])
        if drops:
            self._steps.overwrite(self._slots)
        self.positions += active
        return logits

    def attention(self, row: int) -> list[Float32]:
        """The attention of a sequence's newest token to the valid slots, per layer `[Hkv, C]`.

        The last step must have observed the sequence.
        """
        found = []
        for layer, length in enumerate(self.cache.length[:, row].tolist()):
            total = np.zeros((1, self.cache.keys[layer].shape[1], length), np.float32)
            self.observation.add(layer, row, total, self.cache, np.array([length - 1], np.int64))
            found.append(total[0])
        return found


def decode(model: Model, cache: Cache, sequences: abc.Sequence[Sequence]) -> abc.Iterator[Piece]:
    """Decodes sequences that have their first token until all are done; yields after each token of each sequence.

    A row whose answer has ended is no longer computed: the last row takes its place. A device's cache keeps all rows.
    """
    rows, decoder, seconds = list(range(len(sequences))), None, 0.0
    while True:
        active = np.array([not sequences[number].done for number in rows], np.bool_)
        if not active.any():
            return
        if cache.store is HOST and not active.all():
            cache, places = cache.compacted(np.flatnonzero(active).tolist())
            rows, decoder = [rows[place] for place in places], None
            active = np.ones(len(rows), np.bool_)
        if decoder is None:
            decoder = Decoder(model, cache, [sequences[number] for number in rows])
        start = perf_counter()
        tokens = np.array([sequences[number].last_token for number in rows], np.int64)
        logits = decoder.step(tokens, active)
        pieces = [(rows[n], sequences[rows[n]].take(logits[n])) for n in np.flatnonzero(active).tolist()]
        seconds += perf_counter() - start
        for number, piece in pieces:
            result = sequences[number].result
            result.seconds.decode = seconds
            result.tokens_per_second = (len(result.token_ids) - 1) / seconds
            yield number, piece, result


def feed(
    model: Model,
    cache: Cache,
    sequences: abc.Sequence[Sequence],
    tokens: abc.Iterable[int],
    watch: bool = False,
) -> abc.Iterator[tuple[Float32, Decoder]]:
    """Runs given tokens, the same for all sequences; yields logits `[B, V]`, which the next step overwrites.

    `watch` observes each token of each sequence, for `Decoder.attention`.
    """
    decoder, active = Decoder(model, cache, sequences), np.ones(len(sequences), np.bool_)
    for token in tokens:
        yield (
            decoder.step(np.full(len(sequences), token, np.int64), active, active if watch else None),
            decoder,
        )
